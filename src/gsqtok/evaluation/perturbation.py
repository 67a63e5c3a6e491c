"""Tokens with errors in them, as a generator makes: what the perturbed FID (pFID) decodes.

Qiu et al. 2025, Robust Latent Matters, arXiv 2503.08354: of each image a share of the tokens is replaced by one of the
codewords nearest to its own, which counts among them; the FID is then that of the images that these tokens make. The
authors' code (lxa9867/ImageFolder, latent_perturbation.py) takes the codewords nearest to the latent instead, which
are the same but for their order. The share and the number of codewords go into the metric's name.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.quantizers import Quantizer
from gsqtok.quantizers.base import GroupedQuantizer
from gsqtok.search import nearest
from gsqtok.tokenizer import ImageTokenizer

MAX_LISTED = 2**20
"""The largest codebook that is listed where the quantizer stores none (FSQ, LFQ, BSQ)."""


@dataclass(frozen=True)
class Perturbation:
    """How many tokens are replaced, and by what.

    Args:
        share: probability of each token to be drawn anew, in (0, 1].
        nearest: codewords among which is drawn, the token's own included, at least 2.
        seed: of the draws, which also depend on the image's name; no batch size changes them.
    """

    share: float
    nearest: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.nearest < 2:
            raise ValueError(
                f"pfid must be SHARE@NEAREST with a share in (0, 1] and 2 codewords or more, got {self.share:g}@"
                f"{self.nearest}"
            )

    @classmethod
    def parse(cls, text: str) -> Perturbation:
        """``"0.5@100"``: half of the tokens, drawn among the 100 nearest codewords.

        Raises:
            ValueError: another form, or values out of range.
        """
        found = re.fullmatch(r"([0-9.]+)@([0-9]+)", text)
        if found is None:
            raise ValueError(f"pfid must be SHARE@NEAREST, such as 0.5@100, got {text!r}")
        return cls(float(found[1]), int(found[2]))

    @property
    def suffix(self) -> str:
        """What the metric's name ends with."""
        return f"{self.share:g}@{self.nearest}"

    def apply(self, tokens: Tensor, codebook: Tensor, keys: list[str]) -> Tensor:
        """Replace tokens.

        Args:
            tokens: (B, h, w, G) int64.
            codebook: (V, d), by the Euclidean distance of whose rows codewords are near.
            keys: names of the images.
        """
        used, places = tokens.unique(return_inverse=True)
        near = nearest(codebook[used], codebook, metric="euclidean", k=self.nearest)
        draws = [self._draws(key, tokens[0].shape) for key in keys]
        replaced, choices = (torch.stack(each).to(tokens.device) for each in zip(*draws, strict=True))
        return torch.where(replaced, near[places, choices], tokens)

    def _draws(self, key: str, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Which tokens of an image are replaced, and by which of the nearest codewords."""
        digest = hashlib.sha256(f"{self.seed} {key}".encode("utf-8", "surrogateescape")).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        replaced = torch.rand(shape, generator=generator) < self.share
        return replaced, torch.randint(self.nearest, shape, generator=generator)


class Perturbed:
    """Images of perturbed tokens: (B, h, w, G), names and the images' size -> (B, 3, H, W).

    Args:
        tokenizer: decodes them.
        perturbation: how they are changed.
        precision: decode under autocast of this type.
        tile: as ``ImageTokenizer.decode`` takes it.

    Attributes:
        suffix: see `Perturbation`.

    Raises:
        ValueError: the quantizer has no codebook that can be listed, or a smaller one.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        perturbation: Perturbation,
        *,
        precision: torch.dtype | None = None,
        tile: int | None = None,
    ) -> None:
        self.tokenizer, self.perturbation = tokenizer, perturbation
        self.precision, self.tile = precision, tile
        self.suffix = perturbation.suffix
        self.codebook = codewords(tokenizer.quantizer)
        if perturbation.nearest > len(self.codebook):
            raise ValueError(
                f"pfid draws among {perturbation.nearest} codewords, and the codebook has {len(self.codebook)}"
            )

    def __call__(self, tokens: Tensor, keys: list[str], size: tuple[int, int]) -> Tensor:
        """Decode a batch after its tokens were changed."""
        tokens = self.perturbation.apply(tokens, self.codebook.to(tokens.device), keys)
        with nullcontext() if self.precision is None else torch.autocast(self.tokenizer.device.type, self.precision):
            return self.tokenizer.decode(tokens, size=size, tile=self.tile)


@torch.no_grad()
def codewords(quantizer: Quantizer) -> Tensor:
    """The codebook (V, d) float32, of the values that a decoder gets.

    Raises:
        ValueError: a token has no value of its own, as in residual quantization, or there are more than MAX_LISTED.
    """
    stored = getattr(quantizer, "codebook", None)
    if quantizer.name == "multi_scale" and isinstance(stored, Tensor):  # whose positions are not those of the latent
        return stored.detach().float()
    groups, size = quantizer.tokens_per_position, quantizer.codebook_size
    if not isinstance(quantizer, GroupedQuantizer) or groups != quantizer.groups:
        raise ValueError(f"pfid needs a codeword for each token, which the quantizer '{quantizer.name}' does not have")
    if stored is None and size > MAX_LISTED:
        raise ValueError(f"pfid needs the codewords beside each other: {size:,} of them are more than {MAX_LISTED:,}")
    indices = torch.arange(size, device=getattr(stored, "device", None)).unsqueeze(1).expand(-1, groups)
    return quantizer.decode(indices)[:, : quantizer.group_dim]
