"""Networks whose features the distribution metrics look at.

The usual one is Inception v3 with the weights of the original FID (Heusel et al. 2017, arXiv 1706.08500) as
torch-fidelity restates it. Any network of timm will do where those weights are absent, or where one wants another
opinion; its metrics carry its name.

Features are float32 whatever precision the model ran in: autocast is off and TF32 is off, so that the metrics of two
models differ by the models alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gsqtok.io import one_line, sha256_of
from gsqtok.networks.backbone import hub_file, load_backbone

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_SPATIAL_CHANNELS = 7  # of the 17 x 17 map that sFID takes: 2023 values an image


@dataclass
class Features:
    """What a network says about a batch.

    Attributes:
        pooled: (B, D) float32.
        logits: (B, classes) float32, before the bias, for the Inception Score; None from other networks.
        spatial: (B, 2023) float32, for sFID; None from other networks.
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


class FeatureNetwork(Protocol):
    """What the metrics ask of a network.

    Attributes:
        suffix: what metrics' names end with, "" for Inception v3 with its usual weights.
        dim: D.
    """

    suffix: str
    dim: int

    def __call__(self, images: Tensor) -> Features:
        """uint8 (B, 3, H, W) -> features."""

    def to(self, device: torch.device) -> Any:
        """Move the weights."""

    def record(self) -> dict[str, Any]:
        """What goes on record: network, weights_sha256, input_size, resize."""


class InceptionFeatures:
    """Inception v3 with its last pooling, logits and, for sFID, seven channels of a middle map.

    Images are resized to 299 x 299 by TensorFlow 1's bilinear rule, without antialiasing, as the original does.
    sFID's map (Nash et al. 2021, arXiv 2103.03841) is the 1 x 1 branch of the block Mixed_6d, whose first seven
    channels guided-diffusion takes.

    Args:
        weights: torch-fidelity's file; None takes the one in torch's hub cache.
        download: fetch the file into the cache where it is absent.

    Raises:
        FileNotFoundError: no weights; the message says what to get from where.
        ImportError: torch-fidelity is not installed.
        ValueError: a file that does not fit.
    """

    dim = 2048

    def __init__(self, weights: str | Path | None = None, *, download: bool = False) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError("Inception v3 needs torch-fidelity: pip install 'gsqtok[evaluation]'") from error
        file = (
            hub_file(INCEPTION_URL, "Inception v3, for rFID", download=download) if weights is None else Path(weights)
        )
        if not file.is_file():
            raise FileNotFoundError(f"no weights at {file}: get {INCEPTION_URL}")
        try:
            torch.load(file, map_location="cpu", weights_only=True)  # torch-fidelity itself would run what is in it
            self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(file))
        except Exception as error:  # torch raises many kinds for a file that it will not read
            problem = one_line(error)[:200]
            raise ValueError(f"{file} does not hold torch-fidelity's Inception v3: {problem}") from error
        self.weights_sha256 = sha256_of(file)
        # only the usual weights give an FID that others can compare with
        usual = self.weights_sha256.startswith(INCEPTION_FILE[-12:-4])
        self.suffix = "" if usual else f"_inception_{self.weights_sha256[:8]}"
        self._spatial: Tensor | None = None
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: Any, arguments: Any, output: Tensor) -> None:
        self._spatial = output[:, :_SPATIAL_CHANNELS].flatten(1).float()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """uint8 (B, 3, H, W) -> pooled (B, 2048), logits (B, 1008), spatial (B, 2023)."""
        with full_precision(images.device):
            pooled, logits = self.network(images)
        return Features(pooled, logits, self._spatial)

    def to(self, device: torch.device) -> InceptionFeatures:
        """Move the weights."""
        self.network.to(device)
        return self

    def record(self) -> dict[str, Any]:
        """What goes on record."""
        resize = "bilinear as TensorFlow 1, not antialiased"
        return {
            "network": "inception-v3-compat",
            "weights_sha256": self.weights_sha256,
            "input_size": 299,
            "resize": resize,
            "layer": "pool3 (2048)",
            "dtype": "float32",
        }


class TimmFeatures:
    """The last feature map of a network of timm, averaged over positions.

    Images are resized to the size that the network was trained at, antialiased bilinear.

    Args:
        name: timm's name, such as ``"tf_efficientnet_lite0"``.
        weights: a file or folder; None does as `gsqtok.networks.backbone.load_backbone` says.

    Raises:
        ValueError, FileNotFoundError: as `gsqtok.networks.backbone.load_backbone`.
    """

    def __init__(self, name: str, weights: str | Path | None = None) -> None:
        import timm

        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if config is None:
            raise ValueError(f"timm has no network {name!r}; timm.list_models() lists those it has")
        self.name, self.input_size = name, (config.input_size[-2], config.input_size[-1])
        self.network = load_backbone(name, weights, out_indices=(-1,), input_size=self.input_size)
        self.dim = self.network.channels[0]
        self.suffix = f"_{name}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """uint8, or floats in [0, 255], (B, 3, H, W) -> pooled (B, D)."""
        with full_precision(images.device):
            (features,) = self.network(images.float() / 127.5 - 1)
            return Features(features.mean(dim=(2, 3)))

    def to(self, device: torch.device) -> TimmFeatures:
        """Move the weights."""
        self.network.to(device)
        return self

    def record(self) -> dict[str, Any]:
        """What goes on record."""
        return {
            "network": f"timm:{self.name}",
            "weights_sha256": self.network.weights_sha256,
            "input_size": self.input_size[0] if len(set(self.input_size)) == 1 else list(self.input_size),
            "resize": "bilinear, antialiased",
            "layer": f"last feature map, averaged ({self.dim})",
            "dtype": "float32",
        }


def build_features(name: str, weights: str | Path | None = None, *, download: bool = True) -> FeatureNetwork:
    """``"inception"``, or ``"timm:NETWORK"``.

    Raises:
        ValueError: another name, or weights that do not fit.
        FileNotFoundError: no weights; the message says what to get from where.
        ImportError: torch-fidelity, which Inception v3 comes from, is not installed.
    """
    if name == "inception":
        return InceptionFeatures(weights, download=download)
    kind, _, network = name.partition(":")
    if kind == "timm" and network:
        return TimmFeatures(network, weights)
    raise ValueError(f"features must be 'inception' or 'timm:NETWORK', got {name!r}")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 arithmetic to the letter: no autocast, no TF32."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):  # from torch 2.9 on
        switches = [(backends.cuda.matmul, "fp32_precision"), (backends.cudnn.conv, "fp32_precision")]
    else:
        switches = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
    before = [getattr(module, name) for module, name in switches]
    try:
        for module, name in switches:
            setattr(module, name, "ieee" if name == "fp32_precision" else False)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (module, name), old in zip(switches, before, strict=True):
            setattr(module, name, old)
