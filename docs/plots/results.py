"""Write what docs/results.md and docs/paper.md say of the studies: python docs/plots/results.py

Every number there comes from the results.json of a study. A sentence that says which way they point names the study's
own verdict first (`Said.needs`): when the results change their verdict, this script stops until the sentence is
rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from textwrap import fill
from typing import Any

from headtohead import section as headtohead
from results_256 import nested, scaling
from said import DOCS, FRECHET, Said, length, noise, origin, spreads, table, trained_results

from gsqtok.io import write_bytes
from gsqtok.studies import STUDIES
from gsqtok.studies.discriminator import OFFICIAL_STYLEGAN
from gsqtok.studies.page import results_table
from gsqtok.studies.study import better
from gsqtok.studies.table import Table

BEGIN, END = "<!-- studies: written by docs/plots/results.py -->\n", "<!-- end of studies -->\n"
ORDER = (
    "precision",
    "groups",
    "codebook",
    "methods",
    "latency",
    "vocabulary",
    "factor",
    "isolate",
    "limits",
    "discriminator",
)


def introduction() -> str:
    dates = [Table.load(DOCS / f"studies/{name}-small/results.json").environment for name in ORDER]
    steps = {name: Said(name).table.setting["first_run"]["steps"] for name in ORDER}
    (usual,) = {count for name, count in steps.items() if name != "discriminator"}
    found = spreads("psnr", False)
    rest = "; ".join(
        f"{title} {noise(metric, True):.0%}"
        for title, metric in (
            ("usage", "usage"),
            ("Fréchet distances", FRECHET),
            ("entropies", "bits_per_pixel_entropy"),
        )
    )
    devices = sorted({device for where in dates for device in where["device"].split(" and ")})
    return f"""`gsqtok study` ([how](studies.md)): Tiny ImageNet at 64 px, a model of about 4M parameters, {usual} steps of 128 images
(2.7 epochs), bf16, {", ".join(devices)} (each page says which), {min(d["first_date"][:10] for d in dates)} to {max(d["date"][:10] for d in dates)}. So short
a training says what the mechanisms do, not what they are worth at its end. rFID is not among the metrics: the Fréchet
distance (FD) is taken in EfficientNet-Lite 1's features, which see 64 px images.

**What one seed decides.** In the {len(found)} settings of `precision` and `methods` with three seeds their standard deviation is {sqrt(sum(x * x for x in found) / len(found)):.2f} dB (root mean square;
at most {max(found):.2f}). Two runs that differ in their seed alone are therefore rarely more than {noise("psnr", False):.2f} dB apart (twice the
standard deviation of a difference; {rest} of the value). A smaller gap between single seeds is called
undecided, whichever way it points. [Every claim of the paper, with its verdict](claims.md)."""


def precision() -> str:
    said = Said("precision")
    rows = []
    for d, size in ((1, 65536), (2, 65536), (4, 65536), (8, 65536), (2, 1024), (4, 1024)):
        at = {"d": d, "V": size}
        searches = ("bf16", "float32", "exact")
        usage = [
            f"{said.mean('usage', **at, search=s):.1%}" if said.table.value("usage", **at, search=s) else ""
            for s in searches
        ]
        bits = said.number("bits_per_pixel", "g", **at, search="exact", seed=0)
        rows.append([f"{16 // d} x {d}, {size:,}", bits, *usage, *(said.psnr(**at, search=s) for s in searches)])
    said.needs("supported", *(f"rounding to bf16 makes the usage fall at d = {d}, V = 65,536" for d in (1, 2, 4)))
    said.needs("undecided", *(c for c in said.verdicts if c.startswith("the exact search gives better images")))
    two = {"d": 2, "V": 65536}
    entropy = [said.mean("bits_per_pixel_entropy", **two, search=s) for s in ("bf16", "exact")]
    return f"""### precision: is the fall of usage at few channels a property of groups, or of the search?
Of the search. [All runs](studies/precision-small/README.md), D = 16, three seeds (float32 one):

