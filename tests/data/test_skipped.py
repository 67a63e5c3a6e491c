import logging

from gsqtok.data import SkipLog


def test_each_key_is_counted_and_named_once(caplog):
    log = SkipLog()
    with caplog.at_level(logging.INFO, "gsqtok.data"):
        assert log.summary() == "every image could be read"
        log.add([("a.jpg", "truncated"), ("b.jpg", "zero bytes")])
        log.add([("a.jpg", "truncated")])
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "skipped image a.jpg: truncated"),
        ("WARNING", "skipped image b.jpg: zero bytes"),
    ]
    assert log.summary() == "2 images could not be read and were skipped: a.jpg (truncated), b.jpg (zero bytes)"
    assert len(log) == 2
    assert log.reasons == {"a.jpg": "truncated", "b.jpg": "zero bytes"}


def test_summary_of_one_and_of_many():
    log = SkipLog()
    log.add([("0", "x")])
    assert log.summary() == "1 image could not be read and was skipped: 0 (x)"
    log.add((str(i), "x") for i in range(8))
    assert log.summary().endswith("4 (x) and 3 more")
