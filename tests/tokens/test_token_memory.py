"""Memory over a long run is flat: what was read, decoded or encoded is let go."""

import dataclasses
import os
import subprocess
import sys

import processes
import pytest

from gsqtok.tokenizer import ImageTokenizer

RUN = """
import resource, sys
from pathlib import Path
import torch
from token_images import png
from gsqtok import ImageTokenizer
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.run import RunOptions, tokenize

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

folder = Path(sys.argv[1])
tokenizer = ImageTokenizer.from_pretrained(folder / "model")
data = [png(number, (SIDE, SIDE)) for number in range(50)]
for name, count in (("few", 100), ("many", 500)):
    (folder / name).mkdir()
    for number in range(count):
        (folder / name / f"{number:04d}.png").write_bytes(data[number % 50])

images = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
for count in (10, 100):
    before = resident()
    for _ in range(count):
        tokenizer.encode(images)
encoding = resident() - before
for name in ("few", "many"):
    before = resident()
    tokenize(tokenizer, folder / name, folder / f"{name}-tokens", RunOptions(Crops(SIDE), shard_size=50, workers=0))
print(encoding, resident() - before)
"""
SIDE = 128


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read as Linux tells it")
def test_memory_does_not_grow_with_the_images(tiny_config, tmp_path):
    """Kept pixels would be 20 MB of tokenizing, 79 as floats, and 18 of encoding; a kept activation, far more."""
    few = {"multipliers": (1, 1, 1), "encoder_blocks": 0, "encoder_middle_blocks": 0}
    ImageTokenizer(dataclasses.replace(tiny_config, **few)).save_pretrained(tmp_path / "model")
    environment = os.environ | processes.ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([processes.SOURCE, *sys.path])}
    command = [sys.executable, "-c", f"SIDE = {SIDE}\n{RUN}", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    encoding, tokenizing = map(float, done.stdout.split()[-2:])
    assert encoding < 8, encoding
    assert tokenizing < 10, tokenizing
