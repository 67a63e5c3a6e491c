"""With what something was measured: versions, device, date."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import gsqtok

_LIBRARIES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "timm", "pillow", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions (null for what is not installed), device and date (UTC); ``command`` is for a caller to fill in."""
    return {
        "gsqtok": gsqtok.__version__,
        **{name: _version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "device": device_name(device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": None,
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """What a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() if device.type == "cpu" else device.type


def _processor() -> str:
    """The processor's name where the system tells, with the threads that torch uses."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} threads"
