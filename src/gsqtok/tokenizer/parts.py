"""What a tokenizer is put together from, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gsqtok.quantizers import Quantizer


@dataclass
class Parts:
    """The modules of a tokenizer, and how its tokens lie.

    Attributes:
        encoder: a module, images (B, 3, H, W) in [-1, 1] -> latent (B, D, h, w), whatever range the original takes.
        quantizer: on (..., D).
        decoder: a module, quantized latent (B, D, h, w) -> images (B, 3, H, W), about [-1, 1].
        factor: pixels a side that a token stands for; None where tokens are a sequence.
        size: pixels a side of the square that the networks are made for; None where they take any image.
        length: tokens of an image, where they are a sequence.
    """

    encoder: Any
    quantizer: Quantizer
    decoder: Any
    factor: int | None
    size: int | None = None
    length: int | None = None


class Config(Protocol):
    """What ``ImageTokenizer`` asks of a configuration: `TokenizerConfig` has it, and `gsqtok.published` another."""

    def build(self) -> Parts:
        """Make the modules, with random weights."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, and as the tokenizer's fingerprint counts it."""

    def summary(self) -> str:
        """The networks in a few words."""
