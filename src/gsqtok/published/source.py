"""What a published checkpoint holds: one set of weights, and the configuration that lies beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gsqtok.io import one_line, read_json
from gsqtok.tokenizer import CheckpointError
from gsqtok.tokenizer.checkpoint import CHECKPOINT_FILE, PICKLED
from gsqtok.tokenizer.restricted_pickle import RefusedPickleError, load_tensors

_WEIGHTS = (*PICKLED, ".safetensors")
# Sets of weights in one file, the one to take first: averaged weights before those that were trained.
_SETS = ("ema_state_dict", "ema", "model", "state_dict", "model_state_dict")
# Of data-parallel training, twice over for an average, and of the tokenizer inside Janus.
_PREFIXES = ("module.", "module.", "gen_vision_model.")
_EMA = "model_ema."  # Lightning's averaged weights, each under its name without dots


@dataclass
class Source:
    """One set of weights under the file's own names, and what lies beside it.

    Attributes:
        path: the file or folder.
        loaded: all that the file of weights holds.
        weights: the tensors by name.
        config: the YAML or JSON beside the weights; empty where there is none.
        preprocessing: preprocessor_config.json, which says how images are normalised; empty where there is none.
    """

    path: Path
    loaded: Any
    weights: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)

    @property
    def has_average(self) -> bool:
        """Whether Lightning's averaged weights (EMA) lie beside those that were trained."""
        return _EMA + "decay" in self.weights

    def averaged(self, ema: bool | None) -> dict[str, Tensor]:
        """The weights of a Lightning file without its losses: the average, or those that were trained.

        Args:
            ema: whether to take the average; None does where there is one, unless the configuration says ``use_ema``.
        """
        live = {k: v for k, v in self.weights.items() if not k.startswith((_EMA, "loss."))}
        if not (self.setting("use_ema", self.has_average) if ema is None else ema):
            return live
        # What was frozen in training has no average.
        return {name: self.weights.get(_EMA + name.replace(".", ""), value) for name, value in live.items()}

    def setting(self, name: str, default: Any = None) -> Any:
        """A value of the configuration, wherever it is nested."""
        return next(_values(self.config, name), default)

    def count(self, pattern: str) -> int:
        """How many weights ``pattern.format(i)`` there are for i = 0, 1, ... in a row."""
        number = 0
        while pattern.format(number) in self.weights:
            number += 1
        return number

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight; CheckpointError where there is none of that name."""
        if name not in self.weights:
            raise CheckpointError(f"{self.path}: it lacks the weight {name}")
        return tuple(self.weights[name].shape)

    def check_blocks(self, blocks: Any, levels: Sequence[Any]) -> None:
        """Refuse a configuration that asks for more blocks than there are weights, before such a network is built."""
        if not isinstance(blocks, int) or blocks * len(levels) > len(self.weights):
            raise CheckpointError(f"{self.path}: its config.json asks for {blocks} blocks a level, more than it holds")


def read(path: Path) -> Source:
    """Read a file, or a folder with one file of weights.

    Raises:
        CheckpointError: unreadable, hostile, without weights, or a folder with several files of weights.
    """
    file = _weights_file(path) if path.is_dir() else path
    if file.suffix == ".safetensors":
        try:
            loaded: Any = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    else:
        try:
            loaded = load_tensors(file)
        except RefusedPickleError as error:
            raise CheckpointError(f"{file}: {error}") from error
    preprocessing = _parsed(file.parent / "preprocessor_config.json")
    return Source(path, loaded, _weights(loaded, file), _configuration(file), preprocessing)


def _weights_file(folder: Path) -> Path:
    if (folder / CHECKPOINT_FILE).is_file():
        return folder / CHECKPOINT_FILE
    files = sorted(file for pattern in ("*", "checkpoints/*") for file in folder.glob(pattern) if file.is_file())
    files = [file for file in files if file.suffix in _WEIGHTS]
    # The same weights in two formats: the one that holds nothing but tensors.
    files = [file for file in files if file.suffix == ".safetensors"] or files
    if not files:
        raise CheckpointError(f"{folder} holds no file of weights ({', '.join(_WEIGHTS)})")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise CheckpointError(f"{folder} holds several files of weights ({names}): name one")
    return files[0]


def _weights(loaded: Any, file: Path) -> dict[str, Tensor]:
    sets = [loaded.get(name) for name in _SETS] + [loaded] if isinstance(loaded, Mapping) else []
    tensors = ({k: v for k, v in each.items() if isinstance(v, Tensor)} for each in sets if isinstance(each, Mapping))
    weights = next((each for each in tensors if each), {})
    if not weights:
        raise CheckpointError(f"{file} holds no weights, but {_some(loaded)}")
    for prefix in _PREFIXES:
        inside = {str(k).removeprefix(prefix): v for k, v in weights.items() if str(k).startswith(prefix)}
        weights = inside or weights
    return weights


def _configuration(file: Path) -> dict[str, Any]:
    """The YAML or JSON that the projects keep beside a file of weights; empty where there is none."""
    beside = [file.with_name(f"{file.stem}_config.json"), file.with_name("config.json")]
    beside += [file.with_suffix(".yaml"), file.with_name("config.yaml"), file.with_name("model.yaml")]
    if file.parent.name == "checkpoints":  # taming's runs
        beside += sorted((file.parent.parent / "configs").glob("*.yaml"))
    return next((parsed for each in beside if (parsed := _parsed(each))), {})


def _parsed(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        parsed = read_json(file) if file.suffix == ".json" else yaml.safe_load(file.read_text())
    except (ValueError, yaml.YAMLError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {one_line(error)[:200]}") from error
    return parsed if isinstance(parsed, dict) else {}


def _values(tree: dict[str, Any], name: str) -> Iterator[Any]:
    waiting, seen = [tree], set()
    while waiting:
        mapping = waiting.pop(0)
        if name in mapping:
            yield mapping[name]
        seen.add(id(mapping))  # YAML's references can make an endless tree of a small file
        waiting += [value for value in mapping.values() if isinstance(value, dict) and id(value) not in seen]


def _some(names: Any) -> str:
    if not isinstance(names, Mapping):
        return f"a {type(names).__name__}"
    shown = [str(name) for name in list(names)[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"
