"""Tables as text: what metrics are called, and names that would be markup."""

import math

import pandas as pd

from gsqtok.evaluation.report.metrics import METRICS, metric_of, text_of
from gsqtok.evaluation.report.tables import as_text, html_table, markdown_table

HOSTILE = "<img src=x onerror=alert(1)>|`[a](javascript:b)`*\n# x & \\|"


def test_how_metrics_are_shown():
    assert text_of("psnr", math.inf) == text_of("psnr", None) == text_of("psnr", math.nan) == "-"
    assert text_of("usage", 0.5) == "50.0%"
    assert text_of("psnr", 20.0, 0.5) == "20.00 ± 0.50"
    assert text_of("psnr", 20.0, 0.001) == text_of("psnr", 20.0, math.nan) == "20.00"
    assert text_of("spherical_error", 1e-8, 6.42e-11) == "1e-08 ± 6.42e-11"
    assert metric_of("lpips_vgg").title == "LPIPS vgg"
    assert metric_of("lpips_vgg").better == metric_of("rfid").better == -1
    assert metric_of("ssim").better == 1
    assert metric_of("lpips_vgg").format == metric_of("dists").format
    assert metric_of("frechet_distance_timm_x").title == "Fréchet distance timm x"
    assert metric_of("encode_images_per_second").title == "encode, images/s"
    assert metric_of("something_new") == ("something new", ".4g", 0)
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)


def test_nothing_in_a_cell_is_markup():
    table = pd.DataFrame({"model": [HOSTILE], "a|<b>": ["1"]})
    head, rule, row = markdown_table(table).splitlines()
    assert head == "| model | a\\|&lt;b&gt; |"
    assert rule == "| --- | --: |"
    assert "<" not in row
    assert row.startswith(
        "| &lt;img src=x onerror=alert(1)&gt;\\|\\`\\[a\\](javascript:b)\\`\\* # x &amp; \\\\\\| | 1 |"
    )
    assert "<img" not in html_table(table)
    assert "&lt;img" in html_table(table)
    assert "x" * 200 in html_table(pd.DataFrame({"a": ["x" * 200]}))  # nothing is cut


def test_metrics_as_text_keep_order_and_titles_that_are_equal():
    table = as_text(pd.DataFrame({"lpips_a": [0.5], "lpips a": [math.nan]}, index=pd.Index(["m"], name="model")))
    assert table.columns.tolist() == ["model", "LPIPS a", "lpips a"]
    assert table.to_numpy().tolist() == [["m", "0.500", "-"]]
