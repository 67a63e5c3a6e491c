"""The experiments of the paper and its open questions, as tables of runs that anyone can repeat."""

from gsqtok.studies import (
    codebook,
    discriminator,
    factor,
    groups,
    isolate,
    latency,
    limits,
    methods,
    precision,
    vocabulary,
)

STUDIES = {
    module.STUDY.name: module.STUDY
    for module in (
        codebook,
        groups,
        factor,
        vocabulary,
        precision,
        methods,
        isolate,
        latency,
        discriminator,
        limits,
    )
}
"""Every study by name."""

__all__ = ["STUDIES"]
