"""A published tokenizer: the networks of another project behind the calls of ``ImageTokenizer``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gsqtok.published.registry import get_family
from gsqtok.tokenizer import ImageTokenizer


@dataclass(frozen=True)
class PublishedConfig:
    """What a published tokenizer is made of: the name of its family, and what that builds its networks from."""

    family: str
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"family": self.family, "options": self.options}

    def summary(self) -> str:
        """The networks in a few words."""
        return get_family(self.family).title


class PublishedTokenizer(ImageTokenizer):
    """Encode and decode as the original does, whatever input range and layout of tokens that has.

    Images are (B, 3, H, W) in [-1, 1] and tokens (B, h, w, G), as for every tokenizer here. A sequence of N tokens,
    where a token stands for no place of the image, has h = 1, w = N, G = 1.
    """

    def __init__(self, config: PublishedConfig) -> None:
        nn.Module.__init__(self)  # not ImageTokenizer's, which builds other networks
        family = get_family(config.family)
        assert family.build is not None
        parts = family.build(**config.options)
        self.encoder, self.quantizer, self.decoder = parts.encoder, parts.quantizer, parts.decoder
        self.config = config
        self.size, self.length, self._factor = parts.size, parts.length, parts.factor
        self._replays = None
        self._precision = torch.float32

    @property
    def factor(self) -> int | None:
        """The down-sampling factor f; None where tokens are a sequence."""
        return self._factor

    @property
    def bits_per_pixel(self) -> float:
        """Bits per pixel."""
        if self._factor is not None:
            return self.quantizer.bits / self._factor**2
        return self.quantizer.bits * self.length / self.size**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the tokens of an image of so many pixels; (1, N) for a sequence.

        Raises:
            ValueError: the network takes squares of one size only, and this is another.
        """
        if self.size is not None and (height, width) != (self.size, self.size):
            raise ValueError(
                f"{self.config.family} takes images of {self.size} x {self.size} pixels, not {height} x {width}: crop "
                f"and resize them first (--size {self.size})"
            )
        return super().grid(height, width) if self.length is None else (1, self.length)

    def image_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width in pixels of the image that a grid of tokens makes.

        Raises:
            ValueError: tokens of another number than the network takes.
        """
        if self.size is None:
            return super().image_size(rows, columns)
        expected = self.grid(self.size, self.size)
        if (rows, columns) != expected:
            raise ValueError(f"{self.config.family} takes {expected} tokens, not {(rows, columns)}")
        return self.size, self.size

    def optimize(self, dtype: torch.dtype | None = None, cuda_graphs: bool = True) -> PublishedTokenizer:
        """Make ``encode`` and ``decode`` fast, in place, for inference only: channels innermost, and autocast.

        Args:
            dtype: of autocast; None chooses bfloat16 on CUDA and float32 elsewhere.
            cuda_graphs: taken for the sake of ``ImageTokenizer.optimize``; none are recorded.
        """
        self._precision = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
        return self.eval()

    def _run(self, network: nn.Module, x: Tensor, pixels: int, tile: int | None, progress: Any) -> Tensor:
        if tile is not None:
            raise ValueError(f"tiles are for this package's own networks, not for {self.config.family}: leave out tile")
        if self._precision == torch.float32:
            return super()._run(network, x, pixels, None, progress)
        with torch.autocast(x.device.type, self._precision):
            return super()._run(network, x, pixels, None, progress).float()
