"""LlamaGen's VQ tokenizers, also those inside Janus: Sun et al. 2024, https://arxiv.org/abs/2406.06525.

The networks are taming's under other names. Latents and codewords are l2-normalised, also those that are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.taming_net import shape_options, taming_names, taming_parts
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import Parts


def _names(levels: int) -> Callable[[str], Sequence[str]]:
    """Names in a file; its decoder counts levels from the coarsest."""

    def in_file(name: str) -> str:
        name = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", name)
        name = re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.conv_blocks.{levels - 1 - int(m[1])}", name)
        name = re.sub(r"(conv_blocks\.[^.]+)\.block\.", r"\1.res.", name)
        for number, part in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f".mid.{part}.", f".mid.{number}.")
        return name

    return lambda name: [in_file(part) for part in taming_names(name)]


def _configure(source: Source) -> dict[str, Any]:
    return shape_options(source, _names(0))  # which looks at the encoder alone


def _build(codebook_size: int, **networks: Any) -> Parts:
    return taming_parts(VQ(networks["dim"], codebook_size=codebook_size, metric="cosine"), networks)


register(
    Family(
        name="llamagen",
        title="LlamaGen's VQ tokenizer",
        matches=lambda source: "encoder.conv_blocks.0.res.0.norm1.weight" in source.weights,
        configure=_configure,
        names=lambda options: _names(len(options["widths"])),
        build=_build,
        ignored=r"quantize\.codebook_used",
    )
)
