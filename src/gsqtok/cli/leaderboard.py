"""gsqtok leaderboard."""

from __future__ import annotations

from gsqtok.cli.options import check_output_folder, messages


def leaderboard(results: list[str], *, output: str = "leaderboard") -> None:
    """Rank the results of many evaluations by bits per pixel, as Markdown, CSV, an HTML page and a plot.

    Args:
        results: files that gsqtok evaluate -o wrote, of tokenizers and of codecs
        output: the folder for leaderboard.html, .md and .csv, and rate_distortion.png

    Example:
          gsqtok leaderboard results/*.json -o leaderboard/
    """
    from gsqtok.evaluation.report import write_leaderboard

    check_output_folder(output)
    for path in write_leaderboard(results, output):
        messages.print(f"wrote {path}")
