"""taming-transformers' VQGAN: Esser et al. 2021, https://arxiv.org/abs/2012.09841."""

from __future__ import annotations

from typing import Any

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.taming_net import Decoder, Encoder, shape_options, taming_names
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import Parts


def has_layout(source: Source) -> bool:
    """Whether a file has the layers of taming's networks, under taming's names."""
    layers = ("encoder.mid.block_1.norm1.weight", "decoder.up.0.block.0.norm1.weight", "quantize.embedding.weight")
    return {*layers, "quant_conv.weight"} <= source.weights.keys() and not any(
        name.startswith("quantize.quant_resi.") for name in source.weights
    )


def _matches(source: Source) -> bool:
    target = source.setting("target", "") or source.setting("class_path", "")
    return has_layout(source) and not source.has_average and (not target or str(target).startswith("taming"))


def _build(codebook_size: int, **networks: Any) -> Parts:
    quantizer = VQ(networks["dim"], codebook_size=codebook_size)
    return Parts(Encoder(**networks), quantizer, Decoder(**networks), factor=2 ** (len(networks["widths"]) - 1))


register(
    Family(
        name="taming",
        title="taming-transformers' VQGAN",
        matches=_matches,
        configure=shape_options,
        names=lambda options: taming_names,
        build=_build,
    )
)
