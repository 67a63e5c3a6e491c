"""The hub, by a stand-in of its HTTP interface on this machine; huggingface_hub itself is the real one.

Its address is read when huggingface_hub is imported, so a process of its own talks to it.
"""

import json
import os
import subprocess
import sys

import official
import processes
import pytest
from hub_server import Hub, serving
from safetensors.torch import load

from gsqtok.evaluation.result import Result
from gsqtok.tokenizer import ImageTokenizer

pytestmark = pytest.mark.slow


# Has PyTorch and the package, whose imports take the most, and not yet huggingface_hub; each line that it reads is a
# process to fork.
FORKS = """
import json, os, runpy, signal, sys, time, traceback
import torch
import gsqtok.tokenizer
assert 'huggingface_hub' not in sys.modules

pause = time.sleep
time.sleep = lambda seconds: pause(min(seconds, 0.05))  # the hub's library tries five times, and waits in between

for line in sys.stdin:
    task = json.loads(line)
    if (child := os.fork()) == 0:
        signal.alarm(task["patience"])
        os.environ.update(task["environment"])
        for descriptor in (1, 2):
            os.dup2(os.open(f"{task['folder']}/{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        status = 1
        try:
            runpy.run_path(f"{task['folder']}/code.py")
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    """Where ``FORKS`` runs."""
    command = [sys.executable, "-c", FORKS]
    environment = os.environ | {"PYTHONPATH": processes.SOURCE}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(forks, tmp_path_factory):
    """Run Python in a process that knows the stand-in as the hub; what it prints last, parsed."""

    def run(code, address, home, **environment):
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test"}
        settings |= {f"HF_HUB_{what}_TIMEOUT": str(processes.PATIENCE) for what in ("ETAG", "DOWNLOAD")}
        settings |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment}
        folder = tmp_path_factory.mktemp("fork")
        (folder / "code.py").write_text(f"import json\nfrom gsqtok import ImageTokenizer\n{code}")
        forks.stdin.write(
            json.dumps({"environment": settings, "folder": str(folder), "patience": processes.PATIENCE}) + "\n"
        )
        forks.stdin.flush()
        assert int(forks.stdout.readline()) == 0, (folder / "2").read_text()
        return json.loads((folder / "1").read_text().splitlines()[-1])

    return run


@pytest.fixture
def saved(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def files(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


LOAD = """
def load(*names, **options):
    try:
        return ImageTokenizer.from_pretrained(*names, **options).fingerprint()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def test_from_pretrained(saved, tiny_tokenizer, tmp_path, run):
    hub = Hub()
    first = hub.commit("owner/name", "main", files(saved))
    old = tiny_tokenizer.fingerprint()
    tiny_tokenizer.decoder.conv_out.bias.data += 1
    tiny_tokenizer.save_pretrained(saved)
    hub.commit("owner/name", "main", files(saved))
    hub.commit("owner/name", "next", files(saved))
    new = tiny_tokenizer.fingerprint()
    official.write(tmp_path / "official" / "checkpoint.pt", official.arguments())
    hub.commit("lab/GSQ", "main", files(tmp_path / "official") | {"config.yaml": b"{}"})
    hub.commit("owner/empty", "main", {"README.md": b"nothing"})
    hub.commit("owner/half", "main", {"config.json": files(saved)["config.json"]})

    code = f"""{LOAD}
print(json.dumps([
    load("owner/name", revision="{first}"), load("owner/name"), load("owner/name", revision="next"),
    load("lab/GSQ"), load("gsq:lab/GSQ/checkpoint.pt"), load("owner/empty"), load("owner/half"), load("owner/absent"),
    load("owner/name", revision="never"), load("owner/other", local_files_only=True),
    load("owner/name", local_files_only=True), load("owner/name", cache_dir={str(tmp_path / "elsewhere")!r}),
]))
"""
    with serving(hub) as address:
        by_commit, main, branch, converted, named, empty, half, absent, never, not_cached, cached, elsewhere = run(
            code, address, tmp_path / "home"
        )
    assert by_commit == old
    assert main == branch == cached == elsewhere == new
    assert converted == named == ImageTokenizer.from_pretrained(tmp_path / "official").fingerprint()
    assert "FileNotFoundError: no folder 'owner/empty' here" in empty
    assert "holds no model.safetensors" in empty
    assert "holds no model.safetensors" in half
    assert "no such repository" in absent
    assert "no revision 'never'" in never
    assert "not loaded from the hub" in not_cached
    assert (tmp_path / "elsewhere" / "models--owner--name").is_dir()

    # Without a network, everything that was read comes from the cache: by environment and by argument.
    code = f"""{LOAD}
print(json.dumps([load("owner/name"), load("lab/GSQ"), load("owner/empty"), load("owner/name", revision="{first}")]))
"""
    nowhere = "http://127.0.0.1:9"
    for environment in ({"HF_HUB_OFFLINE": "1"}, {}):
        name, converted_again, empty, by_commit = run(code, nowhere, tmp_path / "home", **environment)
        assert name == new
        assert converted_again == converted
        assert by_commit == old
        assert "no folder 'owner/empty' here" in empty


