"""Emu3's tokenizer (arXiv 2409.18869), with the networks of transformers. An image is a clip of one latent frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.quantizers.vq import VQ
from gsqtok.tokenizer import CheckpointError, Parts


class Encoder(nn.Module):
    """The encoder and the convolution after it, on the same image a few times over.

    Args:
        encoder: of transformers, on clips (B, T, 3, H, W).
        quant_conv: likewise, on (B, C, T, h, w).
        frames: images of one latent frame.
        mean: of each colour, which images in [0, 1] are normalised by.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: nn.Module, quant_conv: nn.Module, frames: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.frames = encoder, quant_conv, frames
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D, h, w)."""
        images = ((images + 1) / 2 - self.mean) / self.std
        clip = self.encoder(images[:, None].repeat(1, self.frames, 1, 1, 1))
        return self.quant_conv(clip.transpose(1, 2)).squeeze(2)


class Decoder(nn.Module):
    """The convolution and the decoder, which makes a clip; its first frame is the image."""

    def __init__(
        self, post_quant_conv: nn.Module, decoder: nn.Module, frames: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder, self.frames = post_quant_conv, decoder, frames
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, h*f, w*f), about [-1, 1], not clamped."""
        latent = self.post_quant_conv(quantized.unsqueeze(2)).transpose(1, 2)
        images = self.decoder(latent, quantized.unsqueeze(1)).unflatten(0, (-1, self.frames))[:, 0]
        return 2 * (images * self.std + self.mean) - 1


def _configure(
    source: Source, *, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None
) -> dict[str, Any]:
    config = {name: value for name, value in source.config.items() if name != "architectures"}
    source.check_blocks(config.get("num_res_blocks", 2), config.get("channel_multiplier", (1, 2, 2, 4)))
    options: dict[str, Any] = {"config": config}
    for name, asked in (("mean", mean), ("std", std)):
        value: Any = source.preprocessing.get(f"image_{name}") if asked is None else asked
        if value is None:
            raise CheckpointError(
                f"{source.path}: nothing says how images are normalised: put its preprocessor_config.json beside it, "
                "or add ?mean=0.5&std=0.5 (for images in [-1, 1])"
            )
        options[name] = [float(each) for each in (value if isinstance(value, (list, tuple)) else [value] * 3)]
    return options


def _build(config: dict[str, Any], mean: Sequence[float], std: Sequence[float]) -> Parts:
    try:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig
    except ImportError as error:
        raise CheckpointError("Emu3's tokenizer needs transformers: pip install 'gsqtok[published]'") from error
    model = Emu3VQVAE(Emu3VQVAEConfig(**config))
    size, dim = model.quantize.embedding.weight.shape
    frames = model.config.temporal_downsample_factor
    return Parts(
        Encoder(model.encoder, model.quant_conv, frames, mean, std),
        VQ(dim, codebook_size=size),
        Decoder(model.post_quant_conv, model.decoder, frames, mean, std),
        factor=2 ** (len(model.config.channel_multiplier) - 1),
    )


def _names(name: str) -> Sequence[str]:
    if name == "quantizer.codebook":
        return ["quantize.embedding.weight"]
    return [name.removeprefix("encoder." if name.startswith("encoder.") else "decoder.")]


register(
    Family(
        name="emu3",
        title="Emu3's tokenizer",
        matches=lambda source: source.config.get("model_type") == "emu3_vqgan",
        configure=_configure,
        names=lambda options: _names,
        build=_build,
    )
)
