"""What docs/results.md says of the study headtohead, and its picture; results.py writes the page.

python docs/plots/headtohead.py    # docs/images/headtohead.png
"""

from __future__ import annotations

from pathlib import Path

from gsqtok.evaluation.report.metrics import text_of
from gsqtok.evaluation.report.plots import COLOURS, panels, png, style
from gsqtok.io import write_bytes
from gsqtok.studies.headtohead import AFTERWARDS, COST, LONGER_DECODER, NO_RIVALS, OURS
from gsqtok.studies.table import Table

DOCS = Path(__file__).parents[1]
FOLDER = "headtohead-compact"
FRECHET = "frechet_distance_tf_efficientnet_lite1"
YARDSTICK = "gsq shared"


def settings_of(table: Table) -> list[tuple[int, float]]:
    """Each factor and rate at which the yardstick was measured."""
    places = [(f, rate) for f in table.values("f") for rate in table.values("rate", f=f)]
    return [(f, rate) for f, rate in places if table.value("psnr", f=f, rate=rate, method=YARDSTICK)]


def methods_of(table: Table) -> list[str]:
    """The quantizers, the best first: by the mean of their distances to the yardstick in PSNR."""
    ahead: dict[str, list[float]] = {}
    for f, rate in settings_of(table):
        level = table.value("psnr", f=f, rate=rate, method=YARDSTICK).mean
        for method in table.values("method", f=f, rate=rate):
            if method not in NO_RIVALS and (value := table.value("psnr", f=f, rate=rate, method=method)):
                ahead.setdefault(method, []).append(value.mean - level)
    return sorted(ahead, key=lambda method: -sum(ahead[method]) / len(ahead[method]))


def picture(table: Table) -> bytes:
    """Dots: PSNR above that of the yardstick at the same factor and rate; lines: the standard deviation over seeds."""
    methods, places = methods_of(table), settings_of(table)
    with style():
        figure, axes = panels(len(places), in_a_row=4, share_y=True)
        for axis, (f, rate) in zip(axes, places, strict=True):
            level = table.value("psnr", f=f, rate=rate, method=YARDSTICK)
            axis.axvline(0, color="0.6", linewidth=1)
            for height, method in enumerate(reversed(methods)):
                if value := table.value("psnr", f=f, rate=rate, method=method):
                    spread = value.spread if value.seeds > 1 else None
                    colour = COLOURS[1] if method in OURS else COLOURS[0]
                    axis.errorbar(value.mean - level.mean, height, xerr=spread, fmt="o", color=colour)
            axis.set_title(f"f{f}, {rate} bits/px: {level.mean:.1f} dB")
            axis.set_yticks(range(len(methods)), reversed(methods))
        figure.supxlabel("PSNR above gsq shared, dB; orange: forms of GSQ")
        figure.set_size_inches(12, (0.26 * len(methods) + 0.7) * -(-len(places) // 4) + 0.3)
        return png(figure)


def section() -> str:
    """The section of docs/results.md; nothing while the study has not run."""
    if not (DOCS / "studies" / FOLDER / "results.json").exists():
        return ""
    table = Table.load(DOCS / "studies" / FOLDER / "results.json")
    held, where = table.setting["first_run"], table.environment
    places = settings_of(table)
    names = [*methods_of(table), AFTERWARDS, LONGER_DECODER, "identity"]
    images = f"{held['steps']:,} steps of {held['batch_size']} images of {held['data']['size']} px"
    return f"""### headtohead: GSQ and its rivals at equal bits
[All runs, with usage, entropy and every finding](studies/{FOLDER}/README.md): {images}, measured on the validation
images of Tiny ImageNet; {where["device"]}, {where["date"][:10]}. `{table.setting["command"]}`

![PSNR of each method beside gsq shared](images/headtohead.png)

PSNR, dB; ± is the standard deviation of three seeds, and without it there is one seed:

{_lines(table, "psnr", names, places)}

Fréchet distance in EfficientNet-Lite 1's features:

{_lines(table, FRECHET, names, places)}

Bits per pixel that the tokens cost under one small prior (10M parameters, {_prior_steps(table)}):

{_lines(table, COST, names, [place for place in places if table.value(COST, f=place[0], rate=place[1])])}"""


def _lines(table: Table, metric: str, names: list[str], places: list[tuple[int, float]]) -> str:
    """A row for each method, a column for each factor and rate; the best quantizer of a column is bold."""
    head = ["method", *(f"f{f}, {rate}" for f, rate in places)]
    rows = [[name.replace("identity", "no quantization")] for name in names]
    for f, rate in places:
        values = {name: table.value(metric, f=f, rate=rate, method=name) for name in names}
        rivals = {name: value.mean for name, value in values.items() if value and name not in NO_RIVALS}
        best = (max if metric == "psnr" else min)(rivals, key=lambda name: rivals[name])
        for row, name in zip(rows, names, strict=True):
            text = text_of(metric, values[name].mean, values[name].spread if values[name].seeds > 1 else None)
            row.append(f"**{text}**" if name == best else text)
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] + ["--:"] * len(places), *rows])


def _prior_steps(table: Table) -> str:
    words = table.setting["command"].split()
    return f"{words[words.index('--prior-steps') + 1]} steps, seed 0" if "--prior-steps" in words else "seed 0"


if __name__ == "__main__":
    write_bytes(DOCS / "images/headtohead.png", picture(Table.load(DOCS / "studies" / FOLDER / "results.json")))