{table(["G x d, V", "bits/px", "usage: bf16", "float32", "exact", "PSNR, dB: bf16", "float32", "exact"], rows)}

- **The paper's fall of usage at d <= 4 is not a property of groups** (46.8% at 8 x 2 and 0.5% at 16 x 1, V = 262,144): rounding
  to bf16 makes it, and with the exact search nearly every codeword is used at d = 1 and 2.
- **The images are no better for it** in this training: all differences are within the seeds'. A model whose search
  confuses 65,536 codewords trains as well with the hundreds that it can tell apart, at less than half the entropy
  ({entropy[0]:.2f} against {entropy[1]:.2f} bits/px at 8 x 2). What those codewords are worth later in a training, this does not say.
- Equal V is not equal bits: 16 x 1 spends 8 times the bits of 2 x 8 for {said.mean("psnr", d=1, search="exact") - said.mean("psnr", d=8, search="exact"):.1f} dB."""


def groups() -> str:
    said = Said("groups")
    rows = []
    for held, f in (("V", 8), ("V", 16), ("V", 32), ("16 bits", 8), ("32 bits", 8)):
        cells = []
        for g in (1, 2, 4, 8, 16):
            at = {"held": held, "f": f, "G": g}
            psnr = said.psnr(**at)
            cells.append(f"{psnr} ({said.mean('bits_per_pixel', **at):.2g})" if psnr else "")
        rows.append([f"f{f}, V = 4,096" if held == "V" else f"f{f}, {held} a position", *cells])
    same = "the most groups give better images than the fewest at f{} and the same {}"
    said.needs("supported", *(same.format(f, "V") for f in (8, 16, 32)), "at G = 1 quality stalls as f grows")
    said.needs("not supported", same.format(8, "16 bits"), same.format(8, "32 bits"))
    lost = [
        said.mean("psnr", held=held, G=fewest) - said.mean("psnr", held=held, G=16)
        for held, fewest in (("16 bits", 1), ("32 bits", 2))
    ]
    flat = max(said.mean("psnr", held="16 bits", G=g) for g in (1, 2)) - said.mean("psnr", held="16 bits", G=8)
    dips = [said.mean("psnr", held="V", f=f, G=4) - said.mean("psnr", held="V", f=f, G=8) for f in (8, 16, 32)]
    return f"""### groups: better images, or only more bits?
More bits, at this scale. [All runs](studies/groups-small/README.md), D = 16, one seed:

{table(["PSNR, dB (bits/px)", "G = 1", "2", "4", "8", "16"], rows)}

- **At the same V, 16 groups give better images than one, as the paper says; at the same bits they give worse ones**: {lost[0]:.1f} dB
  lost from 1 to 16 groups at 16 bits, {lost[1]:.1f} dB from 2 to 16 at 32 bits. From 1 to 8 groups at 16 bits the images
  are within {flat:.2f} dB of each other, which one seed does not tell apart. What the paper's comparison at equal V shows is
  that more bits help. What groups are for stays: 32 bits in one group would be a codebook of four thousand million.
- G = 8 (d = 2) lies {min(dips):.1f} to {max(dips):.1f} dB below G = 4 (d = 4) at each of three factors, with twice its bits; more than a seed
  does at f8 alone.
- **The paper's break condition at G = 1 came true**: {", ".join(said.psnr(held="V", f=f, G=1) for f in (8, 16, 32))} dB as f goes from 8 to 32. At f32 it is
  collapse: perplexity {said.mean("perplexity", held="V", f=32, G=1):.0f} of 4,096; from two groups on there is none.

