"""The image tokenizer, its configuration, and its files."""

from gsqtok.tokenizer.checkpoint import EMBEDDED, CheckpointError
from gsqtok.tokenizer.config import TokenizerConfig
from gsqtok.tokenizer.model import ImageTokenizer, TokenizerOutput
from gsqtok.tokenizer.parts import Config, Parts

__all__ = [
    "EMBEDDED",
    "CheckpointError",
    "Config",
    "ImageTokenizer",
    "Parts",
    "TokenizerConfig",
    "TokenizerOutput",
]
