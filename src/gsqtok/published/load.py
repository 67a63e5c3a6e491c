"""Opening a published checkpoint: which family it is of, and its weights put where they belong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsqtok.io import one_line
from gsqtok.published import cosmos
from gsqtok.published.registry import Family, PublishedConfig, get_family, list_families, matching
from gsqtok.published.source import Source, read
from gsqtok.tokenizer import CheckpointError, ImageTokenizer, TokenizerConfig


def open_checkpoint(
    path: Path,
    family: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    allow_code: bool = False,
) -> ImageTokenizer:
    """Open a checkpoint of another project, in evaluation mode, in float32, on the CPU.

    Args:
        path: a file of weights or a folder with one.
        family: its name, one of ``list_families()``; None finds it by what the file holds.
        options: what the file does not tell, by name.
        allow_code: run programs (TorchScript), if that is what the files are.

    Raises:
        CheckpointError: unreadable, hostile, of no family or of several, of an unknown version, an option is missing.
        ValueError: no such family or option.
    """
    if family in (None, cosmos.FAMILY) and cosmos.is_script(path):
        return cosmos.open_scripts(path, options or {}, allow_code)
    source, options = read(path), dict(options or {})
    chosen = _family(source) if family is None else get_family(family)
    ema = options.pop("ema", None) if source.has_average else None
    if unknown := sorted(options.keys() - set(chosen.options)):
        known = ", ".join(chosen.options + ["ema"] * source.has_average) or "none"
        raise ValueError(f"{chosen.name} takes no option '{unknown[0]}' for {path}; it takes {known}")
    try:
        found = chosen.configure(source, **options)
        config = found if isinstance(found, TokenizerConfig) else PublishedConfig(chosen.name, found)
        tokenizer = ImageTokenizer.on_meta(config, len(source.weights))
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError) as error:
        reason = one_line(error)[:300]
        raise CheckpointError(f"{path} is no {chosen.name} checkpoint that can be read: {reason}") from error
    state = _state(tokenizer, chosen, found, source.averaged(ema) if source.has_average else source.weights, path)
    return tokenizer.filled(state)


def _family(source: Source) -> Family:
    found = matching(source)
    if len(found) == 1:
        return found[0]
    if found:
        names = [family.name for family in found]
        raise CheckpointError(
            f"{source.path} may be of {' or '.join(names)}, whose weights have the same names: put its config beside "
            f"it, or say which, as in {names[0]}:{source.path}"
        )
    raise CheckpointError(
        f"{source.path} is of no family that is known ({', '.join(list_families())}): it holds {_some(source.weights)}"
    )


def _state(
    tokenizer: ImageTokenizer,
    family: Family,
    config: dict[str, Any] | TokenizerConfig,
    weights: Mapping[str, Tensor],
    path: Path,
) -> dict[str, Tensor]:
    """The weights of a file under a tokenizer's names; what does not fit is told in the file's names."""
    names, expected = family.names(config), tokenizer.state_dict()
    unknown = f"{path} is of a version of {family.title} that is not known"
    filled = {name for name in expected if family.filled and re.fullmatch(family.filled, name)}
    used = {name: list(names(name)) for name in expected if name not in filled}
    wanted = {there: None for several in used.values() for there in several}
    missing = [name for name in wanted if name not in weights]
    surplus = [name for name in weights if name not in wanted and not re.fullmatch(family.ignored, name)]
    if missing or surplus:
        lacks = [f"it lacks {_some(missing)}"] if missing else []
        raise CheckpointError(f"{unknown}: {'; '.join(lacks + [f'it has {_some(surplus)}, too'] * bool(surplus))}")
    state = {name: torch.zeros(expected[name].shape) for name in filled}
    for name, several in used.items():
        found = weights[several[0]] if len(several) == 1 else torch.cat([weights[there] for there in several])
        if found.shape != expected[name].shape:
            shapes = f"{tuple(found.shape)}, expected {tuple(expected[name].shape)}"
            raise CheckpointError(f"{unknown}: {', '.join(several)} has shape {shapes}")
        state[name] = found.to(expected[name].dtype)
    return state


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "nothing"
