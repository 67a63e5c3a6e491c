"""No quantization: the ceiling that a study compares to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.quantizers.base import Quantizer, QuantizerOutput
from gsqtok.quantizers.registry import register_quantizer


@register_quantizer("identity")
@dataclass(eq=False, repr=False, kw_only=True)
class Identity(Quantizer):
    """Hands the latent on as it is, in float32.

    Its tokens are the 32 bits of each channel's float32, so that it keeps the contract of all quantizers: 32 D bits per
    position, and ``decode`` gives the latent back.

    Args:
        dim: channels D of the latent; each position gets D tokens.
        codebook_dim: as in ``Quantizer``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens_per_position = self.inner_dim
        self.codebook_size = 2**32

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        indices = latent.detach().contiguous().view(torch.int32).long() & (2**32 - 1)
        return QuantizerOutput(latent, indices, latent.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        signed = torch.where(indices < 2**31, indices, indices - 2**32)
        return signed.to(torch.int32).view(torch.float32)
