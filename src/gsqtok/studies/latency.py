"""What normalising and searching cost: GSQ against plain vector quantization."""

from __future__ import annotations

from typing import Any

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import Finding, Plot, Run, Study, judge
from gsqtok.studies.table import Table, Value

BATCHES = {"smoke": (1, 2), "small": (1, 4, 16, 64, 256), "paper": (1, 4, 16, 64, 256)}
SIZES = {"smoke": (16,), "small": (8192, 262_144), "paper": (8192, 262_144)}


def runs(scale: Scale) -> list[Run]:
    """GSQ, GSQ without its norm and VQ at every batch size."""
    kinds: dict[str, dict[str, Any]] = {
        "gsq": {"name": "gsq"},
        "gsq without norm": {"name": "gsq", "norm": "none"},
        "vq": {"name": "vq"},
    }
    return [
        Run(
            {"quantizer": kind, "V": size, "batch": batch},
            scale.train(8, options | {"groups": 1, "codebook_size": size}),
            batch=batch,
        )
        for size in SIZES[scale.settings]
        for kind, options in kinds.items()
        for batch in BATCHES[scale.settings]
    ]


def findings(table: Table) -> list[Finding]:
    """The share of the normalisation in the time, at the smallest and the largest batch."""
    found = []
    for size in table.values("V"):
        because, ratios = [], []
        for batch in table.values("batch"):
            ours, plain = (table.value("quantizer_ms", quantizer=q, V=size, batch=batch) for q in ("gsq", "vq"))
            share = table.value("quantizer_share", quantizer="gsq", V=size, batch=batch)
            if ours and plain:
                ratios.append(Value(ours.mean / plain.mean))
                because.append(
                    f"batch {batch}: {ours.mean:.3g} against {plain.mean:.3g} ms ({share.mean:.1%} of encoding)"
                )
        claim = f"l2 normalisation costs little beside plain VQ (under 1.5 times its time at V = {size:,})"
        verdict = judge(all(ratio.mean < 1.5 for ratio in ratios), *ratios)
        found.append(Finding(claim, verdict, "; ".join(because)))
    return found


STUDY = Study(
    name="latency",
    question="What does GSQ's normalised lookup cost beside plain vector quantization, alone and in a whole tokenizer?",
    source="arXiv 2412.02632 leaves the cost of normalisation over batch sizes open",
    runs=runs,
    metrics=("quantizer_ms", "quantizer_step_ms", "encode_ms", "decode_ms", "quantizer_share", "quantizer_memory_mib"),
    plots=(
        Plot("quantizer", "batch", "quantizer_ms", ("quantizer",), panels="V", log_x=True, log_y=True),
        Plot("encode", "batch", "encode_ms", ("quantizer",), panels="V", log_x=True, log_y=True),
    ),
    findings=findings,
    limitations="Networks of this scale's width: wider ones make the quantizer's share smaller. Each call is waited "
    "for, so that small batches show the launching of kernels.",
)
