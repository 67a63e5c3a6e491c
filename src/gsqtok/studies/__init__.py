"""The experiments of the paper and its open questions, as tables of runs that anyone can repeat."""

from importlib import import_module

_PAPER = ("codebook", "groups", "factor", "vocabulary", "precision", "methods", "isolate", "latency", "discriminator")
_NAMES = (*_PAPER, "official", "start", "scaling", "stability", "limits", "nested", "headtohead", "recipe")
STUDIES = {name: import_module(f"gsqtok.studies.{name}").STUDY for name in _NAMES}
"""Every study by name."""

__all__ = ["STUDIES"]
