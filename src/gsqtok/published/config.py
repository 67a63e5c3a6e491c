"""What a published tokenizer is made of, as ``ImageTokenizer`` takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gsqtok.published.registry import get_family
from gsqtok.tokenizer import Parts


@dataclass(frozen=True)
class PublishedConfig:
    """The name of a family, and what that builds its networks from."""

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
