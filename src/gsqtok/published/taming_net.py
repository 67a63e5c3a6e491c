"""The networks of taming-transformers (Esser et al. 2021, arXiv 2012.09841), which LlamaGen, IBQ and VAR share.

They are made of the blocks of `gsqtok.networks`. Three things differ from the paper's networks: down-sampling pads at
the right and the bottom alone, the decoder has one block more a level, and a convolution on either side of the
quantizer changes the number of channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.networks.blocks import Attention, GroupNorm, NearestUpsample, ResidualBlock
from gsqtok.published.source import Source
from gsqtok.quantizers import Quantizer
from gsqtok.tokenizer import Parts

EPS = 1e-6  # of every group norm
Names = Callable[[str], Sequence[str]]


class Downsample(nn.Module):
    """Halves height and width with a strided 3x3 convolution that sees no pixel above or to the left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if wanted, and the way to the next level."""

    def __init__(self, width: int, out: int, blocks: int, attention: bool, resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width if i == 0 else out, out, EPS) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out) if attention else nn.Identity() for _ in range(blocks))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, out, H', W')."""
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x))
        return self.resample(x)


class Encoder(nn.Module):
    """Images to latents.

    Args:
        channels: of the first convolution.
        widths: channels of each level, at full resolution first.
        blocks: residual blocks a level.
        attention: levels whose blocks are followed by attention.
        latent_channels: before ``quant_conv``.
        dim: channels D of the latent.
        kernel: of ``quant_conv``.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        latent_channels: int,
        dim: int,
        kernel: int,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = channels
        for level, out in enumerate(widths):
            resample = Downsample(out) if level < len(widths) - 1 else nn.Identity()
            self.down.append(Level(width, out, blocks, level in attention, resample))
            width = out
        self.mid = nn.Sequential(ResidualBlock(width, width, EPS), Attention(width), ResidualBlock(width, width, EPS))
        self.norm_out = GroupNorm(width, EPS, silu=True)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(latent_channels, dim, kernel, padding=kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D, H/f, W/f)."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Quantized latents to images; arguments as for the encoder, ``blocks`` too."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        latent_channels: int,
        dim: int,
        kernel: int,
    ) -> None:
        super().__init__()
        width = widths[-1]
        self.post_quant_conv = nn.Conv2d(dim, latent_channels, kernel, padding=kernel // 2)
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid = nn.Sequential(ResidualBlock(width, width, EPS), Attention(width), ResidualBlock(width, width, EPS))
        self.up = nn.ModuleList()  # at full resolution first, as in the files; they run from the last
        for level, out in enumerate(widths):
            resample = NearestUpsample(out) if level > 0 else nn.Identity()
            before = widths[level + 1] if level < len(widths) - 1 else width
            self.up.append(Level(before, out, blocks + 1, level in attention, resample))
        self.norm_out = GroupNorm(widths[0], EPS, silu=True)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, h*f, w*f), about [-1, 1], not clamped."""
        x = self.mid(self.conv_in(self.post_quant_conv(quantized)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))


def taming_parts(quantizer: Quantizer, networks: dict[str, Any]) -> Parts:
    """Both networks and a quantizer between them."""
    return Parts(Encoder(**networks), quantizer, Decoder(**networks), factor=2 ** (len(networks["widths"]) - 1))


_IN_FILES = (
    (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    (r"^encoder\.quant_conv", "quant_conv"),
    (r"^decoder\.post_quant_conv", "post_quant_conv"),
    (r"\.skip\.", ".nin_shortcut."),
    (r"\.proj\.", ".proj_out."),
    (r"^(encoder\.down\.\d+)\.resample\.", r"\1.downsample."),
    (r"^(decoder\.up\.\d+)\.resample\.", r"\1.upsample."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)


def taming_name(name: str) -> str:
    """The file's name of a weight."""
    for pattern, replacement in _IN_FILES:
        name = re.sub(pattern, replacement, name)
    return name


def taming_names(name: str) -> Sequence[str]:
    """The file's names of a weight: query, key and value are three convolutions there."""
    name = taming_name(name)
    return [name.replace(".qkv.", f".{part}.") for part in "qkv"] if ".qkv." in name else [name]


def shape_options(source: Source, names: Names = taming_names) -> dict[str, Any]:
    """What the shapes in a file say of the networks and the codebook: the arguments of both, and ``codebook_size``."""

    def shape(name: str) -> tuple[int, ...]:
        return source.shape(names(name)[0])

    def counted(pattern: str) -> int:
        return source.count(names(pattern.replace("#", "{}", 1))[0])

    levels = counted("encoder.down.#.block.0.norm1.weight")
    size, dim = shape("quantizer.codebook")
    _, latent_channels, kernel, _ = shape("encoder.quant_conv.weight")
    return {
        "channels": shape("encoder.conv_in.weight")[0],
        "widths": [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)],
        "blocks": counted("encoder.down.0.block.#.norm1.weight"),
        "attention": [i for i in range(levels) if names(f"encoder.down.{i}.attn.0.norm.weight")[0] in source.weights],
        "latent_channels": latent_channels,
        "dim": dim,
        "kernel": kernel,
        "codebook_size": size,
    }
