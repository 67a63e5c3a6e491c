"""All quantizers at equal bits."""

from __future__ import annotations

from typing import Any

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study
from gsqtok.studies.table import Table

_ONE_CODEBOOK = ("gsq", "vq", "ema_vq", "random_sphere")
_RESIDUAL = ("rvq", "rsq")
_BINARY = ("lfq", "bsq")

# bits a position -> method -> options of build_quantizer
SETTINGS: dict[int, dict[str, dict[str, Any]]] = {
    18: {
        **{method: {"dim": 8, "groups": 1, "codebook_size": 2**18} for method in _ONE_CODEBOOK},
        **{method: {"dim": 8, "stages": 2, "codebook_size": 2**9} for method in _RESIDUAL},
        "fsq": {"dim": 6, "levels": [8] * 6},
        **{method: {"dim": 18} for method in _BINARY},
        "leech": {"dim": 24},
    },
    36: {
        **{method: {"dim": 16, "groups": 2, "codebook_size": 2**18} for method in _ONE_CODEBOOK},
        **{method: {"dim": 8, "stages": 4, "codebook_size": 2**9} for method in _RESIDUAL},
        "fsq": {"dim": 12, "groups": 2, "levels": [8] * 6},
        **{method: {"dim": 36, "groups": 2} for method in _BINARY},
        "leech": {"dim": 48, "groups": 2},
    },
    64: {
        **{method: {"dim": 32, "groups": 4, "codebook_size": 2**16} for method in _ONE_CODEBOOK},
        **{method: {"dim": 8, "stages": 8, "codebook_size": 2**8} for method in _RESIDUAL},
        "fsq": {"dim": 24, "groups": 4, "target_bits": 16},
        **{method: {"dim": 64, "groups": 4} for method in _BINARY},
        "leech": {"dim": 96, "groups": 4},
    },
}
SMOKE = {
    8: {
        "gsq": {"dim": 4, "groups": 2, "codebook_size": 16},
        "vq": {"dim": 4, "groups": 2, "codebook_size": 16},
        "fsq": {"dim": 4, "levels": [4] * 4},
    }
}


def runs(scale: Scale) -> list[Run]:
    """Every method at every number of bits, trained and timed; and no quantization, the ceiling."""
    settings = SMOKE if scale.name == "smoke" else SETTINGS
    trained, timed = [], []
    for bits, methods in settings.items():
        for method, options in methods.items():
            options = dict(options)
            config = scale.train(options.pop("dim"), {"name": method} | options)
            trained.append(Run({"run": "trained", "bits": bits, "method": method}, config))
            timed.append(Run({"run": "timed", "bits": bits, "method": method}, config, scale.config.batch_size))
    identity = scale.train(16, {"name": "identity"})
    return [*trained, Run({"run": "trained", "bits": "none", "method": "identity"}, identity), *timed]


def findings(table: Table) -> list[Finding]:
    """Where GSQ stands at each number of bits."""
    found = []
    for bits in table.values("bits"):
        values = {m: table.value("psnr", run="trained", bits=bits, method=m) for m in table.values("method", bits=bits)}
        known = {m: v.mean for m, v in values.items() if v is not None}
        if bits == "none":
            continue
        claim = f"GSQ gives the best pictures at {bits} bits a position"
        if "gsq" not in known or len(known) < 2:
            found.append(Finding(claim, "not tested", ""))
            continue
        ranked = sorted(known, key=known.get, reverse=True)
        best_other = next(m for m in ranked if m != "gsq")
        gap = known["gsq"] - known[best_other]
        verdict = "supported" if gap > 0.1 else "not supported" if gap < -0.1 else "undecided"
        found.append(Finding(claim, verdict, "PSNR, dB: " + ", ".join(f"{m} {known[m]:.2f}" for m in ranked)))
    return found


STUDY = Study(
    name="methods",
    question="Which quantizer gives the best pictures at equal bits, and at what cost?",
    source="arXiv 2412.02632 compares GSQ with FSQ and RVQ at equal V; it leaves the comparison at equal bits open",
    runs=runs,
    figures=(*QUALITY, *CODEBOOK, "quantizer_ms", "quantizer_step_ms", "quantizer_memory_mib", "training_memory_gib"),
    plots=(
        Plot("psnr", "bits_per_pixel", "psnr", ("method",), log_x=True, only=(("run", "trained"),)),
        Plot("ssim", "bits_per_pixel", "ssim", ("method",), log_x=True, only=(("run", "trained"),)),
    ),
    findings=findings,
    silent="One seed a setting, and each method with its defaults and its usual number of channels: tuning may move "
    "any of them. leech has 17.6 bits a group, and four of its groups have 70.3.",
)
