"""IBQ's tokenizers: Shi et al. 2024, https://arxiv.org/abs/2412.02692. Networks as taming's, another lookup."""

from __future__ import annotations

from typing import Any

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.taming import has_layout
from gsqtok.published.taming_net import Decoder, Encoder, shape_options, taming_names
from gsqtok.quantizers import IBQ
from gsqtok.tokenizer import Parts


def _matches(source: Source) -> bool:
    target = source.setting("class_path") or source.setting("target", "")
    return has_layout(source) and (not target or "ibq" in str(target).lower())


def _build(codebook_size: int, **networks: Any) -> Parts:
    quantizer = IBQ(networks["dim"], codebook_size=codebook_size)
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
