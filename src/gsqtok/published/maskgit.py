"""MaskGIT's VQGAN in PyTorch (arXiv 2202.04200; the weights are in TiTok's repository), and MaskBit's tokenizers.

MaskBit (Weber et al. 2024, https://arxiv.org/abs/2409.16211) has the same networks, but for strided convolutions in
place of pooling, and takes signs for tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from gsqtok.published.maskgit_net import Decoder, Encoder
from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.quantizers import Quantizer
from gsqtok.quantizers.lfq import LFQ
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import CheckpointError, Parts

CODEBOOK = "quantize.embedding.weight"


def _maskgit(source: Source) -> dict[str, Any]:
    return _configure(source, "block", "mid.{}")


def _maskbit(source: Source) -> dict[str, Any]:
    if CODEBOOK in source.weights:
        raise CheckpointError(f"{source.path}: MaskBit's VQGAN+ with a codebook ({CODEBOOK}) is not supported")
    # Its older decoders count levels from the finest; the level without up-sampling is the finest.
    legacy = "decoder.up.0.upsample_conv.weight" not in source.weights
    return _configure(source, "res_blocks", "mid.res_blocks.{}") | {"legacy": legacy}


def _configure(source: Source, block: str, middle: str) -> dict[str, Any]:
    levels = source.count(f"encoder.down.{{}}.{block}.0.norm1.weight")
    return {
        "channels": source.shape("encoder.conv_in.weight")[0],
        "widths": [source.shape(f"encoder.down.{i}.{block}.0.conv1.weight")[0] for i in range(levels)],
        "blocks": source.count(f"encoder.down.0.{block}.{{}}.norm1.weight"),
        "middle": source.count(f"encoder.{middle}.norm1.weight"),
        "dim": source.shape("encoder.conv_out.weight")[0],
        "codebook_size": source.shape(CODEBOOK)[0] if CODEBOOK in source.weights else None,
    }


def maskgit_names(name: str) -> Sequence[str]:
    """The name in a file of MaskGIT's VQGAN."""
    name = re.sub(r"^quantizer\.codebook$", CODEBOOK, name)
    return [name.replace(".resample.conv.", ".upsample_conv.")]


def _maskbit_names(options: dict[str, Any]) -> Callable[[str], Sequence[str]]:
    last = len(options["widths"]) - 1

    def in_file(name: str) -> Sequence[str]:
        name = name.replace(".block.", ".res_blocks.").replace(".mid.", ".mid.res_blocks.")
        if name.startswith("encoder."):
            name = name.replace(".resample.conv.", ".down_conv.")
        elif not options["legacy"]:
            name = re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", name)
        return maskgit_names(name)

    return in_file


def _build(
    channels: int,
    widths: Sequence[int],
    blocks: int,
    middle: int,
    dim: int,
    codebook_size: int | None,
    legacy: bool | None = None,
) -> Parts:
    quantizer: Quantizer = LFQ(dim) if codebook_size is None else VQ(dim, codebook_size=codebook_size)
    encoder = Encoder(channels, widths, blocks, middle, dim, strided=legacy is not None)
    return Parts(encoder, quantizer, Decoder(widths, blocks, middle, dim), factor=2 ** (len(widths) - 1))


def _has(*names: str) -> Callable[[Source], bool]:
    return lambda source: set(names) <= source.weights.keys()


register(
    Family(
        name="maskgit",
        title="MaskGIT's VQGAN",
        matches=_has("encoder.down.0.block.0.norm1.weight", "encoder.mid.0.norm1.weight"),
        configure=_maskgit,
        names=lambda options: maskgit_names,
        build=_build,
    )
)
register(
    Family(
        name="maskbit",
        title="MaskBit's tokenizer",
        matches=_has("encoder.down.0.res_blocks.0.norm1.weight", "encoder.mid.res_blocks.0.norm1.weight"),
        configure=_maskbit,
        names=_maskbit_names,
        build=_build,
        ignored=r"quantize\.(codebook|bits_to_indices)",
    )
)