![PSNR over bits per pixel at equal V](studies/groups-small/equal-v.png)"""


def codebook() -> str:
    said = Said("codebook")
    sizes = (8192, 262_144)
    rows = [
        [
            f"{init}, {norm}",
            *(
                f"{said.psnr(V=v, init=init, norm=norm)} / {said.mean('usage', V=v, init=init, norm=norm):.2%}"
                for v in sizes
            ),
        ]
        for init in ("uniform", "sphere")
        for norm in ("none", "l1", "l2")
    ]
    where = [f"(V = {size:,}, d = 8)" for size in sizes]
    said.needs("supported", *(f"with a uniform start: images are worse {x}" for x in where))
    said.needs("supported", f"with a uniform start: usage falls {where[1]}", f"without l2: usage falls {where[1]}")
    said.needs(
        "undecided",
        f"with a uniform start: usage falls {where[0]}",
        *(f"without l2: images are worse {x}" for x in where),
    )
    lost = [
        said.mean("psnr", V=v, init="sphere", norm="l2") - said.mean("psnr", V=v, init="uniform", norm="l2")
        for v in sizes
    ]
    ahead = [
        said.mean("psnr", V=v, init="sphere", norm="none") - said.mean("psnr", V=v, init="uniform", norm="none")
        for v in sizes
    ]
    return f"""### codebook: what the spherical start and the l2 norm do at one group
[All runs](studies/codebook-small/README.md), G = 1, d = 8, one seed; PSNR, dB / usage:

{table(["start, norm", *(f"V = {size:,}" for size in sizes)], rows)}

- **With a uniform start images are worse**, by {lost[0]:.1f} and {lost[1]:.1f} dB. Usage falls for certain at V = 262,144 only; at 8,192 the fall is no
  larger than seeds make.
- **Without l2 usage falls at V = 262,144**; at 8,192 no fall shows. Images differ by less than seeds do at both.
- The start does most of it: a sphere without a norm is {ahead[0]:.1f} and {ahead[1]:.1f} dB ahead of a uniform start without one.
- The whole codebook is not in use with either V, as the paper has it after 100,000 steps: 500 steps are too few."""


def methods() -> str:
    said = Said("methods")
    names = [m for m in said.table.values("method") if m != "identity"]
    names.sort(key=lambda m: -said.mean("psnr", run="trained", bits=18, method=m))
    rows = []
    for name in names:
        cells = []
        for bits in (18, 36, 64):
            at = {"run": "trained", "bits": bits, "method": name}
            cells.append(f"{said.psnr(**at)} / {said.mean('ssim', **at):.3f}")
        steps = [f"{said.mean('quantizer_step_ms', run='timed', bits=bits, method=name):.1f}" for bits in (18, 36, 64)]
        rows.append([name, *cells, ", ".join(steps)])
    none = {"run": "trained", "method": "identity"}
    rows.append(["no quantization", f"{said.psnr(**none)} / {said.mean('ssim', **none):.3f}", "", "", ""])
    said.needs("undecided", *(f"GSQ gives better images than fsq at {bits} bits a position" for bits in (18, 36, 64)))
    for name in ("vq", "rvq"):
        said.needs(
            "supported", *(f"GSQ gives better images than {name} at {bits} bits a position" for bits in (18, 36, 64))
        )
    for bits in (18, 36, 64):
        first_four = [said.table.value("psnr", run="trained", bits=bits, method=name) for name in names[:4]]
        best, worst = (choose(first_four, key=lambda value: value.mean) for choose in (max, min))
        if better(best, worst) == "supported":
            raise SystemExit(f"methods: at {bits} bits the first four are apart: rewrite the text")
    collapsed = [said.mean("perplexity", bits=bits, method="vq") for bits in (18, 36, 64)]
    behind = [
        said.mean("psnr", bits=bits, method="gsq") - said.mean("psnr", bits=bits, method="lfq") for bits in (18, 36, 64)
    ]
    return f"""### methods: the best quantizer at equal bits
[All runs](studies/methods-small/README.md), with usage, perplexity and FD; each method with its defaults and its usual number
of channels, three seeds. PSNR, dB (mean ± standard deviation) / SSIM; the last column is a training step of the quantizer
alone (forward and backward of 8,192 positions), in ms:

