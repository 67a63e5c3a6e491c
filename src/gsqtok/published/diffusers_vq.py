"""VQModel of diffusers (Kandinsky's MoVQ among them), with that library's own networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import CheckpointError, Parts


class Decoder(nn.Module):
    """The decoder and the convolution before it; with norms of type "spatial" it sees the codewords, too."""

    def __init__(self, post_quant_conv: nn.Module, decoder: nn.Module, spatial: bool) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder, self.spatial = post_quant_conv, decoder, spatial

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, h*f, w*f)."""
        return self.decoder(self.post_quant_conv(quantized), quantized if self.spatial else None)


def _configure(source: Source) -> dict[str, Any]:
    config = {name: value for name, value in source.config.items() if not name.startswith("_")}
    source.check_blocks(config.get("layers_per_block", 1), config.get("block_out_channels", (64,)))
    return config


def _build(**config: Any) -> Parts:
    try:
        from diffusers import VQModel
    except ImportError as error:
        raise CheckpointError("a VQModel of diffusers needs that library: pip install 'gsqtok[published]'") from error
    model = VQModel.from_config(config)
    size, dim = model.quantize.embedding.weight.shape
    decoder = Decoder(model.post_quant_conv, model.decoder, model.config.norm_type == "spatial")
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    return Parts(nn.Sequential(model.encoder, model.quant_conv), VQ(dim, codebook_size=size), decoder, factor)


def _names(name: str) -> Sequence[str]:
    if name == "quantizer.codebook":
        return ["quantize.embedding.weight"]
    for here, there in (("encoder.0.", "encoder."), ("encoder.1.", "quant_conv.")):
        if name.startswith(here):
            return [there + name.removeprefix(here)]
    return [name.removeprefix("decoder.")]


register(
    Family(
        name="diffusers",
        title="a VQModel of diffusers",
        matches=lambda source: source.config.get("_class_name") == "VQModel",
        configure=_configure,
        names=lambda options: _names,
        build=_build,
    )
)
