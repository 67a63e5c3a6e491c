"""One registry of quantizers: names, patterns, typed options, and building from a configuration."""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, get_type_hints

from gsqtok.options import check_names
from gsqtok.quantizers import migration
from gsqtok.quantizers.base import Quantizer, QuantizerOptions

_REGISTRY: dict[str, type[Quantizer]] = {}
Q = TypeVar("Q", bound=type[Quantizer])


def register_quantizer(name: str) -> Callable[[Q], Q]:
    """Class decorator: make a quantizer known by ``name``. A name that is taken raises ValueError.

    The class gets an attribute ``Options``: the typed options of its constructor, but for ``dim``.
    """

    def add(cls: Q) -> Q:
        if name in _REGISTRY:
            raise ValueError(f"quantizer '{name}' is registered already, by {_REGISTRY[name].__qualname__}")
        cls.name = name
        cls.Options = _typed_options(name, cls)
        _REGISTRY[name] = cls
        return cls

    return add


def list_quantizers(pattern: str = "*") -> list[str]:
    """Names of the registered quantizers that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def options_type(name: str) -> type[QuantizerOptions]:
    """The dataclass of a method's options, which a command line can be made of.

    Raises:
        ValueError: an unknown name; the message names the nearest known one.
    """
    _answer([name], list_quantizers(), migration.CLASSES)
    check_names([name], list_quantizers(), "unknown quantizer")
    return _REGISTRY[name].Options


def _answer(names: Iterable[str], known: Sequence[str], theirs: dict[str, str]) -> None:
    """Raise ValueError for a name of another library, saying what it is here."""
    for name in names:
        if name not in known and (said := migration.answer(name, theirs)):
            raise ValueError(said)


def quantizer_options(name: str, **options: Any) -> QuantizerOptions:
    """Options of a quantizer, checked.

    Args:
        name: one of ``list_quantizers()``.
        options: the method's own options; ``help(type(quantizer))`` explains them.

    Raises:
        ValueError: an unknown name or option (the message names the nearest known one), or a value of another type or
            out of its range.
    """
    typed = options_type(name)
    known = [field.name for field in dataclasses.fields(typed)]
    _answer(options, known[1:], migration.OPTIONS)
    check_names(options, known[1:], f"quantizer '{name}' has no option")
    try:
        return typed(name, **options)
    except TypeError as error:  # one that has no default
        raise ValueError(f"quantizer '{name}': {error}") from error


def build_quantizer(name: str, *, dim: int, **options: Any) -> Quantizer:
    """Build a quantizer by name.

    Args:
        name: one of ``list_quantizers()``.
        dim: channels D of the latent.
        options: the method's own options; ``help(type(quantizer))`` explains them.

    Raises:
        ValueError: as ``quantizer_options``, or values that do not go together.
    """
    typed = quantizer_options(name, **options)
    return _REGISTRY[name](dim, **{option: getattr(typed, option) for option in options})


def _typed_options(name: str, cls: type[Quantizer]) -> type[QuantizerOptions]:
    """A frozen dataclass of the constructor's parameters but for ``dim``."""
    hints = get_type_hints(cls, include_extras=True)
    fields: list[tuple[str, Any, Any]] = [("name", Literal[name], name)]
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[2:]:
        default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        metadata = cls.__dataclass_fields__[parameter.name].metadata
        option = dataclasses.field(default=default, kw_only=True, metadata=metadata)
        fields.append((parameter.name, hints.get(parameter.name, Any), option))
    typed = dataclasses.make_dataclass(
        "Options", fields, bases=(QuantizerOptions,), frozen=True, namespace={"__doc__": cls.__doc__}
    )
    typed.__module__, typed.__qualname__ = cls.__module__, f"{cls.__qualname__}.Options"  # where pickle looks
    return typed