{table(["", "18 bits, 0.28 bits/px", "36 bits, 0.56 bits/px", "64 bits, 1.0 bits/px", "ms at 18, 36, 64 bits"], rows)}

**Which of the first four is best, three seeds do not decide**: GSQ, EMA-VQ with revived codewords, FSQ and a codebook of *fixed*
random directions lie within seeds of each other at every rate. That they come this close says that, so early, the encoder
adapts to the codebook and not the other way round; a longer training may part them. What is beyond doubt is the rest:
plain VQ collapses (perplexity {min(collapsed):.0f} to {max(collapsed):.0f}), LFQ with its defaults stays {min(behind):.1f} to {max(behind):.1f} dB behind GSQ, and RVQ behind it, too.
`rsq` is RVQ with GSQ's sphere in each stage. leech has 17.6 bits a group, and four groups of it 70.3 bits.

![PSNR over bits per pixel, all methods](studies/methods-small/psnr.png)"""


def latency() -> str:
    said = Said("latency")
    rows = []
    ratios = {}
    for size in (8192, 262_144):
        cells = []
        for batch in (1, 4, 16, 64, 256):
            ours, theirs = (said.mean("quantizer_ms", V=size, batch=batch, quantizer=q) for q in ("gsq", "vq"))
            ratios[size, batch] = ours / theirs
            cells.append(f"{ours:.2f} / {theirs:.2f}")
        rows.append([f"V = {size:,}", *cells])
    claim = "l2 normalisation costs little beside plain VQ (under 1.5 times its time at V = {})"
    said.needs("supported", claim.format("8,192"), claim.format("262,144"))
    usual = sorted(ratios.values())
    return f"""### latency: what the norm costs
[All timings](studies/latency-small/README.md), d = 8, 8 x 8 latents an image; ms of GSQ's lookup / of plain VQ's:

{table(["batch", "1", "4", "16", "64", "256"], rows)}

GSQ's lookup takes {usual[0]:.2f} to {usual[-1]:.2f} times plain VQ's. At the largest batch it is
{said.mean("quantizer_share", quantizer="gsq", V=8192, batch=256):.0%} to {said.mean("quantizer_share", quantizer="gsq", V=262_144, batch=256):.0%} of encoding, in this small network; below that both are bound by the launching of kernels."""


def vocabulary() -> str:
    said = Said("vocabulary")
    sizes = said.table.values("V")
    rows = []
    for size in sizes:
        at = {"run": "trained", "V": size}
        bits = said.number("bits_per_pixel", ".2f", **at, d=8)
        cells = [f"{said.psnr(**at, d=d)} / {said.mean('perplexity', **at, d=d):,.0f}" for d in (4, 8, 16)]
        rows.append([f"{size:,} ({bits})", *cells])
    claim = "the largest codebook gives better images than the smallest at d = {}"
    said.needs(
        "supported",
        claim.format(8),
        claim.format(16),
        "at one group and the same V, 16 channels give worse images than 8",
    )
    said.needs("undecided", claim.format(4))
    gains = [said.mean("psnr", d=d, V=sizes[-1]) - said.mean("psnr", d=d, V=sizes[0]) for d in (4, 8, 16)]
    last = [said.mean("psnr", d=d, V=sizes[-1]) - said.mean("psnr", d=d, V=sizes[-2]) for d in (4, 8, 16)]
    memory = [row.metrics["training_memory_gib"] for row in said.table.rows_of(run="trained")]
    steps = {size: [said.mean("quantizer_step_ms", run="timed", V=size, d=d) for d in (4, 8, 16)] for size in sizes}
    below = [x for size in sizes[:-1] for x in steps[size]]
    return f"""### vocabulary: codebooks to four million codewords
[All runs](studies/vocabulary-small/README.md), G = 1, f8, one seed. PSNR, dB / perplexity:

{table(["V (bits/px)", "d = 4", "d = 8", "d = 16"], rows)}

