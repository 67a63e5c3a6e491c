"""What an option may be, in one place: type, range and finiteness of every configuration are checked here.

A dataclass says what it takes by the annotations of its fields; ``check`` compares the values with them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Rule(NamedTuple):
    """A range: how a message names it, and whether a number lies in it."""

    text: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Rule("of at least 1", lambda n: n >= 1)]
Natural = Annotated[int, Rule("of at least 0", lambda n: n >= 0)]
Weight = Annotated[float, Rule("of at least 0", lambda x: x >= 0)]
Positive = Annotated[float, Rule("above 0", lambda x: x > 0)]
Scale = Annotated[float, Rule("of at least 1", lambda x: x >= 1)]
Share = Annotated[float, Rule("from 0 to 1", lambda x: 0 <= x <= 1)]
Decay = Annotated[float, Rule("from 0 to below 1", lambda x: 0 <= x < 1)]


class _UnfitError(Exception):
    """The value is not of the annotated kind."""


def check(options: Any, where: str = "") -> None:
    """Compare every field of a dataclass with its annotation, and bring its value to the annotated type.

    Whole numbers become floats and lists become tuples where those are asked for, since JSON and YAML have only one
    kind of each.

    Args:
        options: an instance of the dataclass.
        where: what a message puts before the field's name, such as "optimizer.".

    Raises:
        ValueError: the first field that does not fit: its name, what it must be, what it is; one line.
    """
    hints = get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        if field.init:
            value = getattr(options, field.name)
            try:
                value = _fitted(value, hints[field.name])
            except (_UnfitError, OverflowError):
                expected, got = _described(hints[field.name]), reprlib.repr(value)
                raise ValueError(f"{where}{field.name} must be {expected}, got {got}") from None
            object.__setattr__(options, field.name, value)  # a configuration may be frozen


def check_names(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise ValueError for the first name that is not known, with the nearest one that is.

    Args:
        given: the names.
        known: those that are allowed.
        what: how the message begins, such as "unknown quantizer".
    """
    for name in given:
        if name not in known:
            hint = near(name, known) or f"known: {', '.join(known)}"
            raise ValueError(f"{what} '{name}'; {hint}")


def near(name: str, known: Iterable[str]) -> str:
    """Ask ``did you mean '...'?`` for the nearest name that is known; an empty text where none is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _fitted(value: Any, hint: Any) -> Any:
    """The value as the annotation wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _fitted(value, arguments[0])
        fits = all(rule.holds(value) for rule in arguments[1:])
    elif origin in (Union, UnionType):
        return _fitted_to_one(value, arguments)
    elif origin is Literal:
        fits = value in arguments
    elif origin in (tuple, list):
        return _fitted_elements(value, origin, arguments)
    elif hint in (int, float):
        fits = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        value = hint(value) if fits else value
        fits = fits and (-(2**63) <= value < 2**63 if hint is int else math.isfinite(value))
    elif origin is dict or origin is Mapping:
        fits = isinstance(value, Mapping)
    else:
        fits = hint is Any or isinstance(value, hint)
    if not fits:
        raise _UnfitError
    return value


def _fitted_to_one(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        try:
            return _fitted(value, hint)
        except _UnfitError:
            continue
    raise _UnfitError


def _fitted_elements(value: Any, kind: type, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise _UnfitError
    hints = arguments
    if kind is list or arguments[-1] is Ellipsis:
        hints = (arguments[0],) * len(value)
    if len(hints) != len(value):
        raise _UnfitError
    return kind(_fitted(element, hint) for element, hint in zip(value, hints, strict=True))


def _described(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_described(arguments[0]), *(rule.text for rule in arguments[1:])])
    if origin in (Union, UnionType):
        return " or ".join(_described(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (tuple, list):
        length = "" if origin is list or arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{length}, each {_described(arguments[0])}"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(hint) or ("a mapping" if origin else hint.__name__)
