"""Which pictures a result shows: its own best, median and worst, or those of another result."""

import pytest
from comparison import write_result

from gsqtok.evaluation.examples import choose, shown_by
from gsqtok.evaluation.result import Result


def test_best_median_and_worst_of_many():
    keys = [f"{n:02}" for n in range(20)]
    chosen = choose(keys, [float(n) for n in range(20)])
    by_rank = {rank: [key for key, (r, _) in chosen.items() if r == rank] for rank in ("best", "median", "worst")}
    assert by_rank["best"] == ["19", "18", "17", "16"]
    assert by_rank["worst"] == ["00", "01", "02", "03"]
    assert sorted(by_rank["median"]) == ["08", "09", "10", "11"]


def test_the_pictures_of_another_result(tmp_path):
    shown = [("a.png", "best"), ("b.png", "best"), ("c.png", "worst")]
    other = Result.load(write_result(tmp_path, "ours", 1, [1, 2, 3], pictures=shown))
    assert shown_by(other, ["c.png", "b.png", "z.png"]) == {"b.png": ("best", 2), "c.png": ("worst", 1)}
    with pytest.raises(ValueError, match="none of the 3 pictures"):
        shown_by(other, ["z.png"])
