"""Reading pickles without running them: a configuration, or the tensors of a checkpoint.

A pickle is a program: it names functions and calls them. Here no name is ever imported. The few that plain containers
and OmegaConf nodes need, or that training frameworks leave in checkpoints, stand for inert classes made on the spot, or
for words; any other is refused, and named.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

MAX_ITEMS = 100_000  # of a configuration; nested references to one list could otherwise unfold without end
MAX_DEPTH = 50

# Types that OmegaConf notes as what a value should be. They are read as words, which nothing can call.
_TYPE_NAMES = {
    ("typing", "Any"),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "str", "float")),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("bool", "long", "tuple", "unicode")),
    ("omegaconf.basecontainer", "BaseContainer"),
}
_CONTAINERS = {("omegaconf.dictconfig", "DictConfig"), ("omegaconf.listconfig", "ListConfig")}
_LEAVES = {("omegaconf.nodes", f"{kind}Node") for kind in ("Any", "String", "Integer", "Float", "Boolean")}
_METADATA = {("omegaconf.base", "Metadata"), ("omegaconf.base", "ContainerMetadata")}
# What training frameworks leave in a checkpoint beside its tensors: callbacks, arguments, numbers.
_FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
_LEFT_BEHIND = {
    *(f"{module}.{name}" for module, name in _TYPE_NAMES),
    *("argparse.Namespace", "collections.defaultdict", "pathlib.PosixPath", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
}


class RefusedPickleError(ValueError):
    """A pickle that asks for more than plain values, or is broken; the message names what it asked for."""


def load_plain(data: bytes) -> Any:
    """The value in a pickle: None, booleans, numbers, strings, bytes, and dicts, lists, tuples of such.

    OmegaConf containers become dicts and lists, without OmegaConf being installed; interpolations stay strings. No code
    is imported or called, whatever the pickle says.

    Raises:
        RefusedPickleError: a name other than those of OmegaConf's nodes, a broken pickle, a value that is nested too
            deeply or unfolds to too many items.
    """
    try:
        value = _Unpickler(io.BytesIO(data)).load()
        return _plain(value, MAX_DEPTH, [MAX_ITEMS])
    except RefusedPickleError:
        raise
    except RecursionError:
        raise RefusedPickleError("nested too deeply") from None
    except Exception as error:  # a broken pickle raises almost anything
        raise RefusedPickleError(f"broken pickle: {str(error) or type(error).__name__}") from error


def load_tensors(file: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors, numbers and strings in plain containers.

    Objects of a training framework beside them, such as Lightning's callbacks, become inert.

    Raises:
        RefusedPickleError: any other name, a broken file, one of another kind. Nothing of it was run.
    """
    try:
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # an old format, or no checkpoint at all: loading says which
        strange = []
    known = [name for name in strange if name.startswith(_FRAMEWORKS) or name in _LEFT_BEHIND]
    inert: list[Any] = [(type("Ignored", (_Ignored,), {}), name) for name in known]
    try:
        with torch.serialization.safe_globals(inert):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that it will not read
        if asked := re.search(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)", str(error)):
            raise RefusedPickleError(
                f"refused, and nothing of it was run: it asks for {asked[1]}, not for tensors"
            ) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RefusedPickleError(f"broken, or no file of plain tensors: {reason[0][:200]}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        # Made anew each time: what a pickle may do to a class ends with it.
        self._dict = type("OrderedDict", (_Mapping,), {})
        self._node = type("Node", (_Node,), {})
        self._default_dict = type("DefaultDict", (_Ignored,), {})
        self._metadata = type("Metadata", (_Ignored,), {})

    def find_class(self, module: str, name: str) -> Any:
        place = (module, name)
        if place in _TYPE_NAMES:
            return f"{module}.{name}"
        if place in _CONTAINERS or place in _LEAVES:
            return self._node
        if place in _METADATA:
            return self._metadata
        if place == ("collections", "OrderedDict"):
            return self._dict
        if place == ("collections", "defaultdict"):
            return self._default_dict
        raise RefusedPickleError(
            f"it asks for {module}.{name}, which is no plain value; nothing of it was run. A checkpoint that needs "
            "this is not one of the official implementation, or is hostile"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickleError("it refers to objects outside of itself (a persistent id)")


class _Mapping(dict[Any, Any]):
    """An OrderedDict: filled by item assignment."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Node:
    """An OmegaConf node: a container has ``_content``, a leaf ``_val``."""

    def __setstate__(self, state: Any) -> None:
        self.content = state["_content"] if "_content" in state else state["_val"]


class _Ignored(dict[Any, Any]):
    """What nobody looks at: what a node or a checkpoint holds beside its values."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _plain(value: Any, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if depth < 0:
        raise RefusedPickleError(f"nested more than {MAX_DEPTH} deep")
    if budget[0] < 0:
        raise RefusedPickleError(f"it unfolds to more than {MAX_ITEMS:,} items")
    if isinstance(value, _Node):
        return _plain(value.content, depth - 1, budget)
    if isinstance(value, dict):
        return {_plain(key, depth - 1, budget): _plain(item, depth - 1, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, depth - 1, budget) for item in value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise RefusedPickleError(f"it holds a {type(value).__name__}, which is no plain value")
