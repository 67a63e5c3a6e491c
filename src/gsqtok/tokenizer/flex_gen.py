"""Checkpoints of the paper's official implementation, HelmholtzAI-FZJ/flex_gen (arXiv 2412.02632).

A file ``checkpoint.pt`` holds ``model_state_dict`` and ``config``, a pickle of the constructor's keyword arguments. The
networks are the same as here up to names, so the weights are taken as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsqtok.tokenizer.config import TokenizerConfig
from gsqtok.tokenizer.restricted_pickle import RefusedPickleError, load_plain

CHECKPOINT_FILE = "checkpoint.pt"

# Defaults of the official constructor.
_DEFAULTS: dict[str, Any] = {
    "input_channels": 3,
    "hidden_channels": 128,
    "encoder_layer_configs": (4, 3, 4, 3, 4),
    "decoder_layer_configs": (3, 4, 3, 4, 4),
    "channel_multipliers": (1, 2, 2, 4),
    "mid_block_attn": False,
    "attention_resolutions": (),
    "embedding_dim": 4,
    "use_adaptive_norm": False,
    "use_learnable_up_down_sample": False,
    "residual_conv_kernel_size": 3,
    "input_conv_kernel_size": 3,
    "output_conv_kernel_size": 3,
    "quantizer_config": {},
}
_FIXED = ("input_channels", "residual_conv_kernel_size", "input_conv_kernel_size", "output_conv_kernel_size")
_QUANTIZERS = ("vq", "gvq", "gsq")
_CODEBOOK = "quantizers.codebook.weight"
# The encoder's last layers are misspelt in the files.
_OUTER = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.fianl_layers.0": "encoder.norm_out",
    "encoder.fianl_layers.2": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.final_layers.0": "decoder.norm_out",
    "decoder.final_layers.2": "decoder.conv_out",
}
_IN_BLOCK = {
    "net.0": "norm1",
    "net.2": "conv1",
    "net.3": "norm2",
    "net.6": "conv2",
    "skip": "skip",
    "conv": "conv",
    "norm": "norm",
    "qkv_conv": "qkv",
    "proj_conv": "proj",
    "gamma": "gamma",
    "beta": "beta",
}


def load_flex_gen(file: Path) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    """Read an official checkpoint.

    The file's tokens have shape (B, h, w) for ``vq`` and (B, h, w, G) else; here they are (B, h, w, G) always.

    Returns:
        The configuration, and the state of ``ImageTokenizer``.

    Raises:
        ValueError: not such a file, broken, hostile, or of a kind that has no counterpart here; one line says which.
    """
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that it will not read
        if asked := re.search(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)", str(error)):
            raise ValueError(f"refused, and nothing of it was run: it asks for {asked[1]}, not for tensors") from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"broken, or no file of plain tensors: {reason[0][:200]}") from error
    if not isinstance(loaded, dict) or not {"model_state_dict", "config"} <= loaded.keys():
        found = f"it holds {some(loaded)}" if isinstance(loaded, dict) else f"it holds a {type(loaded).__name__}"
        raise ValueError(f"no official GSQ checkpoint: model_state_dict and config are expected, {found}")
    state, pickled = loaded["model_state_dict"], loaded["config"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("no official GSQ checkpoint: model_state_dict is no mapping of names to tensors")
    if not isinstance(pickled, bytes):
        raise ValueError(f"no official GSQ checkpoint: config must be a pickle in bytes, got {type(pickled).__name__}")
    try:
        arguments = load_plain(pickled)
    except RefusedPickleError as error:
        raise ValueError(f"its config was refused: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"its config is a {type(arguments).__name__}, expected keyword arguments")
    if _CODEBOOK not in state or state[_CODEBOOK].ndim != 2:
        raise ValueError(f"no official GSQ checkpoint: model_state_dict lacks a codebook {_CODEBOOK} of two dimensions")
    try:
        config = TokenizerConfig(**_config(_DEFAULTS | arguments, tuple(state[_CODEBOOK].shape)))
    except (TypeError, AttributeError, KeyError) as error:  # values of another type than expected
        raise ValueError(f"its config does not describe a tokenizer: {error}") from error
    return config, _renamed(state)


def _config(arguments: dict[str, Any], codebook: tuple[int, ...]) -> dict[str, Any]:
    for name in _FIXED:
        if arguments[name] != 3:
            raise ValueError(f"its {name} is {arguments[name]}; only 3 is supported")
    levels = len(arguments["channel_multipliers"])
    blocks: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        counts = tuple(arguments[f"{part}_layer_configs"])
        if len(counts) != levels + 1:
            raise ValueError(
                f"its {part}_layer_configs names {len(counts)} counts, expected {levels + 1}: one for each of "
                f"{levels} levels, and the middle"
            )
        blocks |= {f"{part}_blocks": counts[:-1], f"{part}_middle_blocks": counts[-1]}
    dim = arguments["embedding_dim"]
    return {
        "latent_dim": dim,
        "channels": arguments["hidden_channels"],
        "multipliers": tuple(arguments["channel_multipliers"]),
        **blocks,
        "middle_attention": bool(arguments["mid_block_attn"]),
        # A factor that no level has is never met there.
        "attention_factors": tuple(sorted({2**i for i in range(levels)} & set(arguments["attention_resolutions"]))),
        "adaptive_norm": bool(arguments["use_adaptive_norm"]),
        "depth_to_space": bool(arguments["use_learnable_up_down_sample"]),
        "quantizer": _quantizer(dict(arguments["quantizer_config"]), dim, codebook),
    }


def _quantizer(options: dict[str, Any], dim: int, codebook: tuple[int, ...]) -> dict[str, Any]:
    """The GSQ that looks up as the official quantizer does; the codebook's shape says how many groups there are."""
    kind = options.get("quantize_type", "vq")
    if kind not in _QUANTIZERS:
        raise ValueError(f"its quantize_type is {kind!r}; {', '.join(_QUANTIZERS)} are supported")
    size, d = codebook
    if d < 1 or dim % d:
        raise ValueError(f"its codebook has {d} channels, which do not divide embedding_dim {dim}")
    groups = dim // d
    named = 1 if kind == "vq" else options.get("num_group", groups)
    if named != groups:
        raise ValueError(
            f"its codebook of {d} channels makes {groups} groups of embedding_dim {dim}, config says {named}"
        )
    if options.get("num_embed", size) != size:
        raise ValueError(f"its codebook has {size} codewords, config says {options['num_embed']}")
    l2, l1, clip = (bool(options.get(name)) for name in ("use_l2_norm", "use_l1_norm", "force_1d_clip"))
    if clip and d == 1:
        norm = "clip"
    elif l2 and l1:
        raise ValueError("its config asks for use_l2_norm and use_l1_norm at once")
    else:
        norm = "l2" if l2 else "l1" if l1 else "none"
    if d == 1 and norm in ("l2", "l1"):
        raise ValueError(
            f"it normalises groups of one channel ({norm}), which leaves their signs alone: ties are drawn at random "
            "there, so no tokens can be reproduced"
        )
    return {
        "name": "gsq",
        "groups": groups,
        "codebook_size": size,
        "norm": norm,
        "init": "uniform" if options.get("use_uniform_init") else "sphere",
        "output": "raw",
        "commitment_weight": float(options.get("commitment_loss_weight", 0.25)),
    }


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {key: _new_name(key) for key in state}
    if unknown := [key for key, name in names.items() if name is None]:
        raise ValueError(f"it holds weights that a GSQ tokenizer has no place for: {some(unknown)}")
    return {name: state[key] for key, name in names.items() if name is not None}


def _new_name(key: str) -> str | None:
    if key == _CODEBOOK:
        return "quantizer.codebook"
    part, _, leaf = key.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if part in _OUTER:
        return f"{_OUTER[part]}.{leaf}"
    block = re.fullmatch(r"((?:encoder|decoder)\.blocks\.\d+)\.(.+)", part)
    if block is None or block[2] not in _IN_BLOCK:
        return None
    return f"{block[1]}.{_IN_BLOCK[block[2]]}.{leaf}"


def official_name(name: str) -> str:
    """What a weight of ours is called in an official file."""
    if name == "quantizer.codebook":
        return _CODEBOOK
    part, _, leaf = name.rpartition(".")
    for official, ours in _OUTER.items():
        if part == ours:
            return f"{official}.{leaf}"
    for official, ours in _IN_BLOCK.items():
        if part.endswith(f".{ours}"):
            return f"{part.removesuffix(ours)}{official}.{leaf}"
    return name


def some(names: Any) -> str:
    """The first of some names, and how many more there are."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"
