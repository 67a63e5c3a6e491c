"""What docs/results.md says of the study headtohead, and its plot; results.py writes the page.

python docs/plots/headtohead.py    # docs/images/headtohead.png
"""

from __future__ import annotations

from said import DOCS, FRECHET, Said, length, origin
from said import table as rows_of

from gsqtok.evaluation.report.metrics import text_of
from gsqtok.evaluation.report.plots import COLOURS, panels, png, style
from gsqtok.io import write_bytes
from gsqtok.studies.headtohead import AFTERWARDS, BITS, COST, LONGER_DECODER, NO_RIVALS, OURS, settings
from gsqtok.studies.table import Table

FOLDER = "headtohead-compact"
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


def plot(table: Table) -> bytes:
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
    table = Said("headtohead", "compact").table
    places, steps = settings_of(table), table.value("prior_steps").mean
    names = [*methods_of(table), AFTERWARDS, LONGER_DECODER, "identity"]
    return f"""### headtohead: GSQ and its rivals at equal bits
[All runs, with usage, entropy and every finding](studies/{FOLDER}/README.md): {length(table)}, measured on the
validation images of Tiny ImageNet; {origin(table)}. `{table.setting["command"]}`

{_said(table)}

![PSNR of each method beside gsq shared](images/headtohead.png)

PSNR, dB; ± is the standard deviation of two or three seeds, and without it there is one. A dash: not run, or there is
no such setting.

{_lines(table, "psnr", names, places)}

Fréchet distance in EfficientNet-Lite 1's features:

{_lines(table, FRECHET, names, places)}

Bits per pixel that the tokens cost under one small prior (10M parameters, {steps:.0f} steps, seed 0):

{_lines(table, COST, names, [place for place in places if table.value(COST, f=place[0], rate=place[1])])}"""


def _said(table: Table) -> str:
    """What the results of f8 say so far."""

    def of(metric: str, rate: float) -> dict[str, float]:
        methods = table.values("method", f=8, rate=rate)
        return {method: table.value(metric, f=8, rate=rate, method=method).mean for method in methods}

    done = sum(row.state == "done" for row in table.rows)
    psnr, far, cost = (of(metric, 0.56) for metric in ("psnr", FRECHET, COST))
    highest, lower, lower_cost = of("psnr", 1.0), of("psnr", 0.28), of(COST, 0.28)
    ours, nothing = psnr[YARDSTICK], psnr["identity"]
    return f"""**{done} of {len(table.rows)} runs so far**: f8 alone, and not all of its seeds. What they say:

- **PSNR and Fréchet distance rank the methods differently.** At .56 bits/px `simvq` and `ema_vq` are
{psnr["simvq"] - ours:.1f} and {psnr["ema_vq"] - ours:.1f} dB ahead of `gsq shared`, with a distance of
{far["simvq"]:.0f} and {far["ema_vq"]:.0f} where `gsq shared` has {far[YARDSTICK]:.0f}, `gsq separate`
{far["gsq separate"]:.0f} and `leech` {far["leech"]:.0f}. At 1 bit/px `ema_vq` is ahead in both.
- **Most quantizers of one rate are alike**: at .56 bits/px eight lie within
{psnr["simvq"] - psnr["random_sphere"]:.1f} dB. `wetok` and `bsq` are behind at every rate, `mgvq`
at all but the lowest.
- **The rate costs, and not the straight-through gradient**, as far as one seed tells. No quantization has
{nothing:.1f} dB: {nothing - psnr["simvq"]:.1f} more than the best at .56 bits/px,
{highest["identity"] - highest["ema_vq"]:.1f} more at 1. But its latents, quantized afterwards, the decoder trained on,
have {psnr[AFTERWARDS]:.1f} dB, less than those that were learnt through a quantizer ({psnr[LONGER_DECODER]:.1f}).
- **Cheap tokens say little.** `wetok` at .56 bits/px costs {cost["wetok"]:.3f} bits/px under the prior and has
{psnr["wetok"]:.1f} dB; `gsq shared` at .28 costs {lower_cost[YARDSTICK]:.3f} and has {lower[YARDSTICK]:.1f}."""


def _lines(table: Table, metric: str, names: list[str], places: list[tuple[int, float]]) -> str:
    """A row for each method, a column for each factor and rate; the best quantizer is bold where all were measured."""
    head = ["method", *(f"f{f}, {rate}" for f, rate in places)]
    rows = [[name.replace("identity", "no quantization")] for name in names]
    for f, rate in places:
        values = {name: table.value(metric, f=f, rate=rate, method=name) for name in names}
        rivals = {name: value.mean for name, value in values.items() if value and name not in NO_RIVALS}
        best = (max if metric == "psnr" else min)(rivals, key=lambda name: rivals[name])
        all_measured = rivals.keys() == settings(BITS[f][rate]).keys()
        for row, name in zip(rows, names, strict=True):
            text = text_of(metric, values[name].mean, values[name].spread)
            row.append(f"**{text}**" if name == best and all_measured else text)
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    return rows_of(head, rows)


if __name__ == "__main__":
    write_bytes(DOCS / "images/headtohead.png", plot(Said("headtohead", "compact").table))
