"""Files of the official formats, with what the official code makes of them, that lie beside the repository."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[3] / "shared" / "fixtures" / "peers"
needs_fixtures = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no checkpoints of other projects beside the repository"
)


@dataclass
class Fixture:
    """One checkpoint.

    Attributes:
        family: its name here.
        file: below FOLDER, with the options that no file tells.
        tokens: the name under which the official tokens lie in expected.pt.
    """

    family: str
    file: str
    tokens: str = "tokens"

    def __post_init__(self):
        self.path = FOLDER / self.file.partition("?")[0]
        self.name = str(FOLDER / self.file)
        self.folder = FOLDER / self.file.partition("/")[0]

    def load(self):
        """Images in [-1, 1], official tokens, and official images before clamping, in [-1, 1], too."""
        expected = torch.load(self.folder / "expected.pt", weights_only=True)
        images, restored = expected["x"], expected.get("recon_unclamped", expected["recon"])
        if expected["input_range"] == [0, 1]:
            images, restored = 2 * images - 1, 2 * restored - 1
        return images, expected[self.tokens], restored


FIXTURES = [
    Fixture("taming", "taming_vqgan/checkpoints/last.ckpt"),
    Fixture("llamagen", "llamagen_vq/vq_ds16_c2i.pt"),
    Fixture("ibq", "ibq/imagenet256_64.ckpt"),
    Fixture("open_magvit2", "open_magvit2/imagenet_256_S.ckpt"),
    Fixture("wetok", "wetok/GeneralDomain_compratio24.ckpt"),
    Fixture("bitdance", "bitdance/ae_d2c16.safetensors"),
    Fixture("bitdance", "bitdance/ae_d2c16.pt"),
    Fixture("maskgit", "maskgit_vqgan/maskgit-vqgan-imagenet-f16-256.bin"),
    Fixture("maskbit", "maskbit/maskbit_tokenizer_10bit.bin"),
    Fixture("titok", "titok/tokenizer_titok.bin"),
    Fixture("titok", "titok/hub"),
    Fixture("bsq_vit", "bsq_vit/checkpoint.pt", tokens="tokens_exact_bits"),
    Fixture("var", "var_vqvae/vae_ch160v4096z32.pth?scales=1,2,3,4,6,8"),
    Fixture("diffusers", "diffusers_vqmodel/vqvae"),
    Fixture("emu3", "emu3_vqvae/vqvae?mean=0.5&std=0.5"),
]
