"""Decoded chunks through shared memory, from processes and from this one."""

import shutil
from collections import deque

import numpy as np
import processes
import pytest
import torch
from token_images import png

from gsqtok.data import decode_image
from gsqtok.tokens import decoders
from gsqtok.tokens.chunks import Decode, Task
from gsqtok.tokens.decoders import Decoders
from gsqtok.tokens.encode import Encode
from gsqtok.tokens.sources import open_images
from gsqtok.tokens.views import Views

SIZES = [(8, 8), (8, 12), (300, 8), (8, 9), (8, 500), (20, 8), (8, 8)] * 4  # some chunks are larger than planned


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "in").mkdir()
    for number, size in enumerate(SIZES):
        (tmp_path / f"in/{number:02d}.png").write_bytes(png(number, size))
    source = open_images(tmp_path / "in")
    return [Task(0, index, source.chunk(span)) for index, (span, _) in enumerate(source.spans(1))]


@pytest.mark.parametrize(("workers", "held"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_pixels_are_left_alone_until_they_are_released(tasks, workers, held):
    processes.serve()
    source = Decoders(tasks, Decode(Views(8, "none"), 4), workers, torch.device("cpu"), held)
    assert len(source.memory) < len(tasks)
    assert any(source.memory.shape[1] < 3 * width * height for width, height in SIZES)
    waiting, found = deque(), []
    for chunk in source:
        waiting.append(chunk)
        while len(waiting) > held:
            found.append((waiting.popleft().views()[0][0].clone(), source.release())[0])
    found += [chunk.views()[0][0].clone() for chunk in waiting]
    assert len(found) == len(SIZES)
    for number, (pixels, (width, height)) in enumerate(zip(found, SIZES, strict=True)):
        image = np.asarray(decode_image(png(number, (width, height))))
        assert np.array_equal(pixels[:height, :width], image), number


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_pinned_while_a_gpu_reads_it(tasks):
    source = Decoders(tasks, Decode(Views(8), 4), 2, torch.device("cuda"), 0)
    for number, chunk in enumerate(source):
        assert chunk.pixels.is_pinned()
        on_gpu = chunk.pixels.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(on_gpu.cpu(), Decode(Views(8), 4)(tasks[number]).pixels)
        source.release()
    assert not source.memory.is_pinned()


def test_too_little_shared_memory_is_told(tasks, monkeypatch, tmp_path):
    monkeypatch.setattr(decoders, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(decoders.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64, 60, 4))
    with pytest.raises(OSError, match=r"use fewer --workers than 2, or enlarge it \(docker run --shm-size"):
        Decoders(tasks, Decode(Views(8), 4), 2, torch.device("cpu"), 0)
    monkeypatch.setattr(decoders, "_SHARED_MEMORY", tmp_path / "none")  # a system without
    Decoders(tasks, Decode(Views(8), 4), 2, torch.device("cpu"), 0)


def test_an_encoder_that_fails_is_told(tasks, tiny_tokenizer):
    encode, decode = Encode(tiny_tokenizer, side=8), Decode(Views(8), 4)
    before = encode(decode(tasks[0]))
    assert before.tokens[0][1].dtype == np.uint8
    with torch.no_grad():
        tiny_tokenizer.encoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode(decode(tasks[0]))
