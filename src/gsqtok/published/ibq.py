"""IBQ's tokenizers: Shi et al. 2024, https://arxiv.org/abs/2412.02692. Networks as taming's, another lookup."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.taming import has_layout
from gsqtok.published.taming_net import Decoder, Encoder, shape_options, taming_names
from gsqtok.quantizers.codebook import nearest_codewords
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import Parts


class InnerProduct(VQ):
    """The codeword of the largest inner product with the latent, neither being normalised.

    One more coordinate gives all codewords the length of the longest one; the latents' is 0, which leaves products as
    they are. The largest product is then the one of the smallest angle, which the exact search finds.
    """

    name = "ibq"

    def _search(self, latent: Tensor) -> Tensor:
        codebook = self.codebook.double()
        squares = codebook.square().sum(1, keepdim=True)
        codebook = torch.cat([codebook, (squares.max() - squares).sqrt()], 1)
        return nearest_codewords(F.pad(latent.double(), (0, 1)), codebook, "cosine")


def _matches(source: Source) -> bool:
    target = source.setting("class_path") or source.setting("target", "")
    return has_layout(source) and (not target or "ibq" in str(target).lower())


def _build(codebook_size: int, **networks: Any) -> Parts:
    quantizer = InnerProduct(networks["dim"], codebook_size=codebook_size)
    return Parts(Encoder(**networks), quantizer, Decoder(**networks), factor=2 ** (len(networks["widths"]) - 1))


register(
    Family(
        name="ibq",
        title="IBQ",
        matches=_matches,
        configure=shape_options,
        names=lambda options: taming_names,
        build=_build,
    )
)
