"""Tokens on disk."""

from gsqtok.tokens.archive import TokenArchive, TokenArchiveWriter

__all__ = ["TokenArchive", "TokenArchiveWriter"]
