"""gsqtok compare."""

from __future__ import annotations

from gsqtok.cli.options import console, messages, parser


def main(argv: list[str]) -> None:
    """Lay the results of evaluations beside each other."""
    p = parser(
        "compare",
        "Results of evaluations beside each other: a table, warnings where figures must not be compared, and with -o "
        "plots and a report to open in a browser.",
        "  gsqtok evaluate pictures/ -o mine.json\n"
        "  gsqtok evaluate codec:webp@1.0 pictures/ -o webp.json\n"
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
        console.print(_table(titles, comparison.rows()))
    for line in comparison.warnings:
        messages.print(f"warning: {line}")
    if args.output:
        from gsqtok.evaluation.report import write_report

        for path in write_report(comparison, args.output):
            messages.print(f"wrote {path}")


def _table(titles: list[str], rows: list[list[str]]):
    from rich.table import Table

    table = Table()
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    return table
