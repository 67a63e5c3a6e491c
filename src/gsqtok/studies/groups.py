"""More groups at fixed channels: better, or only more bits?"""

from __future__ import annotations

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, better
from gsqtok.studies.table import Table, known

D = {"smoke": 4, "small": 16, "paper": 16}
CODEBOOK_SIZE = {"smoke": 16, "small": 4096, "paper": 262_144}
FACTORS = (8, 16, 32)
EQUAL_BITS = {"smoke": (4,), "small": (16, 32), "paper": (16, 32)}  # a position
LARGEST = 18  # bits of a codebook


def runs(scale: Scale) -> list[Run]:
    """G from 1 to D at one V and each factor; then, at f8, V chosen so that all spend the same bits."""
    dim, size = D[scale.settings], CODEBOOK_SIZE[scale.settings]
    powers = [2**i for i in range(dim.bit_length()) if 2**i <= dim]
    fixed = [
        Run({"held": "V", "f": f, "G": g, "d": dim // g, "V": size}, scale.gsq(g, dim // g, size, factor=f))
        for f in FACTORS
        for g in powers
    ]
    equal = [
        Run(
            {"held": f"{bits} bits", "f": 8, "G": g, "d": dim // g, "V": 2 ** (bits // g)},
            scale.gsq(g, dim // g, 2 ** (bits // g)),
        )
        for bits in EQUAL_BITS[scale.settings]
        for g in powers
        if bits % g == 0 and 1 <= bits // g <= LARGEST
    ]
    return fixed + equal


def findings(table: Table) -> list[Finding]:
    """Whether more groups help at equal V, and at equal bits."""
    found = []
    for held in table.values("held"):
        for f in table.values("f", held=held):
            groups = sorted(table.values("G", held=held, f=f))
            psnr = known((g, table.value("psnr", held=held, f=f, G=g)) for g in groups)
            claim = f"the most groups give better images than the fewest at f{f} and the same {held}"
            if len(psnr) < 2:
                found.append(Finding(claim, "not tested"))
                continue
            best = max(psnr, key=lambda g: psnr[g].mean)
            verdict = better(psnr[max(psnr)], psnr[min(psnr)])
            curve = ", ".join(f"G = {g}: {value.mean:.2f}" for g, value in psnr.items())
            found.append(Finding(claim, verdict, f"PSNR, dB: {curve}; the best is G = {best}"))
    one = known((f, table.value("psnr", held="V", f=f, G=1)) for f in table.values("f", held="V"))
    if len(one) > 1:
        because = "; ".join(f"f{f}: {value.mean:.2f} dB" for f, value in one.items())
        verdict = better(one[min(one)], one[max(one)])
        found.append(Finding("at G = 1 quality stalls as f grows", verdict, because))
    return found


STUDY = Study(
    name="groups",
    question="Does splitting the same channels into more groups give better images, or only more bits?",
    source="arXiv 2412.02632, the tables of groups at f8, f16, f32, which compare at equal V; equal bits are ours",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK),
    plots=(
        Plot("equal-v", "bits_per_pixel", "psnr", ("f",), log_x=True, only=(("held", "V"),)),
        Plot("groups", "G", "psnr", ("held", "f"), log_x=True),
    ),
    findings=findings,
    limitations="One seed a setting. At 64 px an f32 grid has four positions: images of another size may rank factors "
    "otherwise. Equal nominal bits are not equal entropies; the table has both.",
)
