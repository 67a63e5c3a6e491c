"""One registry of quantizers: names, patterns, and building from a configuration."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from gsqtok.quantizers.base import Quantizer

_REGISTRY: dict[str, type[Quantizer]] = {}
Q = TypeVar("Q", bound=type[Quantizer])


def register_quantizer(name: str) -> Callable[[Q], Q]:
    """Class decorator: make a quantizer known by ``name``. A name that is taken raises ValueError."""

    def add(cls: Q) -> Q:
        if name in _REGISTRY:
            raise ValueError(f"quantizer '{name}' is registered already, by {_REGISTRY[name].__qualname__}")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def list_quantizers(pattern: str = "*") -> list[str]:
    """Names of the registered quantizers that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def build_quantizer(name: str, dim: int, **options: Any) -> Quantizer:
    """Build a quantizer by name.

    Args:
        name: one of ``list_quantizers()``.
        dim: channels D of the latent.
        options: the method's own options; ``help(type(quantizer))`` explains them.

    Raises:
        ValueError: an unknown name or option (the message names the nearest known one), or a value that the method
            refuses.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown quantizer '{name}'{_did_you_mean(name, list_quantizers())}")
    known = [p for p in inspect.signature(_REGISTRY[name].__init__).parameters if p != "self"]
    for option in options:
        if option not in known:
            raise ValueError(f"quantizer '{name}' has no option '{option}'{_did_you_mean(option, known)}")
    try:
        return _REGISTRY[name](dim=dim, **options)
    except TypeError as error:
        raise ValueError(f"quantizer '{name}': {error}") from error


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