- **Four million codewords are better than a thousand at d = 8 and 16**, by {gains[1]:.1f} and {gains[2]:.1f} dB; at d = 4 the gain of {gains[0]:.2f} dB is within what
  seeds do. From one to four million the images change by {min(last):+.2f} to {max(last):+.2f} dB: undecided.
- At the same V, 16 channels are worse than 8, as in the paper.
- Memory does not stand in the way: training takes {min(memory):.1f} to {max(memory):.1f} GiB in all. Nor does time: a step of the
  quantizer takes {min(below):.1f} to {max(below):.1f} ms up to a million codewords and {min(steps[sizes[-1]]):.1f} to {max(steps[sizes[-1]]):.1f} ms at four million (8,192 latents).
- Whether training is *stable* there, from every seed, is what [`stability`](studies.md) asks."""


def factor() -> str:
    said = Said("factor")
    rates: dict[float, dict[int, str]] = {}
    for row in said.table.rows:
        f, g = row.varied["f"], row.varied["G"]
        rates.setdefault(round(row.metrics["bits_per_pixel"], 4), {})[f] = f"{said.psnr(f=f, G=g)} ({g})"
    rows = [
        [f"{rate:.3f}", *(by_factor.get(f, "") for f in (8, 16, 32, 64))] for rate, by_factor in sorted(rates.items())
    ]
    pairs = ((8, 16), (16, 32), (32, 64))
    said.needs("supported", *(f"f{b} costs quality beside f{a} at equal bits" for a, b in pairs))
    mended = "four times the groups, at equal bits, make up for a part of what f{} loses to f{}"
    said.needs("supported", mended.format(32, 16))
    said.needs("undecided", mended.format(16, 8), mended.format(64, 32))
    shares, costs = [], []
    for a, b in pairs:
        for g in said.table.values("G", f=a):
            fine, same, equal = (said.mean("psnr", f=f, G=n) for f, n in ((a, g), (b, g), (b, 4 * g)))
            if equal == equal:
                costs.append(fine - equal)
                if same == same:
                    shares.append((equal - same) / (fine - same))
    usage = min(row.metrics["usage"] for row in said.table.rows if row.varied["f"] >= 32)
    return f"""### factor: how much down-sampling groups make up for
[All runs](studies/factor-small/README.md), d = 4, V = 4,096, one seed, PSNR in dB (groups):

{table(["bits/px", "f8", "f16", "f32", "f64"], rows)}

- **At equal bits each doubling of f costs {min(costs):.1f} to {max(costs):.1f} dB**, although usage is {usage:.1%} or more from f32 on: the bits are spent, the
  networks do not make use of them.
- **What groups make up for**: where f doubles and the groups stay, four times the groups win back {min(shares):.0%} to {max(shares):.0%} of the loss.
  From f16 to f32 that is more than a seed does; from f8 to f16 and from f32 to f64 one seed leaves it undecided.
- **f64 hardly learns** on a grid of a single position: its images are blobs of the right brightness. This scale says
  little about what f64 is for, large images."""


def isolate() -> str:
    said = Said("isolate")
    rows = []
    for norm in ("none", "l2"):
        for init in ("uniform", "sphere"):
            cells = [
                f"{said.psnr(init=init, norm=norm, G=g)} / {said.mean('usage', init=init, norm=norm, G=g):.2%}"
                for g in (1, 2, 4)
            ]
            rows.append([f"{init}, {norm}", *cells])
    said.needs("supported", *said.verdicts)
    plain = said.mean("psnr", init="uniform", norm="none", G=1)
    gains = [
        said.mean("psnr", **({"init": "uniform", "norm": "none", "G": 1} | change)) - plain
        for change in ({"init": "sphere"}, {"norm": "l2"}, {"G": 4})
    ]
    of_sphere = [said.mean("psnr", init="sphere", norm=norm, G=g) for norm in ("none", "l2") for g in (1, 2, 4)]
    return f"""### isolate: start, norm and decomposition, apart and together
