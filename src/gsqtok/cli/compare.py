"""gsqtok compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsqtok.cli.options import check_output_folder, console, messages

if TYPE_CHECKING:
    from rich.table import Table


def compare(results: list[str], *, output: str | None = None, markdown: bool = False) -> None:
    """Lay the results of evaluations beside each other.

    Prints a table and warnings where results must not be compared; with -o it also writes plots and a report to open in
    a browser.

    Args:
        results: files that gsqtok evaluate -o wrote
        output: a folder for report.html and the plots (PNG)
        markdown: print the table as Markdown

    Example:
          gsqtok evaluate images/ -o mine.json
          gsqtok evaluate codec:webp@1.0 images/ -o webp.json
          gsqtok compare mine.json webp.json -o report/
    """
    from gsqtok.evaluation.report import Comparison, as_text, markdown_table, write_report

    if output:
        check_output_folder(output)
    comparison = Comparison.load(results)
    table = as_text(comparison.metrics())
    if markdown:
        print(markdown_table(table))
    else:
        for part in tables(list(table.columns), table.to_numpy().tolist(), console.width):
            console.print(part)
    for line in comparison.warnings:
        messages.print(f"warning: {line}")
    if output:
        for path in write_report(comparison, output):
            messages.print(f"wrote {path}")


def tables(titles: list[str], rows: list[list[str]], width: int) -> list[Table]:
    """As many tables as it takes to keep to a terminal's width, each beginning with the model and its bits/px."""
    from rich.table import Table

    widths = [max(map(len, column)) + 3 for column in zip(titles, *rows, strict=True)]  # with a border and padding
    room = max(width - sum(widths[:2]) - 1, 1)
    blocks: list[list[int]] = [[]]
    for number in range(2, len(titles)):
        if blocks[-1] and sum(widths[n] for n in [*blocks[-1], number]) > room:
            blocks.append([])
        blocks[-1].append(number)
    made = []
    for block in blocks:
        table = Table()
        for number in (0, 1, *block):
            table.add_column(titles[number], justify="right" if number else "left", no_wrap=number > 0)
        for row in rows:
            table.add_row(*(row[number] for number in (0, 1, *block)))
        made.append(table)
    return made
