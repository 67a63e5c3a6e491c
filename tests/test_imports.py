"""What importing a part of the package brings along, in a fresh process."""

import os
import subprocess
import sys

import processes
from PIL import Image

HEAVY = {"datasets", "huggingface_hub.hf_api", "matplotlib", "pandas", "scipy", "timm", "torchmetrics", "torchvision"}
PARTS = [
    "training",
    "generation.train",
    "tokens.run",
    "tokens.verify",
    "evaluation.reconstruct",
    "evaluation.codecs",
    "evaluation.usage",
]


# What one part brings along stays for the next, so that where all bring nothing, each does.
TOGETHER = """
import sys
for part in sys.argv[1:]:
    __import__(f"gsqtok.{part}")
    print(part, *sys.modules)
"""


def test_what_takes_seconds_is_imported_where_it_is_used():
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, *PARTS],
        env=processes.ENVIRONMENT | {"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {part: set(names) for part, *names in map(str.split, done.stdout.splitlines())}
    assert list(modules) == PARTS
    for part, imported in modules.items():
        assert f"gsqtok.{part}" in imported
        assert not HEAVY & imported, part


BARE = """
import sys
from gsqtok.available import EXTRAS
absent = {module for modules in EXTRAS.values() for module in modules}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, *more)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
import torch
import gsqtok
from gsqtok.cli import main
image, output = sys.argv[1:]
tokens = gsqtok.ImageTokenizer.from_pretrained().encode(gsqtok.load_image(image))
assert "torch._dynamo" not in sys.modules, "PyTorch's compiler takes seconds, and nothing is compiled"
gsqtok.build_quantizer("gsq", dim=8, groups=2, codebook_dim=4)(torch.randn(3, 8)).loss.backward()
for words in (["reconstruct", image, "-o", f"{output}/a", "--side-by-side"], ["tokenize", image, "-o", f"{output}/b"],
              ["recipes", "ls"], ["train", "--help"], ["completion", "bash"]):
    if main(words):
        sys.exit(f"gsqtok {words[0]} failed")
"""


def test_a_bare_install_is_enough_for_the_quantizers_the_tokenizer_and_the_commands_that_use_them(tmp_path):
    """Every package of an extra is taken away, in a fresh process."""
    Image.new("RGB", (16, 24), "red").save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path / "a.png"), str(tmp_path / "out")],
        env=os.environ | processes.ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
