"""A tokenizer behind the calls of diffusers' ``VQModel``, for code that was written for that."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gsqtok.available import explained
from gsqtok.tokenizer import ImageTokenizer


class VQModel(nn.Module):
    """``encode``, ``decode``, ``forward`` and ``config`` as diffusers' ``VQModel`` has them.

    ``config`` holds what pipelines ask for, such as ``len(config.block_out_channels)``, from which they compute the
    factor f, and ``scaling_factor``, which is 1. Indices are decoded as in pipelines over tokens:
    ``decode(tokens, force_not_quantize=True, shape=(B, h, w, D))``, with G indices a position.

    Args:
        tokenizer: trained, with a grid of tokens and a power of 2 for f.

    Raises:
        ValueError: another tokenizer.
        ImportError: diffusers is not installed.
    """

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        with explained():
            from diffusers.configuration_utils import FrozenDict

        factor, quantizer = tokenizer.factor, tokenizer.quantizer
        if factor is None or factor & (factor - 1):
            raise ValueError(f"VQModel has grids of tokens and a factor of 2^n, not {tokenizer.config.summary()}")
        self.tokenizer = tokenizer
        self.config: Any = FrozenDict(
            in_channels=3,
            out_channels=3,
            block_out_channels=(getattr(tokenizer.config, "channels", 1),) * (int(math.log2(factor)) + 1),
            latent_channels=quantizer.dim,
            vq_embed_dim=quantizer.dim,
            num_vq_embeddings=quantizer.codebook_size,
            sample_size=tokenizer.size or 256,
            scaling_factor=1.0,
            norm_type="group",
            lookup_from_codebook=True,
            force_upcast=False,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights."""
        return next(self.tokenizer.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.device

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images (B, 3, H, W) in [-1, 1] to latents (B, D, h, w), not quantized yet; H and W multiples of f."""
        from diffusers.models.autoencoders.vq_model import VQEncoderOutput

        latents = self.tokenizer.encoder(x.to(self.dtype))
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> Any:
        """Latents, or with ``force_not_quantize`` also indices, to images.

        Args:
            h: latents (B, D, h, w); or integers, G for each position in any shape.
            force_not_quantize: take latents as they are.
            return_dict: a ``DecoderOutput``, or a tuple.
            shape: of indices, (B, h, w, D); None where they have the shape (B, h, w, G).

        Returns:
            ``sample``, the images (B, 3, H, W), not clamped, and ``commit_loss``, the quantizer's loss.
        """
        from diffusers.models.autoencoders.vae import DecoderOutput

        loss: Any = torch.zeros(len(h), device=h.device, dtype=self.dtype)
        if not h.is_floating_point():
            tokens = h if shape is None else h.reshape(*shape[:3], self.tokenizer.quantizer.tokens_per_position)
            h = self.tokenizer.quantizer.decode(tokens, channel_first=True)
        elif not force_not_quantize:
            h, _, loss = self.tokenizer.quantizer(h, check=False, channel_first=True)
        sample = self.tokenizer.decode_latent(h)
        return DecoderOutput(sample=sample, commit_loss=loss) if return_dict else (sample, loss)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        """Images through the tokenizer and back, as ``decode`` returns them."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)
