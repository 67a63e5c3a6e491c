"""The image tokenizer, its configuration, and its files."""

from gsqtok.tokenizer.checkpoint import EMBEDDED, CheckpointError
from gsqtok.tokenizer.config import TokenizerConfig
from gsqtok.tokenizer.model import ImageTokenizer, TokenizerOutput

__all__ = ["EMBEDDED", "CheckpointError", "ImageTokenizer", "TokenizerConfig", "TokenizerOutput"]
