"""The results of a study, as text: what results.py, results_256.py and claims.py share."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from typing import Any

from gsqtok.studies import STUDIES
from gsqtok.studies.table import Table

DOCS = Path(__file__).parents[1]
FRECHET = "frechet_distance_tf_efficientnet_lite1"


class Said:
    """The results of a study, as text."""

    def __init__(self, name: str, scale: str = "small") -> None:
        self.table = Table.load(DOCS / "studies" / f"{name}-{scale}" / "results.json")
        self.verdicts = {finding.claim: finding.verdict for finding in STUDIES[name].findings(self.table)}

    def needs(self, verdict: str, *claims: str) -> None:
        """Stop unless the study's verdict on these claims is this one."""
        for claim in claims:
            if self.verdicts[claim] != verdict:
                raise SystemExit(
                    f"{self.table.study}: '{claim}' is {self.verdicts[claim]}, the text says {verdict}: rewrite it"
                )

    def psnr(self, **where: Any) -> str:
        return self.number("psnr", ".2f", **where)

    def number(self, metric: str, form: str, **where: Any) -> str:
        """A mean over the seeds, with their standard deviation where there are several."""
        value = self.table.value(metric, **where)
        if not value:
            return ""
        return format(value.mean, form) + (f" ± {value.spread:{form}}" if value.seeds > 1 else "")

    def mean(self, metric: str, **where: Any) -> float:
        return self.table.value(metric, **where).mean


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spreads(metric: str, relative: bool) -> list[float]:
    """Standard deviations over three seeds, of every setting of precision and methods that has them."""
    found = []
    for name in ("precision", "methods"):
        results = Said(name).table
        for setting in results.settings():
            value = results.value(metric, **setting)
            if value.seeds > 1:
                found.append(value.spread / (value.mean if relative else 1.0))
    return found


def noise(metric: str, relative: bool) -> float:
    """Twice the standard deviation of a difference of two runs that differ in their seed alone."""
    found = spreads(metric, relative)
    return 2 * sqrt(2) * sqrt(sum(x * x for x in found) / len(found))


def trained_results(folder: str) -> Table | None:
    """A study's published results; None where no training or timing of it is done (codecs do not need one)."""
    file = DOCS / "studies" / folder / "results.json"
    found = Table.load(file) if file.exists() else None
    return found if found and any(row.metrics and "codec" not in row.varied for row in found.rows) else None


def length(results: Table) -> str:
    """How long all runs of a study trained."""
    held = results.setting["first_run"]
    return f"{held['steps']:,} steps of {held['batch_size']} images of {held['data']['size']} px"


def origin(results: Table) -> str:
    """Where and when a study was run."""
    return f"{results.environment['device']}, {results.environment['date'][:10]}"
