"""Two ranks that share a tokenizer out, against one that holds all of it."""

import copy

import processes
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.training import OptimizerConfig
from gsqtok.training.ema import Average
from gsqtok.training.optimizer import build_optimizer
from gsqtok.training.sharding import shard, take_whole_state, whole, whole_state

CONFIG = TokenizerConfig(
    latent_dim=8,
    channels=32,
    multipliers=(1, 1),
    encoder_blocks=1,
    decoder_blocks=1,
    encoder_middle_blocks=0,
    decoder_middle_blocks=0,
    adaptive_norm=True,
    quantizer={"name": "gsq", "groups": 2, "codebook_size": 7},  # which two ranks cannot share evenly
)
CPU = torch.device("cpu")


def start(frozen):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(CONFIG).train()
    if frozen:
        for part in (tokenizer.encoder, tokenizer.quantizer):
            part.requires_grad_(False).eval()
    tokenizer.decoder.recompute_levels = 1
    return tokenizer, Average(tokenizer, 0.5)


def one_step(tokenizer, average, optimizer, images):
    """A training step; the norm of its gradient."""
    for part in images.chunk(2):  # gradients add up
        out = tokenizer(part)
        (out.reconstruction.square().mean() + out.quantizer_loss).backward()
    norm = whole(torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 0.1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    average.update_parameters(tokenizer)
    return norm


def state_of(tokenizer, average, optimizer):
    return copy.deepcopy([tokenizer.state_dict(), average.state_dict(), optimizer.state_dict()])


def train(frozen, images, sharded):
    """A step, then one more by another tokenizer that takes over from the state dicts."""
    norms, states = [], []
    for _ in range(2):
        tokenizer, average = start(frozen)
        if sharded:
            shard(tokenizer)
            shard(average.module)
            assert all(isinstance(p, DTensor) for p in tokenizer.parameters())
            shares = [p.to_local().numel() for p in tokenizer.parameters()]
            assert 0.4 < sum(shares) / sum(p.numel() for p in tokenizer.parameters()) < 0.6
        optimizer = build_optimizer(tokenizer, OptimizerConfig(eps=1e-3), CPU)
        take_whole_state(optimizer)
        if states:
            for part, state in zip((tokenizer, average, optimizer), states[-1], strict=True):
                part.load_state_dict(copy.deepcopy(state))  # an optimiser goes on in the tensors that it is given
            if sharded:
                for moment in (optimizer.state[p]["exp_avg"].to_local() for p in optimizer.param_groups[0]["params"]):
                    assert moment.untyped_storage().nbytes() == 4 * moment.numel()
        norms.append(one_step(tokenizer, average, optimizer, images))
        with whole_state(optimizer):
            states.append(state_of(tokenizer, average, optimizer))
    return norms, states


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    # parts of a step are halves of the batch: this rank takes half of each
    images = torch.load(f"{folder}/images.pt").unflatten(0, (2, 2, 2))[:, rank].flatten(0, 1)
    torch.save([train(frozen, images, sharded=True) for frozen in (False, True)], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_a_state_lies_in_memory_as_the_parameters_do():
    """Fused AdamW needs that, and a checkpoint may come from a CPU, or from shares."""

    def taught(layout):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(4, 8, 3).to(memory_format=layout)
        optimizer = build_optimizer(network, OptimizerConfig(), CPU)
        network(torch.ones(1, 4, 3, 3)).square().sum().backward()
        optimizer.step()
        take_whole_state(optimizer)
        return network, optimizer

    _, other = taught(torch.contiguous_format)
    network, optimizer = taught(torch.channels_last)
    optimizer.load_state_dict(other.state_dict())
    for parameter, theirs in zip(network.parameters(), other.param_groups[0]["params"], strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            ours = optimizer.state[parameter][name]
            assert ours.stride() == parameter.stride()
            assert torch.equal(ours, other.state[theirs][name])


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.save(images, tmp_path / "images.pt")
    processes.spawn(run_rank, (str(tmp_path),))
    for number, frozen in enumerate((False, True)):
        expected = train(frozen, images, sharded=False)
        for rank in range(2):
            ours = torch.load(tmp_path / f"rank{rank}.pt")[number]  # plain tensors, or this would not be read
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert expected[0][0] > 0.1  # clipped