def test_a_branch_that_moves_between_two_files(saved, tiny_tokenizer, tmp_path, run):
    """Configuration and weights are of one commit, whatever is pushed meanwhile."""

    class Moving(Hub):
        def find(self, repository, revision, path):
            found = super().find(repository, revision, path)
            if path == "config.json":
                self.commit(repository, "main", {"model.safetensors": b"of a later commit"})
            return found

    hub = Moving()
    hub.commit("owner/name", "main", files(saved))
    with serving(hub) as address:
        code = f'{LOAD}\nprint(json.dumps(load("owner/name", revision="main")))'
        assert run(code, address, tmp_path / "home") == tiny_tokenizer.fingerprint()


def test_push_to_hub(saved, tiny_tokenizer, tmp_path, run):
    hub = Hub()
    hub.commit("owner/mine", "main", {"README.md": b"---\nlicense: mit\n---\n# Written by hand\n"})
    model = {"name": "tiny", "fingerprint": tiny_tokenizer.fingerprint(), "quantizer": "gsq", "factor": 4}
    model |= {"bits_per_position": 12, "bits_per_pixel": 0.75, "precision": "float32"}
    data = {"source": "owner/images", "split": "test", "images": 5000, "skipped": 0, "fingerprint": "abc"}
    protocol = {"name": "native", "size": 256, "crop": "center", "resize_filter": "bicubic", "antialias": True}
    protocol |= {"rounding": "8 bits", "features": None, "reference": None}
    Result(model, data, protocol, {"psnr": 21.5}).save(tmp_path / "result.json")
    code = f"""
import torch
t = ImageTokenizer.from_pretrained({str(saved)!r})
result = {str(tmp_path / "result.json")!r}
urls = [t.push_to_hub("owner/new", evaluation=result, license="mit", commit_message="First"),
        t.push_to_hub("owner/mine", revision="half", dtype=torch.float16)]
print(json.dumps(urls + [ImageTokenizer.from_pretrained("owner/new").fingerprint()]))
"""
    with serving(hub) as address:
        new, mine, fingerprint = run(code, address, tmp_path / "home")
    assert fingerprint == tiny_tokenizer.fingerprint()
    assert new.endswith(hub.branches["owner/new"]["main"])
    tree = hub.commits[hub.branches["owner/new"]["main"]]
    assert set(tree) == {"README.md", "config.json", "model.safetensors", "reconstructions.webp"}
    card = tree["README.md"].decode()
    assert 'from_pretrained("owner/new")' in card
    assert "license: mit" in card
    assert "| PSNR | 21.50 dB |" in card
    assert mine.endswith(hub.branches["owner/mine"]["half"])
    tree = hub.commits[hub.branches["owner/mine"]["half"]]
    assert b"# Written by hand" in tree["README.md"]
    assert {value.element_size() for value in load(tree["model.safetensors"]).values()} == {2}
    assert "model.safetensors" not in hub.commits[hub.branches["owner/mine"]["main"]]
