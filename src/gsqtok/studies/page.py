"""A study's page: question, setting, findings, plots and results; in Markdown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gsqtok.evaluation.report.metrics import metric_of, text_of
from gsqtok.evaluation.report.plots import DPI, style
from gsqtok.evaluation.report.tables import escaped, markdown_table
from gsqtok.io import atomic_write
from gsqtok.studies.plots import draw, draw_examples
from gsqtok.studies.study import Finding, Study
from gsqtok.studies.table import Table, cell, described

_OF_A_NETWORK = ("frechet_distance", "lpips", "feature_distance")  # metrics whose names go on with the network's
EXAMPLES = "examples.jpg"
log = logging.getLogger("gsqtok.studies")


def write_page(study: Study, table: Table, folder: Path) -> Path:
    """Write ``README.md`` and the plots into the folder; without matplotlib, the page has no plots.

    Images and curves come from the runs in ``runs`` beside the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    try:
        with style():
            figures = {f"{plot.file}.png": draw(plot, table) for plot in study.plots}
            figures[EXAMPLES] = draw_examples(table, folder.parent / "runs")
            for name, figure in figures.items():
                if figure is not None:
                    figure.savefig(folder / name, dpi=DPI)
                if (folder / name).exists():  # drawn now, or while the runs were there
                    images.append(name)
    except ImportError as error:
        log.warning("%s", error)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(page_of(study, table, images), "utf-8")
    return folder / "README.md"


def said(study: Study, table: Table) -> list[Finding]:
    """Return the study's findings; at the smoke scale, which tests the program, there are none."""
    return [] if table.scale == "smoke" else study.findings(table)


def page_of(study: Study, table: Table, images: Sequence[str]) -> str:
    """Return the page as Markdown, with the files of its plots and of what runs looked like."""
    done = [row for row in table.rows if row.state == "done"]
    parts = [f"# {study.name}: {table.scale} scale", study.question, f"Source: {study.source}.", _setting(table)]
    if findings := said(study, table):
        said_of = [(f.claim, f.verdict, "" if f.verdict == "not tested" else f.because) for f in findings]
        columns = ["claim", "verdict", "results"]
        parts += ["## What the results say", markdown_table(pd.DataFrame(said_of, columns=columns), left=3)]
    parts.append(f"**Limitations:** {study.limitations}")
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in images if name != EXAMPLES]
    if EXAMPLES in images:
        explained = (
            "Of the runs that left images, the best and the worst by PSNR, and the one that uses the fewest codewords: "
            "validation images above their reconstructions, and what curves these runs left."
        )
        parts += ["## What it looked like", explained, f"![examples]({EXAMPLES})"]
    parts += ["## Results", results_table(study, table)]
    if undone := [row for row in table.rows if row.state != "done"]:
        lines = [f"- {described(row.varied)}: {row.state}{f': {row.message}' if row.message else ''}" for row in undone]
        parts += [
            f"## Runs without results ({len(undone)} of {len(undone) + len(done)})",
            "\n".join(map(escaped, lines)),
        ]
    return "\n\n".join(parts) + "\n"


def results_table(study: Study, table: Table) -> str:
    """Return a line for each setting, means over its seeds with their standard deviation, as Markdown."""
    statistics, settings = table.statistics(), table.settings()
    names = dict.fromkeys(
        name
        for asked in study.metrics
        for name in statistics.columns.unique(0)
        if name == asked or (asked in _OF_A_NETWORK and name.startswith(f"{asked}_"))
    )
    columns = list(dict.fromkeys(column for setting in settings for column in setting))
    several = len(table.values("seed")) > 1
    lines = []
    for place, setting in enumerate(settings):
        numbers = {name: statistics.loc[place, name] for name in names}
        if counts := [int(of["count"]) for of in numbers.values() if of["count"]]:
            cells = [cell(setting.get(column, "")) for column in columns]
            cells += [text_of(name, of["mean"], of["std"]) for name, of in numbers.items()]
            lines.append(cells + ([str(max(counts))] if several else []))
    head = columns + [metric_of(name).title for name in names] + (["seeds"] if several else [])
    return markdown_table(pd.DataFrame(lines, columns=head), left=len(columns))


def _setting(table: Table) -> str:
    held, where = table.setting.get("first_run", {}), table.environment
    data, features = held.get("data", {}), table.setting.get("features")
    lines = [
        f"**Setting:** {table.setting.get('summary', '')}. {held.get('steps', 0):,} steps of "
        f"{held.get('batch_size')} images, {held.get('precision')}; trained on {_names(data.get('train'))}, measured "
        f"on {_names(data.get('validation'))}{f'; {features} for the Fréchet distance' if features else ''}."
    ]
    if where:
        days = dict.fromkeys(str(where.get(name))[:10] for name in ("first_date", "date") if where.get(name))
        lines.append(f"{where.get('device')}, torch {where.get('torch')}, {' to '.join(days)}.")
    if command := table.setting.get("command"):
        lines.append(f"\n```bash\n{command}\n```")
    return "\n".join(lines)


def _names(sources: Any) -> str:
    sources = [sources] if isinstance(sources, str) else sources or []
    return ", ".join("/".join(Path(source).parts[-2:]) for source in sources)
