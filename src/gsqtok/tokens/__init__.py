"""Tokens on disk: one small file (``archive``), or a data set of shards (``run`` writes, ``dataset`` reads)."""

from gsqtok.tokens.archive import TokenArchive, TokenArchiveWriter
from gsqtok.tokens.dataset import TokenDataset, TokenStream
from gsqtok.tokens.layout import Layout

__all__ = ["Layout", "TokenArchive", "TokenArchiveWriter", "TokenDataset", "TokenStream"]
