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
    from gsqtok.evaluation.compare import Comparison, figure_of

    if output:
        check_output_folder(output)
    comparison = Comparison.load(results)
    titles = ["model", *(figure_of(name).title for name in comparison.columns())]
    if markdown:
        lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *comparison.rows()]
        print("\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines))
    else:
        for table in tables(titles, comparison.rows(), console.width):
            console.print(table)
    for line in comparison.warnings:
        messages.print(f"warning: {line}")
    if output:
        from gsqtok.evaluation.report import write_report

        for path in write_report(comparison, output):
            messages.print(f"wrote {path}")


def tables(titles: list[str], rows: list[list[str]], width: int) -> list[Table]:
    """As many tables as it takes to keep to a terminal's width, each with the model and its bits/px before figures."""
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
