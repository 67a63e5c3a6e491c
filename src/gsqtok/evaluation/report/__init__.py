"""Tables, plots and pages of results, for ``gsqtok compare`` and for studies."""

from gsqtok.evaluation.report.comparison import Comparison
from gsqtok.evaluation.report.page import write_leaderboard, write_report
from gsqtok.evaluation.report.tables import as_text, markdown_table

__all__ = ["Comparison", "as_text", "markdown_table", "write_leaderboard", "write_report"]
