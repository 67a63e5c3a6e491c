"""Networks: the encoder, the decoder and their blocks."""

from gsqtok.networks.decoder import Decoder
from gsqtok.networks.encoder import Encoder

__all__ = ["Decoder", "Encoder"]
