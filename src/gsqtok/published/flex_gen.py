"""Checkpoints of the paper's official implementation, HelmholtzAI-FZJ/flex_gen (arXiv 2412.02632).

A file ``checkpoint.pt`` holds ``model_state_dict`` and ``config``, a pickle of the constructor's keyword arguments. The
networks are the same as here up to names, so the weights are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.tokenizer import CheckpointError, TokenizerConfig
from gsqtok.tokenizer.restricted_pickle import RefusedPickleError, load_plain

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
    "encoder.norm_out": "encoder.fianl_layers.0",
    "encoder.conv_out": "encoder.fianl_layers.2",
    "decoder.norm_out": "decoder.final_layers.0",
    "decoder.conv_out": "decoder.final_layers.2",
    "encoder.conv_in": "encoder.conv_in",
    "decoder.conv_in": "decoder.conv_in",
}
_IN_BLOCK = {
    "norm1": "net.0",
    "conv1": "net.2",
    "norm2": "net.3",
    "conv2": "net.6",
    "qkv": "qkv_conv",
    "proj": "proj_conv",
}


def _configure(source: Source) -> TokenizerConfig:
    pickled = source.loaded["config"]
    try:
        if not isinstance(pickled, bytes):
            raise ValueError(f"its config must be a pickle in bytes, got {type(pickled).__name__}")
        try:
            arguments = load_plain(pickled)
        except RefusedPickleError as error:
            raise ValueError(f"its config was refused: {error}") from error
        if not isinstance(arguments, dict):
            raise ValueError(f"its config is a {type(arguments).__name__}, expected keyword arguments")
        codebook = source.shape(_CODEBOOK)
        if len(codebook) != 2:
            raise ValueError(f"its codebook {_CODEBOOK} has other than two dimensions")
        try:
            return TokenizerConfig(**_config(_DEFAULTS | arguments, (codebook[0], codebook[1])))
        except (TypeError, AttributeError, KeyError) as error:  # values of another type than expected
            raise ValueError(f"its config does not describe a tokenizer: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{source.path}: {error}") from error


def _config(arguments: dict[str, Any], codebook: tuple[int, int]) -> dict[str, Any]:
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


def _quantizer(options: dict[str, Any], dim: int, codebook: tuple[int, int]) -> dict[str, Any]:
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


def _names(name: str) -> Sequence[str]:
    if name == "quantizer.codebook":
        return [_CODEBOOK]
    part, _, leaf = name.rpartition(".")
    if part in _OUTER:
        return [f"{_OUTER[part]}.{leaf}"]
    block, _, layer = part.rpartition(".")
    return [f"{block}.{_IN_BLOCK.get(layer, layer)}.{leaf}"]


def _matches(source: Source) -> bool:
    return isinstance(source.loaded, dict) and {"model_state_dict", "config"} <= source.loaded.keys()


register(
    Family(
        name="gsq",
        title="the official GSQ implementation",
        matches=lambda source: (
            isinstance(source.loaded, dict) and {"model_state_dict", "config"} <= source.loaded.keys()
        ),
        configure=_configure,
        names=lambda config: _names,
        ignored="",
    )
)
