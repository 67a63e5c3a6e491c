"""TiTok: Yu et al. 2024, https://arxiv.org/abs/2406.07550. An image of one size becomes a sequence of a few tokens.

Its first tokenizers ("legacy") do not predict pixels but a mix of the codewords of MaskGIT's VQGAN, whose decoder makes
the image. Images are in [0, 1] there; here in [-1, 1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gsqtok.published import maskgit_net
from gsqtok.published.maskgit import maskgit_names
from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.published.vit import transformer
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import CheckpointError, Parts

HEAD = 64  # channels of a head, in every size


class Encoder(nn.Module):
    """Images to the latents that a few tokens of its own have gathered: (B, 3, S, S) -> (B, D, 1, N)."""

    def __init__(self, width: int, layers: int, patch: int, side: int, length: int, dim: int, legacy: bool) -> None:
        super().__init__()
        self.legacy = legacy
        self.latent_tokens = nn.Parameter(torch.empty(length, width))
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(length, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = transformer(width, layers, width // HEAD, 4 * width)
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, D, 1, N)."""
        patches = self.patch_embed((images + 1) / 2).flatten(2).transpose(1, 2)
        batch, length = len(images), len(self.latent_tokens)
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], 1) + self.positional_embedding
        latents = self.latent_tokens + self.latent_token_positional_embedding
        x = self.ln_pre(torch.cat([x, latents.expand(batch, -1, -1)], 1))
        latents = self.ln_post(self.transformer(x)[:, -length:])
        # The first ones take the memory of (N, C) for that of (C, N), and were trained so.
        grid = latents.reshape(batch, -1, length) if self.legacy else latents.transpose(1, 2)
        return self.conv_out(grid.unsqueeze(2))


class Decoder(nn.Module):
    """Quantized latents (B, D, 1, N) to images (B, 3, S, S), by mask tokens that attend to them.

    Args:
        pixels: arguments of MaskGIT's decoder, which then makes the image, and the size of its codebook; None predicts
            the pixels of each patch.
    """

    def __init__(
        self, width: int, layers: int, patch: int, side: int, length: int, dim: int, pixels: dict[str, Any] | None
    ) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(length, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = transformer(width, layers, width // HEAD, 4 * width)
        self.ln_post = nn.LayerNorm(width)
        if pixels is None:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch**2, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        else:
            codewords = pixels["codewords"]
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, codewords, 1))
            self.pixel_codebook = nn.Parameter(torch.empty(codewords, pixels["networks"]["dim"]))
            self.pixel_decoder = maskgit_net.Decoder(**pixels["networks"])

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, 1, N) -> (B, 3, S, S), about [-1, 1], not clamped."""
        latents = self.decoder_embed(quantized.squeeze(2).transpose(1, 2)) + self.latent_token_positional_embedding
        batch, places = len(quantized), self.side**2
        masks = self.mask_token.expand(batch, places, -1)
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), masks], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(torch.cat([x, latents], 1)))
        x = self.ln_post(x[:, 1 : places + 1]).transpose(1, 2).unflatten(2, (self.side, self.side))
        x = self.ffn(x)
        if hasattr(self, "pixel_decoder"):
            return self.pixel_decoder(torch.einsum("bkhw,kd->bdhw", x.softmax(1), self.pixel_codebook))
        # Channel (row * P + column) * 3 + colour of a place is that pixel of its patch.
        x = x.unflatten(1, (self.patch, self.patch, 3)).permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)
        return 2 * self.conv_out(x) - 1


def _configure(source: Source, *, l2_norm: bool | None = None) -> dict[str, Any]:
    l2_norm = source.setting("use_l2_norm") if l2_norm is None else l2_norm
    if l2_norm is None:
        raise CheckpointError(
            f"{source.path}: its weights do not say whether latents are normalised (use_l2_norm): put its config.yaml "
            "beside it, or add ?l2_norm=true or ?l2_norm=false"
        )
    size, dim = source.shape("quantize.embedding.weight")
    networks = []
    for part in ("encoder", "decoder"):
        places, width = source.shape(f"{part}.positional_embedding")
        layers = source.count(f"{part}.transformer.{{}}.ln_1.weight")
        networks.append({"width": width, "layers": layers, "side": math.isqrt(places - 1)})
    patch = source.shape("encoder.patch_embed.weight")[-1]
    return {
        "encoder": networks[0],
        "decoder": networks[1],
        "patch": patch,
        "length": source.shape("latent_tokens")[0],
        "dim": dim,
        "codebook_size": size,
        "l2_norm": bool(l2_norm),
        "pixels": _pixels(source),
    }


def _pixels(source: Source) -> dict[str, Any] | None:
    """Of the decoder that makes images of MaskGIT's codewords, if there is one."""
    if "decoder.ffn.2.weight" not in source.weights:
        return None
    if "pixel_quantize.embedding.weight" not in source.weights:
        raise CheckpointError(f"{source.path}: it lacks the pixel decoder (pixel_decoder.*): a file of its first stage")
    codewords, dim = source.shape("pixel_quantize.embedding.weight")
    levels = source.count("pixel_decoder.up.{}.block.0.norm1.weight")
    networks = {
        "widths": [source.shape(f"pixel_decoder.up.{i}.block.0.conv1.weight")[0] for i in range(levels)],
        "blocks": source.count("pixel_decoder.up.0.block.{}.norm1.weight"),
        "middle": source.count("pixel_decoder.mid.{}.norm1.weight"),
        "dim": dim,
    }
    return {"codewords": codewords, "networks": networks}


def _names(name: str) -> Sequence[str]:
    if name == "quantizer.codebook":
        return ["quantize.embedding.weight"]
    if name == "decoder.pixel_codebook":
        return ["pixel_quantize.embedding.weight"]
    if name.startswith("decoder.pixel_decoder."):
        return maskgit_names(name.removeprefix("decoder."))
    return [re.sub(r"^encoder\.latent_tokens$", "latent_tokens", name)]


def _build(
    encoder: dict[str, int],
    decoder: dict[str, int],
    patch: int,
    length: int,
    dim: int,
    codebook_size: int,
    l2_norm: bool,
    pixels: dict[str, Any] | None,
) -> Parts:
    shared = {"patch": patch, "length": length, "dim": dim}
    quantizer = VQ(dim, codebook_size=codebook_size, metric="cosine" if l2_norm else "euclidean")
    return Parts(
        Encoder(**encoder, **shared, legacy=pixels is not None),
        quantizer,
        Decoder(**decoder, **shared, pixels=pixels),
        factor=None,
        size=encoder["side"] * patch,
        length=length,
    )


register(
    Family(
        name="titok",
        title="TiTok",
        matches=lambda source: "latent_tokens" in source.weights,
        configure=_configure,
        names=lambda options: _names,
        build=_build,
    )
)
