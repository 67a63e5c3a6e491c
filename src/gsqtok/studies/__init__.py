"""The experiments of the paper and its open questions, as tables of runs that anyone can repeat."""

from importlib import import_module

_NAMES = ("codebook", "groups", "factor", "vocabulary", "precision", "methods", "isolate", "latency", "discriminator")
STUDIES = {name: import_module(f"gsqtok.studies.{name}").STUDY for name in (*_NAMES, "limits")}
"""Every study by name."""

__all__ = ["STUDIES"]
