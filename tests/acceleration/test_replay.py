"""What a recorded graph would not notice; graphs themselves are tested where there is a GPU, in tokenizer/."""

import copy
import pickle
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.utils import parametrizations

from gsqtok.acceleration import accelerate, replay
from gsqtok.acceleration.replay import Contents, Replays
from gsqtok.networks import Encoder


def test_contents_notice_what_is_exchanged():
    network = Encoder(4, 32, (1, 1), (1, 0), 1)

    def notices(change):
        contents = Contents(network)
        assert not contents.changed()
        change()
        return contents.changed()

    block = network.blocks[0]
    assert notices(lambda: setattr(block, "skip", nn.Identity()))
    assert notices(lambda: setattr(block.conv1, "weight", nn.Parameter(torch.zeros_like(block.conv1.weight))))
    assert notices(lambda: parametrizations.weight_norm(block.conv2))
    assert notices(lambda: network.blocks.append(nn.Identity()))
    assert not notices(lambda: network.load_state_dict(network.state_dict()))
    assert notices(lambda: network.load_state_dict(network.state_dict(), assign=True))
    assert notices(lambda: accelerate(network))
    assert notices(lambda: setattr(block, "forward", block.forward))


def test_contents_notice_hooks():
    network = Encoder(4, 32, (1,), (1,), 1)
    contents = Contents(network)
    for register in (
        network.blocks[0].norm1.register_forward_hook,
        network.conv_in.register_forward_pre_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        assert not contents.changed()
        handle = register(lambda *_: None)
        assert contents.changed()
        handle.remove()
    assert not contents.changed()


def test_what_is_run_recorded_and_replayed(monkeypatch):
    """The order of things, with stand-ins for the graph and for what lies on a GPU."""
    done = []

    def recorded(network, x):
        done.append("recorded")
        out = network(x)
        graph = SimpleNamespace(replay=lambda: done.append("replayed"))
        return graph, SimpleNamespace(copy_=lambda x: None), out

    class Ran(Encoder):
        def forward(self, images):
            done.append("ran")
            return torch.zeros(())

    def call(size, pixels=1):
        done.clear()
        x = SimpleNamespace(is_cuda=True, shape=(size,), stride=lambda: (1,), dtype=torch.float32, device="cuda")
        assert replays(network, x, pixels) == 0
        return done

    monkeypatch.setattr(replay, "recorded", recorded)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    replays, network = Replays(), Ran(4, 32, (1,), (1,), 1)
    first = ["recorded", "ran", "replayed"]
    assert [list(call(5)) for _ in range(4)] == [["ran"], first, ["replayed"], ["replayed"]]
    assert call(5, replay.PIXELS + 1) == ["ran"]
    hook = network.blocks[0].register_forward_hook(lambda *_: None)
    assert [list(call(5)) for _ in range(2)] == [["replayed", "ran"], ["ran"]]  # what was replayed is not used
    hook.remove()
    assert [list(call(5)) for _ in range(2)] == [first, ["replayed"]]
    network.conv_out.weight = nn.Parameter(torch.zeros_like(network.conv_out.weight))
    assert [list(call(5)) for _ in range(2)] == [["replayed", *first], ["replayed"]]
    for size in range(replay.SHAPES):
        call(10 + size)
    assert call(5) == ["ran"]  # forgotten
    for other in (copy.deepcopy(replays), pickle.loads(pickle.dumps(replays))):
        assert not other.graphs
