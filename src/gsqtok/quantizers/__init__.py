"""Quantizers: one method, one file, one contract (``base.py``), one registry."""

from gsqtok.quantizers.base import Quantizer, QuantizerOptions, QuantizerOutput
from gsqtok.quantizers.bsq import BSQ
from gsqtok.quantizers.diveq import DiVeQ
from gsqtok.quantizers.ema_vq import EMAVQ
from gsqtok.quantizers.fixed_sphere import FibonacciSphere, Leech, RandomSphere
from gsqtok.quantizers.fsq import FSQ
from gsqtok.quantizers.fvq import FVQ
from gsqtok.quantizers.gsq import GSQ
from gsqtok.quantizers.ibq import IBQ
from gsqtok.quantizers.identity import Identity
from gsqtok.quantizers.lfq import LFQ
from gsqtok.quantizers.registry import (
    build_quantizer,
    list_quantizers,
    options_type,
    quantizer_options,
    register_quantizer,
)
from gsqtok.quantizers.residual_fsq import ResidualFSQ
from gsqtok.quantizers.residual_lfq import ResidualLFQ
from gsqtok.quantizers.rvq import RSQ, RVQ
from gsqtok.quantizers.simvq import SimVQ
from gsqtok.quantizers.vq import VQ

__all__ = [
    "BSQ",
    "EMAVQ",
    "FSQ",
    "FVQ",
    "GSQ",
    "IBQ",
    "LFQ",
    "RSQ",
    "RVQ",
    "VQ",
    "DiVeQ",
    "FibonacciSphere",
    "Identity",
    "Leech",
    "Quantizer",
    "QuantizerOptions",
    "QuantizerOutput",
    "RandomSphere",
    "ResidualFSQ",
    "ResidualLFQ",
    "SimVQ",
    "build_quantizer",
    "list_quantizers",
    "options_type",
    "quantizer_options",
    "register_quantizer",
]
