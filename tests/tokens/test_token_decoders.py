"""Decoded chunks through shared memory, from processes and from this one."""

import shutil
from collections import deque

import numpy as np
import processes
import pytest
import torch
from token_images import png

from gsqtok.data import decode_image, open_source
from gsqtok.tokens import decoders
from gsqtok.tokens.chunk import Decode, Task
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.decoders import Decoders
from gsqtok.tokens.encode import Encode

SIZES = [(8, 8), (8, 12), (300, 8), (8, 9), (8, 500), (20, 8), (8, 8)] * 4  # some chunks are larger than planned


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "in").mkdir()
    for number, size in enumerate(SIZES):
        (tmp_path / f"in/{number:02d}.png").write_bytes(png(number, size))
    source = open_source(tmp_path / "in")
    return source, [Task(0, index, span) for index, span in enumerate(source.spans(1))]


@pytest.mark.parametrize(("workers", "held"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_pixels_are_left_alone_until_they_are_released(tasks, workers, held):
    processes.serve()
    decoded = Decoders(*tasks, Decode(Crops(8, "none"), 4), workers, torch.device("cpu"), held)
    assert len(decoded.memory) < len(SIZES)
    assert any(decoded.memory.shape[1] < 3 * width * height for width, height in SIZES)
    waiting, found = deque(), []
    for chunk in decoded:
        waiting.append(chunk)
        while len(waiting) > held:
            found.append((waiting.popleft().crops()[0][0].clone(), decoded.release())[0])
    found += [chunk.crops()[0][0].clone() for chunk in waiting]
    assert len(found) == len(SIZES)
    for number, (pixels, (width, height)) in enumerate(zip(found, SIZES, strict=True)):
        image = np.asarray(decode_image(png(number, (width, height))))
        assert np.array_equal(pixels[:height, :width], image), number


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_pinned_while_a_gpu_reads_it(tasks):
    decoded = Decoders(*tasks, Decode(Crops(8), 4), 2, torch.device("cuda"), 0)
    for number, chunk in enumerate(decoded):
        assert chunk.pixels.is_pinned()
        on_gpu = chunk.pixels.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(
            on_gpu.cpu(), Decode(Crops(8), 4)(tasks[1][number], tasks[0].reader(tasks[1][number].span)).pixels
        )
        decoded.release()
    assert not decoded.memory.is_pinned()


def test_too_little_shared_memory_is_told(tasks, monkeypatch, tmp_path):
    monkeypatch.setattr(decoders, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(decoders.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64, 60, 4))
    with pytest.raises(OSError, match=r"use fewer --workers than 2, or enlarge it \(docker run --shm-size"):
        Decoders(*tasks, Decode(Crops(8), 4), 2, torch.device("cpu"), 0)
    monkeypatch.setattr(decoders, "_SHARED_MEMORY", tmp_path / "none")  # a system without
    Decoders(*tasks, Decode(Crops(8), 4), 2, torch.device("cpu"), 0)


def test_an_encoder_that_fails_is_told(tasks, tiny_tokenizer):
    encode, decode = Encode(tiny_tokenizer, side=8), Decode(Crops(8), 4)
    source, (task, *_) = tasks
    before = encode(decode(task, source.reader(task.span)))
    assert before.tokens[0][1].dtype == np.uint8
    with torch.no_grad():
        tiny_tokenizer.encoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode(decode(task, source.reader(task.span)))
