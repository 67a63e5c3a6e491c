"""Quantizers: one method, one file, one contract (``base.py``), one registry."""

from gsqtok.quantizers.base import Quantizer, QuantizerOutput
from gsqtok.quantizers.gsq import GSQ
from gsqtok.quantizers.registry import build_quantizer, list_quantizers, register_quantizer

__all__ = ["GSQ", "Quantizer", "QuantizerOutput", "build_quantizer", "list_quantizers", "register_quantizer"]
