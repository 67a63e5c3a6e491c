"""The families of published tokenizers, what a family says of itself, and what a tokenizer of one is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gsqtok.published.source import Source
from gsqtok.tokenizer import Parts, TokenizerConfig


@dataclass(frozen=True)
class Family:
    """One family of tokenizers.

    Attributes:
        name: the prefix that names it, as in ``llamagen:vq_ds16_c2i.pt``.
        title: what it is called in messages.
        matches: whether a file is of this family, by its names, shapes and configuration.
        configure: from a file, and keyword options that no file tells, to what ``build`` takes, or to the configuration
            of an ``ImageTokenizer`` where that has the same networks.
        names: from what ``configure`` returned to a function from a weight's name here to the file's name, or to
            several that are stacked along their rows.
        build: makes the parts; None where ``configure`` returns the configuration of an ``ImageTokenizer``.
        ignored: regular expression of names in a file that no part needs, such as losses and statistics.
        filled: likewise, of names here that no file has: a convolution's bias, which is then 0.
    """

    name: str
    title: str
    matches: Callable[[Source], bool]
    configure: Callable[..., dict[str, Any] | TokenizerConfig]
    names: Callable[[Any], Callable[[str], Sequence[str]]]
    build: Callable[..., Parts] | None = None
    ignored: str = r"(loss|model_ema)\..*"
    filled: str = ""

    @property
    def options(self) -> list[str]:
        """The options that may be given with a file's name."""
        parameters = inspect.signature(self.configure).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a family; its name must be new."""
    if family.name in _FAMILIES:
        raise ValueError(f"there is a family '{family.name}' already")
    _FAMILIES[family.name] = family
    return family


def get_family(name: str) -> Family:
    """The family of a name; ValueError, with all names, where there is none."""
    if name not in _FAMILIES:
        raise ValueError(f"no family '{name}' of published tokenizers; there are {', '.join(list_families())}")
    return _FAMILIES[name]


def list_families() -> list[str]:
    """The names of all families."""
    return sorted(_FAMILIES)


def matching(source: Source) -> list[Family]:
    """The families that a file may be of."""
    return [family for _, family in sorted(_FAMILIES.items()) if family.matches(source)]


@dataclass(frozen=True)
class PublishedConfig:
    """What an ``ImageTokenizer`` is made of: the name of a family, and what that builds its networks from."""

    family: str
    options: dict[str, Any]

    def build(self) -> Parts:
        """Make the networks and the quantizer, with random weights."""
        family = get_family(self.family)
        if family.build is None:
            raise ValueError(f"{self.family} has the networks of this package: its configuration is a TokenizerConfig")
        return family.build(**self.options)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, and as the tokenizer's fingerprint counts it."""
        return {"family": self.family, "options": self.options}

    def summary(self) -> str:
        """The networks in a few words."""
        return get_family(self.family).title
