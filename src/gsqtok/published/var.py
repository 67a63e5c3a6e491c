"""VAR's multi-scale tokenizer: Tian et al. 2024, https://arxiv.org/abs/2404.02905, section 3.2.

An image of one size becomes the tokens of ever finer grids, one grid after the other; each adds to what those before it
make. Networks as taming's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.options import Count
from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.taming_net import Decoder, Encoder, shape_options, taming_name
from gsqtok.quantizers.base import Quantizer, QuantizerOutput, exact_arithmetic, straight_through
from gsqtok.quantizers.codebook import CodebookSize, nearest_codewords, take_codewords
from gsqtok.tokenizer import CheckpointError, Parts

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of the published one, which hold for 256 px


@dataclass(eq=False, repr=False, kw_only=True)
class MultiScale(Quantizer):
    """Residual quantization of a square latent at ever finer resolutions, with one codebook.

    Args:
        dim: channels D of the latent.
        codebook_size: number of codewords V.
        scales: positions a side of each grid; the last is that of the latent.
        convolutions: smoothing convolutions that the scales share.

    Latents are (B, S, S, D) and indices (B, 1, N, 1): all grids in order, each row by row.
    """

    name = "multi_scale"

    codebook_size: CodebookSize
    scales: tuple[Count, ...]
    convolutions: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens_per_position = 1
        self.codebook = nn.Parameter(torch.empty(self.codebook_size, self.dim))
        self.phi = nn.ModuleList(nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in range(self.convolutions))

    def quantize_checked(self, latent: Tensor, check: bool) -> QuantizerOutput:
        """See ``Quantizer.quantize_checked``; a latent that is not finite makes a whole image's indices -1."""
        finite = latent.isfinite().flatten(1).all(1)
        if check and not self.training and not finite.all():
            raise ValueError("the latent holds NaN or infinity")
        with exact_arithmetic(latent.device):
            out = self.quantize(torch.where(finite[:, None, None, None], latent.float(), 0))
        out.indices = torch.where(finite[:, None, None, None], out.indices, -1)
        return out

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.quantize``: each scale takes the codewords nearest to what is still missing."""
        rest = latent.detach().movedim(-1, 1)
        whole, indices = torch.zeros_like(rest), []
        for scale, phi in self._steps():
            grid = rest if scale == self.scales[-1] else F.interpolate(rest, (scale, scale), mode="area")
            indices.append(nearest_codewords(grid.movedim(1, -1), self.codebook, "euclidean"))
            added = self._added(indices[-1], phi)
            whole, rest = whole + added, rest - added
        quantized = straight_through(latent, whole.movedim(1, -1))
        tokens = torch.cat([grid.flatten(1) for grid in indices], 1)[:, None, :, None]
        return QuantizerOutput(quantized, tokens, latent.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.lookup``."""
        grids = indices.flatten(1).split([scale**2 for scale in self.scales], 1)
        whole = self.codebook.new_zeros(())
        for (scale, phi), grid in zip(self._steps(), grids, strict=True):
            whole = whole + self._added(grid.unflatten(1, (scale, scale)), phi)
        return whole.movedim(1, -1)

    def _added(self, indices: Tensor, phi: nn.Module) -> Tensor:
        """What the codewords of one scale, (B, s, s), add to the latent: (B, D, S, S)."""
        codewords = take_codewords(self.codebook, indices).movedim(-1, 1)
        if indices.shape[-1] != self.scales[-1]:
            side = (self.scales[-1], self.scales[-1])
            codewords = F.interpolate(codewords, side, mode="bicubic", align_corners=False)
        return 0.5 * codewords + 0.5 * phi(codewords)

    def _steps(self) -> Iterator[tuple[int, nn.Module]]:
        """Every scale and its convolution: the one whose share of the way lies nearest.

        Two of the published scales lie in the middle between two shares, so that the rounding of this formula decides:
        it must stay as it is.
        """
        count = self.convolutions
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        shares = np.linspace(margin, 1 - margin, count)
        for number, scale in enumerate(self.scales):
            yield scale, self.phi[int(np.argmin(np.abs(shares - number / max(1, len(self.scales) - 1))))]


def _configure(source: Source, *, scales: Sequence[int] | None = None) -> dict[str, Any]:
    statistics = source.weights.get("quantize.ema_vocab_hit_SV")  # of each scale, which tells how many there are
    count = len(SCALES) if statistics is None else len(statistics)
    if scales is None and count != len(SCALES):
        raise CheckpointError(
            f"{source.path}: its weights do not say the sides of its {count} grids (v_patch_nums): add them, as in "
            "?scales=1,2,3,4,6,8"
        )
    scales = SCALES if scales is None else scales
    if len(scales) != count:
        raise CheckpointError(f"{source.path}: it has {count} grids, scales names {len(scales)}")
    convolutions = source.count("quantize.quant_resi.qresi_ls.{}.weight")
    return shape_options(source) | {"scales": list(scales), "convolutions": convolutions}


def _names(name: str) -> Sequence[str]:
    return [taming_name(name.replace("quantizer.phi.", "quantize.quant_resi.qresi_ls."))]


def _build(codebook_size: int, scales: Sequence[int], convolutions: int, **networks: Any) -> Parts:
    quantizer = MultiScale(
        networks["dim"], codebook_size=codebook_size, scales=tuple(scales), convolutions=convolutions
    )
    size = scales[-1] * 2 ** (len(networks["widths"]) - 1)
    length = sum(scale**2 for scale in scales)
    return Parts(Encoder(**networks), quantizer, Decoder(**networks), factor=None, size=size, length=length)


register(
    Family(
        name="var",
        title="VAR's multi-scale VQVAE",
        matches=lambda source: "quantize.quant_resi.qresi_ls.0.weight" in source.weights,
        configure=_configure,
        names=lambda options: _names,
        build=_build,
        ignored=r"quantize\.ema_vocab_hit_SV",
    )
)
