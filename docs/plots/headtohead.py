"""What docs/results.md says of the study headtohead, and its plots; results.py writes the page.

python docs/plots/headtohead.py    # docs/images/headtohead.png, headtohead-fd.png
"""

from __future__ import annotations

from collections import Counter

from said import DOCS, FRECHET, Said, length, origin
from said import table as rows_of

from gsqtok.evaluation.report.metrics import text_of
from gsqtok.evaluation.report.plots import COLOURS, panels, png, style
from gsqtok.io import write_bytes
from gsqtok.studies.headtohead import (
    AFTERWARDS,
    BITS,
    CONTINUOUS,
    COST,
    LONGER_DECODER,
    OURS,
    SEEDED,
    by_method,
    rivals,
    settings,
)
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
        found = rivals(_means(table, "psnr", f, rate))
        for method, psnr in found.items():
            ahead.setdefault(method, []).append(psnr - found[YARDSTICK])
    return sorted(ahead, key=lambda method: -sum(ahead[method]) / len(ahead[method]))


def plot(table: Table, metric: str, methods: list[str]) -> bytes:
    """Dots: how far from the yardstick at the same factor and rate; lines: the standard deviation over seeds.

    PSNR in dB, other metrics in percent.
    """
    places = settings_of(table)
    with style():
        figure, axes = panels(len(places), in_a_row=4, share_y=True)
        for axis, (f, rate) in zip(axes, places, strict=True):
            level = table.value(metric, f=f, rate=rate, method=YARDSTICK)
            unit = 1.0 if metric == "psnr" else level.mean / 100
            axis.axvline(0, color="0.6", linewidth=1)
            for height, method in enumerate(reversed(methods)):
                if value := table.value(metric, f=f, rate=rate, method=method):
                    spread = value.spread / unit if value.seeds > 1 else None
                    colour = COLOURS[1] if method in OURS else COLOURS[0]
                    axis.errorbar((value.mean - level.mean) / unit, height, xerr=spread, fmt="o", color=colour)
            axis.set_title(f"f{f}, {rate} bits/px: {text_of(metric, level.mean)}{' dB' if metric == 'psnr' else ''}")
            axis.set_yticks(range(len(methods)), reversed(methods))
        said = "PSNR above gsq shared, dB" if metric == "psnr" else "Fréchet distance above gsq shared, percent"
        figure.supxlabel(f"{said}; orange: forms of GSQ")
        figure.set_size_inches(12, (0.26 * len(methods) + 0.7) * -(-len(places) // 4) + 0.3)
        return png(figure)


def section() -> str:
    """The section of docs/results.md; nothing while the study has not run."""
    if not (DOCS / "studies" / FOLDER / "results.json").exists():
        return ""
    said = Said("headtohead", "compact")
    table = said.table
    places, steps = settings_of(table), table.value("prior_steps").mean
    names = [*methods_of(table), AFTERWARDS, LONGER_DECODER, CONTINUOUS]
    return f"""### headtohead: GSQ and its rivals at equal bits
[All runs, with usage, entropy and every finding](studies/{FOLDER}/README.md): {length(table)}, measured on the
validation images of Tiny ImageNet; {origin(table)}. `{table.setting["command"]}`

{_said(said)}

![PSNR of each method beside gsq shared](images/headtohead.png)

PSNR, dB; ± is the standard deviation of two or three seeds, and without it there is one. A dash: not run, or there is
no such setting.

{_lines(table, "psnr", names, places)}

Fréchet distance in EfficientNet-Lite 1's features:

![Fréchet distance of each method beside gsq shared](images/headtohead-fd.png)

{_lines(table, FRECHET, names, places)}

Bits per pixel that the tokens cost under one small prior (10M parameters, {steps:.0f} steps, seed 0):

{_lines(table, COST, names, [place for place in places if table.value(COST, f=place[0], rate=place[1])])}"""


def _said(said: Said) -> str:
    """What the results say, and how many of the runs are done."""
    table = said.table
    places = settings_of(table)
    psnr, far, cost = ([_means(table, metric, *place) for place in places] for metric in ("psnr", FRECHET, COST))
    seeded = [f"at f{f}, {rate} bits/px" for f, rate in places if rate in SEEDED]
    afterwards = "latents learnt without a quantizer, and quantized afterwards, give better images"
    said.needs("not supported", *(f"{afterwards} {place}" for place in seeded))
    said.needs(
        "not supported",
        *(
            f"a form of GSQ gives the best images at f{f}, {rate} bits/px"
            for f, rate in places
            if table.value("psnr", f=f, rate=rate, method=YARDSTICK).seeds > 1
        ),
    )
    ahead = [max(of["simvq"], of["ema_vq"]) - of[YARDSTICK] for of in psnr]
    farther = [min(of["simvq"], of["ema_vq"]) / of[YARDSTICK] - 1 for of in far]
    least = Counter(min(rivals(of), key=of.__getitem__) for of in far).most_common()
    nested, separate = ([of[name] - of[YARDSTICK] for of in psnr if name in of] for name in OURS[:0:-1])
    rest = [of[CONTINUOUS] - max(rivals(of).values()) for of in psnr]
    lost = [of[LONGER_DECODER] - of[AFTERWARDS] for of in psnr if AFTERWARDS in of]
    cheap, low = places.index((8, 0.56)), places.index((8, 0.28))
    return f"""{_missing(table)} What they say:

- **By PSNR `ema_vq` or `simvq` is first at each of the {len(places)} settings**, {_span(ahead, ".1f")} dB ahead of
`gsq shared`.
- **By Fréchet distance neither is**: the least is that of {", ".join(f"`{name}` ({n})" for name, n in least)}.
The better of `ema_vq` and `simvq` is {_span(farther, "+.0%")} from `gsq shared`, and nearer to the originals at f8,
1 bit/px alone. Codewords on a sphere, learnt (`gsq`, `unitok`) or not (`leech`, `random_sphere`), keep more of what the
measuring network sees.
- **A codebook for each group** (`gsq separate`) changes the PSNR by {_span(separate, "+.2f")} dB. Groups left out at
random (`gsq nested`) cost {_span([-x for x in nested], ".2f")} dB with all groups decoded, more with more groups.
- **The rate costs, and not the straight-through gradient.** No quantization is {_span(rest, ".1f")} dB ahead of the
best, and no rate here hides that. But its latents, quantized afterwards, the decoder trained on, are
{_span(lost, ".1f")} dB behind those that were learnt through a quantizer and whose decoder was trained on likewise.
- **Cheap tokens say little.** `wetok` at f8, .56 bits/px costs {cost[cheap]["wetok"]:.3f} bits/px under the prior and
has {psnr[cheap]["wetok"]:.1f} dB; `gsq shared` at .28 costs {cost[low][YARDSTICK]:.3f} and has
{psnr[low][YARDSTICK]:.1f}."""


def _means(table: Table, metric: str, f: int, rate: float) -> dict[str, float]:
    """Of the methods that were measured."""
    return {method: value.mean for method, value in by_method(table, metric, {"f": f, "rate": rate}).items()}


def _span(values: list[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def _missing(table: Table) -> str:
    """How many runs are done, and which are not."""
    left = Counter("f{f}, {rate}, seed {seed}".format(**row.varied) for row in table.rows if row.state != "done")
    done = len(table.rows) - left.total()
    not_done = "; ".join(f"{n} of {place}" for place, n in left.items())
    return f"**{done} of {len(table.rows)} runs are done**{f'; not done: {not_done}' if left else ''}."


def _lines(table: Table, metric: str, names: list[str], places: list[tuple[int, float]]) -> str:
    """A row for each method, a column for each factor and rate; the best quantizer is bold where all were measured."""
    head = ["method", *(f"f{f}, {rate}" for f, rate in places)]
    rows = [[name.replace(CONTINUOUS, "no quantization")] for name in names]
    for f, rate in places:
        values = {name: table.value(metric, f=f, rate=rate, method=name) for name in names}
        means = rivals(_means(table, metric, f, rate))
        best = (max if metric == "psnr" else min)(means, key=means.__getitem__)
        all_measured = means.keys() == settings(BITS[f][rate]).keys()
        for row, name in zip(rows, names, strict=True):
            text = text_of(metric, values[name].mean, values[name].spread)
            row.append(f"**{text}**" if name == best and all_measured else text)
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    return rows_of(head, rows)


if __name__ == "__main__":
    results = Said("headtohead", "compact").table
    for drawn, file in (("psnr", "headtohead"), (FRECHET, "headtohead-fd")):
        write_bytes(DOCS / f"images/{file}.png", plot(results, drawn, methods_of(results)))
