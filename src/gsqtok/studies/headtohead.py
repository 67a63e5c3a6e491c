"""GSQ and its rivals at equal bits and at length, at two down-sampling factors and four rates."""

from __future__ import annotations

from typing import Any

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, exceeds
from gsqtok.studies.table import Table, known, ranking

LONGER = 5  # times the scale's steps: 5,000 at the small scale
RATES = (0.14, 0.28, 0.56, 1.0)  # bits/px, about
SEEDED = (0.28, 0.56)  # rates with three seeds
# bits a position -> groups, bits of each
SPLIT = {9: (1, 9), 18: (2, 9), 36: (4, 9), 64: (4, 16), 72: (8, 9), 144: (16, 9), 256: (16, 16)}
BITS = {8: dict(zip(RATES, (9, 18, 36, 64), strict=True)), 16: dict(zip(RATES, (36, 72, 144, 256), strict=True))}
D = 8  # channels of a group with a codebook


def settings(bits: int) -> dict[str, tuple[int, dict[str, Any]]]:
    """Channels of the latent and options of every method at this number of bits a position."""
    groups, each = SPLIT[bits]
    book = {"groups": groups, "codebook_size": 2**each}
    channels = groups * D
    found: dict[str, tuple[int, dict[str, Any]]] = {
        "gsq shared": (channels, {"name": "gsq", **book}),
        "gsq separate": (channels, {"name": "gsq", **book, "codebooks": "separate"}),
        # UniTok (arXiv 2502.20321, section 3.2): a codebook for each chunk of the latent, both sides normalised
        "unitok": (channels, {"name": "gsq", **book, "codebooks": "separate", "output": "normalized"}),
        # MGVQ (arXiv 2507.07997): a Euclidean codebook for each group, and groups left out at random in training
        "mgvq": (channels, {"name": "gsq", **book, "codebooks": "separate", "norm": "none", "nested": "uniform"}),
        "gsq nested": (channels, {"name": "gsq", **book, "nested": "uniform", "nested_full": 0.5}),
        # WeTok (arXiv 2508.05599): LFQ in groups, the entropy of each taken by itself
        "wetok": (bits, {"name": "lfq", "groups": groups, "entropy_bits": each}),
        "bsq": (bits, {"name": "bsq", "groups": groups}),
        "fsq": (groups * (each // 3), {"name": "fsq", "groups": groups, "target_bits": float(each)}),
        "simvq": (channels, {"name": "simvq", **book}),
        "ema_vq": (channels, {"name": "ema_vq", **book}),
        "random_sphere": (channels, {"name": "random_sphere", **book}),
    }
    lattices = max(1, round(bits / 17.585))
    if abs(17.585 * lattices - bits) < 0.1 * bits:
        found["leech"] = (24 * lattices, {"name": "leech", "groups": lattices})
    return found


def runs(scale: Scale) -> list[Run]:
    """Every method at every rate and factor; three seeds at two of the rates."""
    steps, found = LONGER * scale.config.steps, []
    smoke = scale.name == "smoke"
    for factor, by_rate in BITS.items():
        for rate, bits in by_rate.items():
            if smoke and (factor, rate) != (8, 0.28):
                continue
            for seed in range(3 if rate in SEEDED and not smoke else 1):
                for method, (dim, quantizer) in settings(bits).items():
                    if smoke and method not in ("gsq shared", "gsq nested", "fsq"):
                        continue
                    config = scale.train(dim, quantizer, factor=factor, seed=seed, steps=steps)
                    found.append(Run({"f": factor, "rate": rate, "method": method, "seed": seed}, config))
        config = scale.train(32, {"name": "identity"}, factor=factor, steps=steps)
        found.append(Run({"f": factor, "rate": "none", "method": "identity", "seed": 0}, config))
    return found


def findings(table: Table) -> list[Finding]:
    """The ranking at each factor and rate, and whether GSQ's best form is ahead of the best rival."""
    found = []
    ours = ("gsq shared", "gsq separate", "gsq nested")
    for factor in table.values("f"):
        for rate in table.values("rate", f=factor):
            if rate == "none":
                continue
            setting = {"f": factor, "rate": rate}
            psnr = known((m, table.value("psnr", method=m, **setting)) for m in table.values("method", **setting))
            claim = f"a form of GSQ gives the best images at f{factor}, {rate} bits/px"
            of_us = [value for method, value in psnr.items() if method in ours]
            of_others = [value for method, value in psnr.items() if method not in ours]
            if not of_us or not of_others:
                found.append(Finding(claim, "not tested"))
                continue
            best, rival = (max(values, key=lambda value: value.mean) for values in (of_us, of_others))
            ceiling = table.value("psnr", f=factor, method="identity")
            gap = f"; no quantization {ceiling}" if ceiling else ""
            found.append(Finding(claim, exceeds(best, rival, 0.1), f"PSNR, dB: {ranking('psnr', psnr)}{gap}"))
    return found


STUDY = Study(
    name="headtohead",
    question="At length and at equal bits, which quantizer gives the best images, and where is that decided?",
    source="the paper's open question 3; the rivals are UniTok's, MGVQ's and WeTok's quantizers, FSQ, BSQ, SimVQ, "
    "EMA-VQ, fixed random directions and the Leech lattice",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK, "training_seconds"),
    plots=(
        Plot("psnr", "bits_per_pixel", "psnr", ("method",), panels="f", log_x=True),
        Plot("ssim", "bits_per_pixel", "ssim", ("method",), panels="f", log_x=True),
        Plot("entropy", "bits_per_pixel_entropy", "psnr", ("method",), panels="f", log_x=True),
    ),
    findings=findings,
    limitations="Each rival with its quantizer's settings in networks and a training that all share, not in its own. "
    "Leech has 17.6 bits a group: where no whole number of groups is within a tenth of the rate, it is left out.",
)
