"""Values against annotations: what fits is brought to its type, what does not is named in one line."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from gsqtok.options import Count, Decay, Natural, Positive, Share, Weight, check, check_names


@dataclass(frozen=True)
class Options:
    count: Count = 1
    natural: Natural = 0
    weight: Weight = 0.5
    positive: Positive = 0.5
    share: Share = 0.5
    decay: Decay = 0.5
    kind: Literal["mean", "median"] | None = None
    blocks: Count | tuple[Count, ...] = 2
    betas: tuple[float, float] = (0.9, 0.99)
    switch: bool = False
    sources: str | list[str] = ""
    other: dict[str, Any] = field(default_factory=dict)
    made: int = field(init=False, default=-1)

    def __post_init__(self):
        check(self)


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("count", np.int64(3), 3),
        ("weight", 1, 1.0),
        ("weight", np.float32(0.25), 0.25),
        ("share", 1, 1.0),
        ("decay", 0, 0.0),
        ("kind", "median", "median"),
        ("kind", None, None),
        ("blocks", [1, 2], (1, 2)),
        ("betas", [0, 1], (0.0, 1.0)),
        ("sources", ["a", "b"], ["a", "b"]),
        ("other", {"a": object}, {"a": object}),
    ],
)
def test_what_fits(name, given, kept):
    value = getattr(Options(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 0, "a whole number of at least 1"),
        ("count", 2.0, "a whole number of at least 1"),
        ("count", True, "a whole number of at least 1"),
        ("count", "2", "a whole number of at least 1"),
        ("count", 2**63, "a whole number of at least 1"),
        ("natural", -1, "a whole number of at least 0"),
        ("natural", float("nan"), "a whole number of at least 0"),
        ("weight", float("inf"), "a finite number of at least 0"),
        ("weight", float("nan"), "a finite number of at least 0"),
        ("weight", 10**400, "a finite number of at least 0"),
        ("weight", -0.1, "a finite number of at least 0"),
        ("positive", 0, "a finite number above 0"),
        ("share", 1.5, "a finite number from 0 to 1"),
        ("decay", 1, "a finite number from 0 to below 1"),
        ("kind", "mode", "one of mean, median or null"),
        ("blocks", (1, 0), "a whole number of at least 1 or a list, each a whole number of at least 1"),
        ("betas", (0.9,), "a list of 2, each a finite number"),
        ("betas", 0.9, "a list of 2, each a finite number"),
        ("switch", "x", "true or false"),
        ("switch", 1, "true or false"),
        ("sources", 3, "text or a list, each text"),
        ("other", [], "a mapping"),
    ],
)
def test_what_does_not_fit(name, value, expected):
    with pytest.raises(ValueError) as error:
        Options(**{name: value})
    assert str(error.value).startswith(f"{name} must be {expected}, got ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_names():
    check_names(["groups"], ["groups", "norm"], "no option")
    with pytest.raises(ValueError, match=r"no option 'group'; did you mean 'groups'\?"):
        check_names(["norm", "group"], ["groups", "norm"], "no option")
    with pytest.raises(ValueError, match="no option 'xyz'; known: groups, norm"):
        check_names(["xyz"], ["groups", "norm"], "no option")
