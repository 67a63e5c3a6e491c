"""What the precision of the search does to usage and quality at few channels."""

from __future__ import annotations

from gsqtok.studies import gsq_study  # noqa: F401, which registers the quantizer
from gsqtok.studies.scale import Scale
from gsqtok.studies.study import QUALITY, Finding, Plot, Run, Study, better, exceeds, seeds
from gsqtok.studies.table import Table

SEARCHES: dict[str, dict[str, str]] = {
    **{search: {"name": "gsq_study", "search": search} for search in ("bf16", "float32")},
    "exact": {},
}
D = {"smoke": 4, "small": 16, "paper": 16}
CODEBOOK_SIZE = {"smoke": 16, "small": 65_536, "paper": 262_144}
OTHER_SIZES: dict[str, tuple[int, ...]] = {"smoke": (), "small": (1024,), "paper": (8192, 65_536)}  # where d is 2 or 4


def runs(scale: Scale) -> list[Run]:
    """Every search at d = 1, 2, 4, 8 (float32 from one seed); bf16 against exact at other V."""
    dim, size = D[scale.settings], CODEBOOK_SIZE[scale.settings]
    settings = [(d, size, search) for d in (1, 2, 4, 8) for search in SEARCHES if d <= dim]
    settings += [(d, v, search) for v in OTHER_SIZES[scale.settings] for d in (2, 4) for search in ("bf16", "exact")]
    return [
        Run(
            {"G": dim // d, "d": d, "V": v, "search": search, "seed": seed},
            scale.gsq(dim // d, d, v, options=SEARCHES[search], seed=seed),
        )
        for seed in seeds(scale)
        for d, v, search in settings
        if search != "float32" or seed == 0
    ]


def findings(table: Table) -> list[Finding]:
    """Usage and quality of the exact search against bf16, for each d and V."""
    found = []
    for d in table.values("d"):
        for size in table.values("V", d=d):
            where = f"at d = {d}, V = {size:,}"
            usage, low_usage = (table.value("usage", d=d, V=size, search=search) for search in ("exact", "bf16"))
            because = f"{low_usage.mean:.2%} against {usage.mean:.2%} of the codewords"
            verdict = exceeds(usage, low_usage, 0.1 * usage.mean)
            found.append(Finding(f"rounding to bf16 makes the usage fall {where}", verdict, because))
            psnr, low_psnr = (table.value("psnr", d=d, V=size, search=search) for search in ("exact", "bf16"))
            claim = f"the exact search gives better images than bf16 {where}"
            found.append(Finding(claim, better(psnr, low_psnr), f"{low_psnr} against {psnr} dB"))
    return found


STUDY = Study(
    name="precision",
    question="Is the fall of codebook usage at few channels, which the paper reports for d <= 4, a property of groups "
    "or of a search in bf16? Does the exact search give better images?",
    source="arXiv 2412.02632, usage at 4 x 4, 8 x 2, 16 x 1 (62%, 47%, 0.5%); the exact search is ours",
    runs=runs,
    metrics=("usage", "perplexity", *QUALITY, "bits_per_pixel_entropy", "spherical_error"),
    plots=(
        Plot("usage", "d", "usage", ("search",), panels="V", log_x=True),
        Plot("psnr", "d", "psnr", ("search",), panels="V", log_x=True),
    ),
    findings=findings,
    limitations="Usage is counted on the validation images. float32 is torch's matrix product without TF32; the "
    "paper's runs are under bf16 autocast, as `search: bf16` here.",
)
