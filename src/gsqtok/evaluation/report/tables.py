"""Tables of text as Markdown and HTML; names in them may come from files that somebody else made."""

from __future__ import annotations

import html
import re

import pandas as pd

from gsqtok.evaluation.report.metrics import metric_of, text_of


def as_text(metrics: pd.DataFrame) -> pd.DataFrame:
    """Write each number as its metric is written, under the metric's title; the index comes first."""
    columns = [metrics.index.astype(str), *([text_of(n, v) for v in metrics[n]] for n in metrics.columns)]
    titles = [metrics.index.name, *(metric_of(name).title for name in metrics.columns)]
    return pd.DataFrame(dict(enumerate(columns))).set_axis(titles, axis=1)


def markdown_table(table: pd.DataFrame, *, left: int = 1) -> str:
    """Write a table as Markdown, the first ``left`` columns aligned to the left and the others to the right."""
    rule = ["---"] * left + ["--:"] * (len(table.columns) - left)
    lines = [map(escaped, table.columns), rule, *(map(escaped, row) for row in table.itertuples(index=False))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escaped(text: object) -> str:
    """Escape text for Markdown: no HTML, no link and no end of a table's cell comes of it."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(plain, quote=False))


def html_table(table: pd.DataFrame) -> str:
    """Write a table as HTML, every cell escaped."""
    with pd.option_context("display.max_colwidth", None):
        return table.to_html(index=False, border=0)
