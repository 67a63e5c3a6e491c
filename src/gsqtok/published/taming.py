"""taming-transformers' VQGAN (Esser et al. 2021, arXiv 2012.09841), and IBQ (Shi et al. 2024, arXiv 2412.02692).

IBQ's tokenizers have the same networks and another lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.taming_net import shape_options, taming_names, taming_parts
from gsqtok.quantizers import IBQ
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import Parts

_LAYERS = (
    "encoder.mid.block_1.norm1.weight",
    "decoder.up.0.block.0.norm1.weight",
    "quantize.embedding.weight",
    "quant_conv.weight",
)


def _target(source: Source) -> str | None:
    """The class that a file's configuration names; None where its layers or their names are not taming's."""
    if not set(_LAYERS) <= source.weights.keys() or any(n.startswith("quantize.quant_resi.") for n in source.weights):
        return None
    return str(source.setting("class_path", "") or source.setting("target", ""))


def _taming(source: Source) -> bool:
    target = _target(source)
    return target is not None and not source.has_average and (not target or target.startswith("taming"))


def _ibq(source: Source) -> bool:
    target = _target(source)
    return target is not None and (not target or "ibq" in target.lower())


def _builder(quantizer: type[VQ | IBQ]) -> Callable[..., Parts]:
    def build(codebook_size: int, **networks: Any) -> Parts:
        return taming_parts(quantizer(networks["dim"], codebook_size=codebook_size), networks)

    return build


for name, title, matches, quantizer in (
    ("taming", "taming-transformers' VQGAN", _taming, VQ),
    ("ibq", "IBQ", _ibq, IBQ),
):
    register(
        Family(
            name=name,
            title=title,
            matches=matches,
            configure=shape_options,
            names=lambda options: taming_names,
            build=_builder(quantizer),
        )
    )
