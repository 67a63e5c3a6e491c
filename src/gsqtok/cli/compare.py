"""gsqtok compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsqtok.cli.options import console, messages, parser

if TYPE_CHECKING:
    from rich.table import Table


def main(argv: list[str]) -> None:
    """Lay the results of evaluations beside each other."""
    p = parser(
        "compare",
        "Results of evaluations beside each other: a table, warnings where figures must not be compared, and with -o "
        "plots and a report to open in a browser.",
        "  gsqtok evaluate images/ -o mine.json\n"
        "  gsqtok evaluate codec:webp@1.0 images/ -o webp.json\n"
        "  gsqtok compare mine.json webp.json -o report/",
    )
    p.add_argument("results", nargs="+", metavar="FILE", help="what gsqtok evaluate -o wrote")
    p.add_argument("-o", "--output", metavar="FOLDER", help="write report.html and the plots (PNG) there")
    p.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = p.parse_args(argv)

    from gsqtok.evaluation.compare import Comparison, figure_of

    comparison = Comparison.load(args.results)
    titles = ["model", *(figure_of(name).title for name in comparison.columns())]
    if args.markdown:
        lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *comparison.rows()]
        print("\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines))
    else:
        for table in tables(titles, comparison.rows(), console.width):
            console.print(table)
    for line in comparison.warnings:
        messages.print(f"warning: {line}")
    if args.output:
        from gsqtok.evaluation.report import write_report

        for path in write_report(comparison, args.output):
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
