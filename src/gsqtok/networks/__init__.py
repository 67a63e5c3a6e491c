"""Networks: encoders, decoders and their blocks."""

from gsqtok.networks.compact import CompactDecoder, CompactEncoder
from gsqtok.networks.decoder import Decoder
from gsqtok.networks.encoder import Encoder

AnyEncoder = Encoder | CompactEncoder
AnyDecoder = Decoder | CompactDecoder

__all__ = ["AnyDecoder", "AnyEncoder", "CompactDecoder", "CompactEncoder", "Decoder", "Encoder"]
