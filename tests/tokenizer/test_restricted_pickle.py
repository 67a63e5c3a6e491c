import argparse
import collections
import itertools
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from gsqtok.tokenizer import restricted_pickle
from gsqtok.tokenizer.restricted_pickle import RefusedPickleError, load_plain, load_tensors


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": (1, 2.5, "x", True, None), "b": [[], {}, ()], 3: b"bytes"},
        {"big": 2**80, "negative": -1, "inf": float("inf"), "ünï": "\U0001f600"},
    ],
)
def test_plain_values_come_back(value, protocol):
    if protocol < 3 and value is not None and 3 in value:
        value = {**value, 3: "text"}  # bytes need a function before protocol 3
    assert load_plain(pickle.dumps(value, protocol=protocol)) == value


def test_ordered_and_default_dicts():
    assert load_plain(pickle.dumps({"a": collections.OrderedDict(x=1, y=[2])})) == {"a": {"x": 1, "y": [2]}}


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("1 / 0",), "eval"),
        (subprocess.check_call, (["false"],), "subprocess.check_call"),
        (getattr, ("x", "upper"), "getattr"),
        (pickle.loads, (b"I1\n.",), "loads"),
        (bytearray, (10**9,), "bytearray"),
    ],
)
def test_functions_are_refused_by_name(function, arguments, name):
    with pytest.raises(RefusedPickleError, match=f"asks for .*{name}"):
        load_plain(pickle.dumps([1, Calls(function, *arguments)]))


@pytest.mark.parametrize("name", ["dict", "list", "int", "tuple"])
def test_the_names_of_types_cannot_be_called(name):
    with pytest.raises(RefusedPickleError, match="not callable"):
        load_plain(f"cbuiltins\n{name}\n(tR.".encode())


def test_a_class_of_nodes_cannot_be_changed():
    # BUILD on the class itself, not on an instance: sets attributes of whatever has no __setstate__ of its own
    data = b"comegaconf.nodes\nAnyNode\n}X\x07\x00\x00\x00contentX\x01\x00\x00\x00xsb."
    with pytest.raises(RefusedPickleError):
        load_plain(data)
    assert not hasattr(restricted_pickle._Node, "content")


def test_nothing_unfolds_without_end():
    bomb = []
    for _ in range(40):
        bomb = [bomb, bomb]
    with pytest.raises(RefusedPickleError, match="unfolds to more than"):
        load_plain(pickle.dumps(bomb))
    cycle = []
    cycle.append(cycle)
    with pytest.raises(RefusedPickleError, match="deep"):
        load_plain(pickle.dumps(cycle))


@pytest.mark.parametrize("data", [b"", b".", b"garbage", pickle.dumps({"a": 1})[:-3], b"\x80\x7f."])
def test_broken_pickles(data):
    with pytest.raises(RefusedPickleError, match="broken pickle"):
        load_plain(data)


def test_objects_from_outside():
    with pytest.raises(RefusedPickleError, match="persistent"):
        load_plain(b"Pfile\n.")


# Tensors


def left_behind(monkeypatch, module, name):
    """A class that a training framework would have, and that nothing here may import again."""
    kind = type(name, (), {"__module__": module, "__reduce__": lambda self: (type(self), (), {"best": 1})})
    for part in itertools.accumulate(module.split("."), "{}.{}".format):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
    return kind


def test_objects_of_a_training_framework_become_inert(tmp_path, monkeypatch):
    checkpoint = left_behind(monkeypatch, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    stopping = left_behind(monkeypatch, "pytorch_lightning.callbacks.early_stopping", "EarlyStopping")
    content = {
        "state_dict": {"a": torch.arange(3.0)},
        "callbacks": {checkpoint: {"best_score": torch.tensor(1)}, stopping: stopping()},
        "arguments": argparse.Namespace(width=3),
        "score": np.float64(0.5),
    }
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    loaded = load_tensors(tmp_path / "last.ckpt")
    assert torch.equal(loaded["state_dict"]["a"], torch.arange(3.0))
    assert len(loaded["callbacks"]) == 2
    assert not hasattr(loaded["arguments"], "width")
    with pytest.raises(pickle.UnpicklingError, match="ModelCheckpoint"):  # they were not allowed for good
        torch.load(tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("function", [subprocess.check_call, getattr, eval])
def test_functions_beside_tensors_are_refused_by_name(function, tmp_path):
    torch.save({"a": torch.zeros(1), "b": Calls(function, "1")}, tmp_path / "weights.pt")
    with pytest.raises(RefusedPickleError, match=f"nothing of it was run: it asks for .*{function.__name__}"):
        load_tensors(tmp_path / "weights.pt")
