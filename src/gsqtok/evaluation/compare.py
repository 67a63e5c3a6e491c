"""Results of several evaluations beside each other: labels, a table, and what forbids comparing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gsqtok.evaluation.result import Result, differences


class Figure(NamedTuple):
    """How a figure is shown. ``better`` is 1 where more is better, -1 where less is, 0 where it is no judgement."""

    title: str
    format: str
    better: int = 0


BITS = "bits_per_pixel"
FIGURES = {
    BITS: Figure("bits/px", ".3f"),
    "bits_per_pixel_entropy": Figure("bits/px, entropy", ".3f"),
    "psnr": Figure("PSNR, dB", ".2f", 1),
    "ssim": Figure("SSIM", ".3f", 1),
    "ms_ssim": Figure("MS-SSIM", ".3f", 1),
    "lpips": Figure("LPIPS", ".3f", -1),
    "dists": Figure("DISTS", ".3f", -1),
    "rfid": Figure("rFID", ".2f", -1),
    "sfid": Figure("sFID", ".2f", -1),
    "frechet_distance": Figure("Fréchet distance", ".2f", -1),
    "spatial_frechet_distance": Figure("spatial Fréchet distance", ".2f", -1),
    "inception_score": Figure("Inception Score", ".2f", 1),
    "precision": Figure("precision", ".3f", 1),
    "recall": Figure("recall", ".3f", 1),
    "density": Figure("density", ".3f", 1),
    "coverage": Figure("coverage", ".3f", 1),
    "usage": Figure("usage", ".1%"),
    "perplexity": Figure("perplexity", ",.1f"),
    "images_per_second": Figure("images/s", ".3g"),
}
"""The figures whose titles are known, in the order of the table's columns.

A longer name, such as lpips_vgg, goes by the longest of these that it begins with."""

# Each says nearly what another column says.
_HIDDEN = {"mse", "psnr_pooled", "entropy_bits", "inception_score_std"}


def figure_of(name: str) -> Figure:
    """How to show a figure; one that is not known goes by its own name."""
    known = _known(name)
    if known is None:
        return Figure(name.replace("_", " "), ".4g")
    rest = name[len(known) + 1 :].replace("_", " ")
    return FIGURES[known]._replace(title=f"{FIGURES[known].title} {rest}".strip())


def _known(name: str) -> str | None:
    return max((base for base in FIGURES if f"{name}_".startswith(f"{base}_")), key=len, default=None)


def shown(name: str, value: float | None) -> str:
    """A figure as text; a dash where it is not defined."""
    if value is None or not math.isfinite(value):
        return "-"
    return format(value, figure_of(name).format)


@dataclass
class Comparison:
    """Results that are looked at together.

    Attributes:
        results: at least one.
        labels: a short name for each, all different.
        paths: the file of each; images lie relative to it.
        warnings: why results must not be compared with the first, one line each; empty where they may be.
    """

    results: list[Result]
    labels: list[str]
    paths: list[Path]
    warnings: list[str]

    @classmethod
    def load(cls, paths: Sequence[str | Path]) -> Comparison:
        """Read the files that ``gsqtok evaluate -o`` wrote.

        Raises:
            ValueError: no file, one named twice, or (`ResultError`) one that is no result of an evaluation.
            FileNotFoundError: no such file.
        """
        paths = [Path(path) for path in paths]
        if not paths:
            raise ValueError("nothing to compare: name the files that `gsqtok evaluate -o` wrote")
        resolved = [path.resolve() for path in paths]
        if twice := [str(path) for i, path in enumerate(paths) if resolved[i] in resolved[:i]]:
            raise ValueError(f"{twice[0]} is named twice")
        results = [Result.load(path) for path in paths]
        labels = _labels(results, paths)
        warnings = [
            f"{label} and {labels[0]} were not measured alike: {line}"
            for label, result in zip(labels[1:], results[1:], strict=True)
            for line in differences(result, results[0])
        ]
        return cls(results, labels, paths, warnings)

    def columns(self) -> list[str]:
        """Names of the figures that any result has: bits per pixel, quality, what is not known, codebook, speed."""
        order = {name: place for place, name in enumerate(FIGURES)}
        unknown = order["usage"] - 0.5
        names = dict.fromkeys(name for result in self.results for name in result.figures if name not in _HIDDEN)
        return sorted({BITS: None} | names, key=lambda name: order.get(_known(name), unknown))

    def rows(self) -> list[list[str]]:
        """The table without its head: the label, then each of `columns`."""
        columns = self.columns()
        return [
            [label, *(shown(name, bits_of(result) if name == BITS else result.figures.get(name)) for name in columns)]
            for label, result in zip(self.labels, self.results, strict=True)
        ]


def bits_of(result: Result) -> float | None:
    """Bits per pixel that the images took; the model's nominal ones where they were not counted."""
    value = result.figures.get(BITS)
    return result.model[BITS] if value is None else value


def _labels(results: list[Result], paths: list[Path]) -> list[str]:
    """The models' names; where they repeat, with the bits per pixel, and where those repeat, too, with the file."""
    labels = [str(result.model["name"] or path.stem) for result, path in zip(results, paths, strict=True)]
    bits = [result.model[BITS] if result.model[BITS] is not None else bits_of(result) for result in results]
    longer = [label if b is None else f"{label} @ {b:.3g}" for label, b in zip(labels, bits, strict=True)]
    labels = [long if labels.count(label) > 1 else label for label, long in zip(labels, longer, strict=True)]
    return [
        f"{label} ({path})" if labels.count(label) > 1 else label for label, path in zip(labels, paths, strict=True)
    ]
