"""All quantizers at equal bits."""

from __future__ import annotations

from typing import Any

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, better, judge, seeds
from gsqtok.studies.table import Table, known, ranking

_ONE_CODEBOOK = ("gsq", "vq", "ema_vq", "random_sphere")
_RESIDUAL = ("rvq", "rsq")
_BINARY = ("lfq", "bsq")
RIVALS = ("rvq", "fsq", "lfq")  # those that the paper's open question names
SAME_TIME = 1.1  # times another's, up to which a step takes no longer

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
SMOKE: dict[int, dict[str, dict[str, Any]]] = {
    8: {
        "gsq": {"dim": 4, "groups": 2, "codebook_size": 16},
        "vq": {"dim": 4, "groups": 2, "codebook_size": 16},
        "fsq": {"dim": 4, "levels": [4] * 4},
    }
}


def runs(scale: Scale) -> list[Run]:
    """Every method at every number of bits, trained from each seed and timed; and no quantization, the ceiling."""
    settings = SMOKE if scale.name == "smoke" else SETTINGS
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (bits, method, options) for bits, methods in settings.items() for method, options in methods.items()
    ]
    cases.append(("none", "identity", {"dim": 16}))
    trained, timed = [], []
    for seed in seeds(scale):
        for bits, method, options in cases:
            quantizer = {"name": method} | {name: value for name, value in options.items() if name != "dim"}
            config = scale.train(options["dim"], quantizer, seed=seed)
            varied = {"bits": bits, "method": method}
            trained.append(Run({"run": "trained", **varied, "seed": seed}, config))
            if seed == 0 and bits != "none":
                timed.append(Run({"run": "timed", **varied}, config, scale.config.batch_size))
    return [*trained, *timed]


def findings(table: Table) -> list[Finding]:
    """Where GSQ stands at each number of bits."""
    found = []
    for bits in table.values("bits"):
        if bits == "none":
            continue
        methods = table.values("method", bits=bits)
        psnr = known((m, table.value("psnr", run="trained", bits=bits, method=m)) for m in methods)
        claim = f"GSQ gives the best images at {bits} bits a position"
        if "gsq" not in psnr or len(psnr) < 2:
            found.append(Finding(claim, "not tested"))
            continue
        for method in ("vq", *RIVALS):
            other = psnr.get(method)
            verdict = better(psnr["gsq"], other) if other else "not tested"
            because = f"PSNR, dB: gsq {psnr['gsq']}, {method} {other}"
            found.append(Finding(f"GSQ gives better images than {method} at {bits} bits a position", verdict, because))
        best_other = max((value for method, value in psnr.items() if method != "gsq"), key=lambda value: value.mean)
        found.append(Finding(claim, better(psnr["gsq"], best_other), f"PSNR, dB: {ranking('psnr', psnr)}"))
        found.append(_speed(table, bits))
    return found


def _speed(table: Table, bits: int) -> Finding:
    """A training step of the quantizers alone."""
    claim = f"a training step of GSQ's quantizer takes no longer than those of {', '.join(RIVALS)} at {bits} bits"
    times = known((m, table.value("quantizer_step_ms", bits=bits, method=m)) for m in ("gsq", *RIVALS))
    if len(times) <= len(RIVALS):
        return Finding(claim, "not tested")
    no_longer = all(times["gsq"].mean <= SAME_TIME * times[method].mean for method in RIVALS)
    told = ", ".join(f"{method} {value.mean:.2f}" for method, value in times.items())
    return Finding(claim, judge(no_longer, *times.values()), f"ms: {told}")


STUDY = Study(
    name="methods",
    question="Which quantizer gives the best images at equal bits, and at what cost?",
    source="arXiv 2412.02632 compares GSQ with FSQ and RVQ at equal V; it leaves the comparison at equal bits open",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK, "quantizer_ms", "quantizer_step_ms", "quantizer_memory_mib", "training_memory_gib"),
    plots=(
        Plot("psnr", "bits_per_pixel", "psnr", ("method",), log_x=True, only=(("run", "trained"),)),
        Plot("ssim", "bits_per_pixel", "ssim", ("method",), log_x=True, only=(("run", "trained"),)),
    ),
    findings=findings,
    limitations="Each method with its defaults and its usual number of channels: tuning may move any of them. leech "
    "has 17.6 bits a group, and four of its groups have 70.3.",
)