[All runs](studies/isolate-small/README.md), 16 bits a position (0.25 bits/px), D = 16, one seed; PSNR, dB / usage:

{table(["start, norm", "1 x 16, V = 65,536", "2 x 8, V = 256", "4 x 4, V = 16"], rows)}

Each of the three alone mends the collapse of the first line: the start {gains[0]:+.1f} dB, the norm {gains[1]:+.1f}, four groups {gains[2]:+.1f}. **They do not
add up**: with a spherical start, whatever the groups and the norm, images are within {max(of_sphere) - min(of_sphere):.2f} dB of each other, less
than seeds do."""


def limits() -> str:
    said = Said("limits")
    said.needs("supported", *(c for c in said.verdicts if c.startswith("a trained codebook")))
    ceiling = said.mean("psnr", V="none")
    rows = [row for row in said.table.rows if row.varied["V"] != "none"]
    best = max(rows, key=lambda row: row.metrics["psnr"])
    fine = {"d": 2, "V": 65536}
    ratio = best.metrics["spherical_error"] / said.mean("spherical_error", **fine)
    return f"""### limits: towards lossless
[All runs](studies/limits-small/README.md), D = 16, V from 16 to a million at d = 2, 4, 8 and 16, one seed. The trained codebooks' error on the
sphere lies below that of a random code everywhere. **Images do not follow**: {best.metrics["psnr"]:.2f} dB at the best ({best.varied["G"]} x {best.varied["d"]},
V = {best.varied["V"]:,}, {best.metrics["bits_per_pixel"]:.2g} bits/px), {ceiling:.2f} without quantization, and {said.psnr(**fine)} dB at 8 x 2, V = 65,536, with an error {float(f"{ratio:.1g}"):,.0f} times
smaller. Beyond about 1 bit/px what limits these networks, so early, is not the quantizer."""


def discriminator() -> str:
    said = Said("discriminator")
    betas = ("0.5, 0.9", "0.9, 0.99")

    def cell(**at: Any) -> str:
        if not said.table.value(FRECHET, **at):
            return ", ".join(row.state for row in said.table.rows_of(**at))
        return f"{said.mean(FRECHET, **at):.0f} / {said.psnr(**at)} / {said.mean('ssim', **at):.3f}"

    rows = [["none", "", cell(discriminator="none")]]
    kinds = [(kind, pair) for kind in ("patch", "stylegan", "projected") for pair in ("NH", "HH")]
    tried = {row.varied["losses"] for row in said.table.rows_of(discriminator=OFFICIAL_STYLEGAN) if row.metrics}
    rows += [
        [f"{kind}, {pair}", *(cell(discriminator=kind, losses=pair, betas=b) for b in betas)]
        for kind, pair in [*kinds, *((OFFICIAL_STYLEGAN, pair) for pair in sorted(tried, reverse=True))]
    ]
    said.needs("supported", "PatchGAN is better at betas (0.9, 0.99) than at (0.5, 0.9), in PSNR")
    closer = "a {} discriminator brings reconstructions closer in features"
    said.needs("supported", closer.format("stylegan"))
    said.needs("undecided", closer.format("patch"), closer.format("projected"))
    said.needs("not supported", "with StyleGAN2's own discriminator training breaks (NaN)")
    better = [
        said.mean("psnr", discriminator=kind, losses=pair, betas=betas[1])
        - said.mean("psnr", discriminator=kind, losses=pair, betas=betas[0])
        for kind, pair in kinds
    ]
    fd = {
        kind: said.mean(FRECHET, discriminator=kind, losses="NH", betas=betas[1])
        for kind in ("patch", "stylegan", "projected")
    }
    lost = {
        kind: said.mean("psnr", discriminator="none")
        - said.mean("psnr", discriminator=kind, losses="NH", betas=betas[1])
        for kind in fd
    }
    none = said.mean(FRECHET, discriminator="none")
    bought = "; ".join(f"`{kind}` {none - fd[kind]:.0f} points for {lost[kind]:.1f} dB" for kind in fd)
    steps = said.table.setting["first_run"]["steps"]
    (nan,) = (f for f in STUDIES["discriminator"].findings(said.table) if "official code's" in f.claim)
    official = "" if nan.verdict == "not tested" else f"With that one (`{OFFICIAL_STYLEGAN}`) {nan.because}."
    return f"""### discriminator: which one, which losses, which betas
