import copy

import pytest
import torch
from torch import nn

from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.training.muon import CODEBOOK_RATE, MATRIX_RATE, Muon, orthogonal


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 30))
        self.vector = nn.Parameter(torch.randn(7))


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
def test_singular_values(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3  # those of a square matrix near zero rise more slowly
    assert values.max() < 1.25
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ found @ right.mT  # diagonal where the singular vectors are the same
    assert (rotated - torch.diag_embed(rotated.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_updates_of_torch():
    """The matrix's part is torch.optim.Muon's up to bfloat16, the rest torch.optim.AdamW's."""
    torch.manual_seed(0)
    ours, theirs = Two(), Two()
    theirs.load_state_dict(ours.state_dict())
    optimizer = Muon(ours, lr=1e-3, weight_decay=0.1)
    muon = torch.optim.Muon([theirs.matrix], lr=1e-3 * MATRIX_RATE, weight_decay=0.1 / MATRIX_RATE)
    adamw = torch.optim.AdamW([theirs.vector], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    start = ours.matrix.detach().clone()
    for _ in range(5):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
    torch.testing.assert_close(ours.vector, theirs.vector, rtol=1e-6, atol=1e-7)
    way, expected = ours.matrix - start, theirs.matrix - start
    assert (way - expected).norm() < 0.03 * expected.norm()


def test_a_convolution_is_a_matrix():
    torch.manual_seed(0)
    conv, flat = nn.Conv2d(4, 6, 3, bias=False), nn.Linear(36, 6, bias=False)
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    flat.weight.data = conv.weight.data.flatten(1).clone()
    conv.weight.grad = torch.randn_like(conv.weight)
    flat.weight.grad = conv.weight.grad.flatten(1).clone()
    for network in (conv, flat):
        Muon(network).step()
    torch.testing.assert_close(conv.weight.flatten(1), flat.weight, rtol=0, atol=1e-6)


def test_groups_of_a_tokenizer():
    config = TokenizerConfig(network="compact", latent_dim=8, channels=32, multipliers=(1, 1), encoder_blocks=1)
    tokenizer = ImageTokenizer(config)
    groups = {group["rate"]: {id(p) for p in group["params"]} for group in Muon(tokenizer).param_groups}
    assert id(tokenizer.encoder.blocks[0].conv1.weight) in groups[MATRIX_RATE]
    assert groups[CODEBOOK_RATE] == {id(tokenizer.quantizer.codebook)}
    for parameter in (
        tokenizer.encoder.conv_in.weight,
        tokenizer.decoder.conv_out.weight,
        tokenizer.decoder.norm_out.bias,
    ):
        assert id(parameter) in groups[1.0]
    assert sum(map(len, groups.values())) == len(list(tokenizer.parameters()))


def test_what_is_frozen_stays():
    network = Two()
    network.matrix.requires_grad_(False)
    assert [len(group["params"]) for group in Muon(network).param_groups] == [1]


def test_an_update_is_left_out():
    torch.manual_seed(0)
    network = Two()
    optimizer = Muon(network, weight_decay=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = [p.detach().clone() for p in network.parameters()]
    state = [value.clone() for values in optimizer.state.values() for value in values.values()]
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(map(torch.equal, network.parameters(), before))
    assert all(map(torch.equal, [v for values in optimizer.state.values() for v in values.values()], state))


def test_goes_on_from_its_state():
    torch.manual_seed(0)
    first, second = Two(), Two()
    one = Muon(first)
    gradients = [[torch.randn_like(p) for p in first.parameters()] for _ in range(4)]

    def steps(network, optimizer, rows):
        for row in rows:
            for parameter, gradient in zip(network.parameters(), row, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    steps(first, one, gradients[:2])
    second.load_state_dict(first.state_dict())
    two = Muon(second)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    steps(first, one, gradients[2:])
    steps(second, two, gradients[2:])
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_a_state_read_on_the_cpu_goes_where_the_parameters_are():
    """Checkpoints are read there; PyTorch moves all of a state but the count of steps."""
    network = Two()
    one = Muon(network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    one.step()
    elsewhere = Muon(copy.deepcopy(network).to("meta"))
    elsewhere.load_state_dict(one.state_dict())
    found = {name: value.device.type for values in elsewhere.state.values() for name, value in values.items()}
    assert found == dict.fromkeys(("momentum", "exp_avg", "exp_avg_sq", "step"), "meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_updates_from_a_graph_equal_plain_ones(tmp_path):
    """With another learning rate at each step, one update left out, another layout of gradients, and a state loaded."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)).cuda()
    network = network.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(network)
    pair = Muon(network, weight_decay=0.1), Muon(plain, weight_decay=0.1, record=False)
    for step in range(8):
        if step == 5:
            torch.save(pair[0].state_dict(), tmp_path / "state.pt")  # a checkpoint is read to the CPU
            pair[0].load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
        gradients = [torch.randn(p.shape, device="cuda") for p in network.parameters()]
        for optimizer, each in zip(pair, (network, plain), strict=True):
            for p, gradient in zip(each.parameters(), gradients, strict=True):
                p.grad = gradient.clone().to(memory_format=torch.channels_last) if gradient.ndim == 4 else gradient
                if step % 2 and gradient.ndim == 4:
                    p.grad = gradient.clone()
            optimizer.found_inf = torch.tensor(float(step == 3), device="cuda")
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 / (1 + step)
            optimizer.step()
        for a, b in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
