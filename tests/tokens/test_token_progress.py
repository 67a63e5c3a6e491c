import json

import pytest

from gsqtok.tokens.chunk import Chunk, Image
from gsqtok.tokens.progress import RunProgress, rate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "0"),
        (0.0, "0"),
        (0.0416666, "0.0417"),
        (0.4, "0.4"),
        (9.994, "9.99"),
        (99.96, "100"),
        (12345.6, "12,300"),
    ],
)
def test_a_slow_rate_is_not_zero(value, text):
    assert rate(value) == text


def test_counts_of_what_is_done(tmp_path):
    with RunProgress(tmp_path, 5, rank=1) as progress:
        progress.add(Chunk(0, 0, [Image("a", (1, 2), {})], [("b", "zero bytes")], bytes_read=30, seconds=0.5))
        metrics = progress.metrics()
    assert (metrics["images"], metrics["of"], metrics["skipped"], metrics["decoded_per_core_second"]) == (2, 5, 1, 4.0)
    (line,) = map(json.loads, (tmp_path / "metrics-1.jsonl").read_text().splitlines())
    assert (line["rank"], line["images"], line["finished"]) == (1, 2, True)
