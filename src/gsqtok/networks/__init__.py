"""Networks: encoders, decoders and their blocks."""

from gsqtok.networks.compact import CompactDecoder, CompactEncoder
from gsqtok.networks.decoder import Decoder
from gsqtok.networks.encoder import Encoder

AnyEncoder = Encoder | CompactEncoder
"""The encoders of this package: images (B, 3, H, W) -> latents (B, D, h, w)."""
AnyDecoder = Decoder | CompactDecoder
"""The decoders of this package: latents (B, D, h, w) -> images (B, 3, h f, w f)."""

__all__ = ["AnyDecoder", "AnyEncoder", "CompactDecoder", "CompactEncoder", "Decoder", "Encoder"]
