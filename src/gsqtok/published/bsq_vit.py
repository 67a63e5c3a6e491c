"""BSQ-ViT: Zhao et al. 2024, https://arxiv.org/abs/2406.07548."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.vit import transformer
from gsqtok.quantizers.bsq import BSQ
from gsqtok.tokenizer import CheckpointError, Parts


class Encoder(nn.Module):
    """Images to latents, the channel of an index's lowest bit first.

    Args:
        width: channels of the transformer.
        layers: its blocks.
        hidden: channels within each block's perceptron.
        heads: of attention.
        side: patches a side.
        patch: pixels a side of a patch.
        dim: channels D of the latent, one bit each.
        unit: whether images are in [0, 1] there.
    """

    def __init__(
        self, width: int, layers: int, hidden: int, heads: int, side: int, patch: int, dim: int, unit: bool
    ) -> None:
        super().__init__()
        self.patch, self.side, self.unit = patch, side, unit
        self.conv1 = nn.Linear(3 * patch**2, width, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(side**2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = transformer(width, layers, heads, hidden)
        self.ln_post = nn.LayerNorm(width)
        self.quant_embed = nn.Linear(width, dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, D, h, w)."""
        images = (images + 1) / 2 if self.unit else images
        patches = images.unflatten(3, (self.side, self.patch)).unflatten(2, (self.side, self.patch))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, h * w, colour * row * column)
        x = self.ln_pre(self.conv1(patches) + self.positional_embedding)
        latent = self.quant_embed(self.ln_post(self.transformer(x)))
        # The original's first channel is the highest bit, here it is the lowest.
        return latent.flip(2).transpose(1, 2).unflatten(2, (self.side, self.side))


class Decoder(nn.Module):
    """Quantized latents to images; arguments as for the encoder, and ``ffn``, channels before the last layer."""

    def __init__(
        self, width: int, layers: int, hidden: int, heads: int, side: int, patch: int, dim: int, unit: bool, ffn: int
    ) -> None:
        super().__init__()
        self.patch, self.side, self.unit = patch, side, unit
        self.post_quant_embed = nn.Linear(dim, width)
        self.positional_embedding = nn.Parameter(torch.empty(side**2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = transformer(width, layers, heads, hidden)
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn), nn.Tanh())
        self.conv_out = nn.Linear(ffn, 3 * patch**2)

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, S, S), about [-1, 1], not clamped."""
        x = self.post_quant_embed(quantized.flip(1).flatten(2).transpose(1, 2))
        x = self.ln_post(self.transformer(self.ln_pre(x + self.positional_embedding)))
        x = self.conv_out(self.ffn(x)).unflatten(2, (3, self.patch, self.patch)).unflatten(1, (self.side, self.side))
        x = x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return 2 * x - 1 if self.unit else x


def _configure(source: Source, *, heads: int | None = None, zero_mean: bool | None = None) -> dict[str, Any]:
    asked: dict[str, Any] = {"heads": heads, "zero_mean": zero_mean}
    for name, value in asked.items():
        asked[name] = source.setting(name) if value is None else value
        if asked[name] is None:
            raise CheckpointError(
                f"{source.path}: its weights do not say {name}: put its config.yaml beside it, or add "
                "?heads=NUMBER&zero_mean=true (false if it takes images in [0, 1])"
            )
    for name, expected in (("l2_norm", True), ("post_q_l2_norm", True), ("logit_laplace", False)):
        if source.setting(name, expected) is not expected:
            raise CheckpointError(f"{source.path}: {name} is {not expected} in its configuration: not supported")
    networks = []
    for part in ("encoder", "decoder"):
        layers = f"{part}.transformer.resblocks"
        hidden, width = source.shape(f"{layers}.0.mlp.c_fc.weight")
        networks.append({"width": width, "layers": source.count(layers + ".{}.ln_1.weight"), "hidden": hidden})
    places = source.shape("encoder.positional_embedding")[0]
    return {
        "encoder": networks[0],
        "decoder": networks[1] | {"ffn": source.shape("decoder.conv_out.weight")[1]},
        "heads": int(asked["heads"]),
        "side": math.isqrt(places),
        "patch": math.isqrt(source.shape("encoder.conv1.weight")[1] // 3),
        "dim": source.shape("quant_embed.weight")[0],
        "unit": not asked["zero_mean"],
    }


def _names(name: str) -> Sequence[str]:
    name = re.sub(r"^(en|de)coder\.((post_)?quant_embed)", r"\2", name)
    return [name.replace(".transformer.", ".transformer.resblocks.")]


def _build(encoder: dict[str, Any], decoder: dict[str, Any], **shared: Any) -> Parts:
    size = shared["side"] * shared["patch"]
    dim = shared["dim"]
    return Parts(Encoder(**encoder, **shared), BSQ(dim), Decoder(**decoder, **shared), shared["patch"], size)


register(
    Family(
        name="bsq_vit",
        title="BSQ-ViT",
        matches=lambda source: {"quant_embed.weight", "encoder.conv1.weight"} <= source.weights.keys(),
        configure=_configure,
        names=lambda options: _names,
        build=_build,
        ignored=r"quantize\..*|loss\..*",
    )
)