[All runs](studies/discriminator-small/README.md), **{steps:,} steps** (a discriminator works from step 300 on), D = 16, 4 x 4, V = 4,096, 0.75 bits/px, one
seed. N is the non-saturating, H the hinge loss; generator's first. FD (EfficientNet-Lite 1) / PSNR, dB / SSIM:

{table(["", f"betas ({betas[0]})", f"betas ({betas[1]})"], rows)}

- **Betas (0.9, 0.99) are better in PSNR, as the paper says**, by {min(better):.1f} to {max(better):.1f} dB in all six pairs.
- What FD costs with NH and those betas: {bought}. One seed decides it for `stylegan` only: FD moves by
  {noise(FRECHET, True):.0%} between seeds.
- **StyleGAN2's own discriminator gave no NaN**: none of its four runs had a step that was not finite. That says nothing of the paper's,
  which is another one: the official code blurs and averages, adds its skips unscaled, and has neither equalised learning
  rates nor minibatch deviation. {official}
  Theirs was seen at 128 px and batches of 256 after 1,000 steps; ours are {steps - 300} steps of it at
  64 px and batches of 128, with guards and losses in float32.
- The measuring network is a sister of the one that `projected` and the perceptual term look through, which favours them."""


def by_itself(folder: str) -> str:
    """A study as its page has it: the table of results, and each finding; nothing where no training of it is done."""
    found = trained_results(folder)
    if found is None:
        return ""
    study = STUDIES[found.study]
    told = [f for f in study.findings(found) if f.verdict != "not tested"]
    said = table(["claim", "verdict", "results"], [[f.claim, f.verdict, f.because] for f in told])
    return f"""### {study.name}: {study.question}
[All runs](studies/{folder}/README.md), {length(found)}, {origin(found)}:

{results_table(study, found)}

{said}"""


def section() -> str:
    parts: list[Callable[[], str]] = [
        precision, groups, codebook, methods, latency, vocabulary, factor, isolate, limits, discriminator
    ]  # fmt: skip
    texts = [
        introduction(),
        *(part() for part in parts),
        by_itself("start-small"),
        by_itself("stability-small"),
        headtohead(),
    ]
    texts += [
        "## Studies at 256 px",
        scaling(),
        nested(),
        by_itself("recipe-compact-256"),
    ]
    return "\n\n".join(["## Studies at the small scale", *filter(None, texts)]) + "\n\n"


def wrapped(text: str) -> str:
    """The text in lines of 120 characters, but for tables, headings and images."""
    blocks = []
    for block in text.split("\n\n"):
        if not block.startswith(("|", "#", "![")):
            items = re.split(r"\n(?=- )", block)
            block = "\n".join(
                fill(
                    " ".join(item.split()),
                    120,
                    subsequent_indent="  " * item.startswith("- "),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                for item in items
            )
        elif block.startswith("#") and "\n" in block:
            heading, rest = block.split("\n", 1)
            block = f"{heading}\n{wrapped(rest)}"
        blocks.append(block)
    return "\n\n".join(blocks)


def official() -> str:
    """The official recipe beside ours; nothing where it has not been run."""
    return by_itself("official-small") and f"{by_itself('official-small')}\n\n"


PAGES = {DOCS / "results.md": section, DOCS / "paper.md": official}


def filled(page: Path) -> str:
    """The page with what is said of the studies."""
    before, rest = page.read_text("utf-8").split(BEGIN)
    return f"{before}{BEGIN}{wrapped(PAGES[page]())}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for page in PAGES:
        write_bytes(page, filled(page).encode())
