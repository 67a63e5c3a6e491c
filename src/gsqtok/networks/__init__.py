"""Networks: encoders, decoders and their blocks."""

from gsqtok.networks.compact import CompactDecoder, CompactEncoder
from gsqtok.networks.decoder import Decoder
from gsqtok.networks.encoder import Encoder

__all__ = ["CompactDecoder", "CompactEncoder", "Decoder", "Encoder"]
