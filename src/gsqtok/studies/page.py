"""A study's page: question, setting, figures, plots, and what they say; in Markdown."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gsqtok.io import atomic_write
from gsqtok.studies.examples import draw_examples
from gsqtok.studies.plots import draw
from gsqtok.studies.study import Finding, Study
from gsqtok.studies.table import Table, cell, described, shown, title_of

_OF_A_NETWORK = ("frechet_distance", "lpips")  # figures whose names go on with the network's
log = logging.getLogger("gsqtok.studies")


def write_page(study: Study, table: Table, folder: Path) -> Path:
    """Write ``README.md`` and the plots into the folder; without matplotlib, the page has no plots.

    Images and curves come from the runs in ``runs`` beside the folder.
    """
    images, examples = [], None
    try:
        images = [draw(plot, table, folder) for plot in study.plots]
        examples = draw_examples(table, folder.parent / "runs", folder)
    except ImportError as error:
        log.warning("%s", error)
    page = folder / "README.md"
    with atomic_write(page) as aside:
        names = [path.name for path in images if path is not None]
        aside.write_text(page_of(study, table, names, None if examples is None else examples.name), "utf-8")
    return page


def said(study: Study, table: Table) -> list[Finding]:
    """The study's findings; at the smoke scale, which tests the program, there are none."""
    return [] if table.scale == "smoke" else study.findings(table)


def page_of(study: Study, table: Table, images: list[str], examples: str | None = None) -> str:
    """The page as Markdown, with the files of its plots and that of what runs looked like."""
    done = [row for row in table.rows if row.state == "done"]
    parts = [f"# {study.name}: {table.scale} scale", study.question, f"Source: {study.source}."]
    parts.append(_setting(table))
    if findings := said(study, table):
        lines = ["| claim | says | figures |", "|---|---|---|"]
        lines += [f"| {finding.claim} | **{finding.verdict}** | {finding.because} |" for finding in findings]
        parts += ["## What the figures say", "\n".join(lines)]
    parts.append(f"**What this cannot say:** {study.silent}")
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in images]
    if examples is not None:
        said_of = "Of the runs that left images, the best and the worst by PSNR, and the one that uses the fewest "
        said_of += "codewords: validation images above their reconstructions, and what curves these runs left."
        parts += ["## What it looked like", said_of, f"![examples]({examples})"]
    parts += ["## Figures", figures_table(study, table)]
    if undone := [row for row in table.rows if row.state != "done"]:
        lines = [f"- {described(row.varied)}: {row.state}{f': {row.message}' if row.message else ''}" for row in undone]
        parts += [f"## Runs without figures ({len(undone)} of {len(undone) + len(done)})", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def figures_table(study: Study, table: Table) -> str:
    """One line for each setting, means over its seeds with their standard deviation."""
    columns = list(dict.fromkeys(column for row in table.rows for column in row.varied if column != "seed"))
    present = list(dict.fromkeys(name for row in table.rows for name in row.figures))
    names = [
        name
        for asked in study.figures
        for name in present
        if name == asked or (asked in _OF_A_NETWORK and name.startswith(f"{asked}_"))
    ]
    names = list(dict.fromkeys(names))
    seeds = len(table.values("seed"))
    head = [*columns, *(title_of(name) for name in names), *(["seeds"] if seeds > 1 else [])]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(columns)}{'--:|' * (len(head) - len(columns))}"]
    for setting in table.settings():
        values = [table.value(name, **setting) for name in names]
        if not any(values):
            continue
        cells = [cell(setting.get(column, "")) for column in columns]
        cells += ["" if value is None else shown(name, value) for name, value in zip(names, values, strict=True)]
        if seeds > 1:
            cells.append(str(max(value.count for value in values if value is not None)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _setting(table: Table) -> str:
    held, where = table.setting.get("first_run", {}), table.environment
    data = held.get("data", {})
    lines = [
        f"**Setting:** {table.setting.get('summary', '')}. {held.get('steps', 0):,} steps of "
        f"{held.get('batch_size')} images, {held.get('precision')}; trained on {_names(data.get('train'))}, measured "
        f"on {_names(data.get('validation'))}"
        + (f"; {table.setting['features']} for the Fréchet distance" if table.setting.get("features") else "")
        + "."
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
