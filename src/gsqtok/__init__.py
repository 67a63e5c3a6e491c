"""gsqtok: image tokenizers with Grouped Spherical Quantization (arXiv 2412.02632).

Names are loaded on first use, so that importing the package costs nothing until a tokenizer is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gsqtok.available import explained

if TYPE_CHECKING:
    from gsqtok.data import load_image
    from gsqtok.evaluation import evaluate
    from gsqtok.quantizers import (
        GSQ,
        Quantizer,
        QuantizerOutput,
        build_quantizer,
        list_quantizers,
        register_quantizer,
    )
    from gsqtok.quantizers.planning import plan
    from gsqtok.tokenizer import CheckpointError, ImageTokenizer, TokenizerConfig
    from gsqtok.tokens import TokenDataset

__version__ = "0.1.0"

__all__ = [
    "GSQ",
    "CheckpointError",
    "ImageTokenizer",
    "Quantizer",
    "QuantizerOutput",
    "TokenDataset",
    "TokenizerConfig",
    "__version__",
    "build_quantizer",
    "evaluate",
    "list_quantizers",
    "load_image",
    "plan",
    "register_quantizer",
]
_HOMES = {
    **dict.fromkeys(("CheckpointError", "ImageTokenizer", "TokenizerConfig"), "tokenizer"),
    "TokenDataset": "tokens",
    "evaluate": "evaluation",
    "load_image": "data",
    "plan": "quantizers.planning",
}
_MODULES = {
    *("acceleration", "data", "discriminators", "evaluation", "export", "losses", "networks", "quantizers", "search"),
    *("tokenizer", "tokens", "training"),
}


def __getattr__(name: str) -> Any:
    home = name if name in _MODULES else _HOMES.get(name, "quantizers") if name in __all__ else None
    if home is not None:
        with explained():
            module = import_module(f"gsqtok.{home}")
            return module if name in _MODULES else getattr(module, name)
    raise AttributeError(f"module 'gsqtok' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
