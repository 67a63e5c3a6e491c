"""The probabilities of a prior against brute force: every grid of a toy vocabulary."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from gsqtok.generation.prior import Prior, PriorModelConfig, Vocabulary, codewords_of
from gsqtok.quantizers import build_quantizer

V, G = 3, 2


@pytest.fixture
def make():
    def make(head="depth", embedding="tables", classes=2, grid=(1, 2), size=V, groups=G):
        torch.manual_seed(0)
        codewords = torch.randn(1, size, 4) if embedding == "codewords" else None
        config = PriorModelConfig(head=head, embedding=embedding, width=64, layers=2, head_layers=1)
        prior = Prior(config, Vocabulary("a" * 64, groups, size, grid, classes), codewords)
        for parameter in prior.parameters():  # away from the start, where all is nearly uniform
            parameter.data += 0.3 * torch.randn_like(parameter) * parameter.abs().mean()
        for name, parameter in prior.named_parameters():
            if "last" in name or "second" in name:
                parameter.data *= 10
        return prior.eval()

    return make


def every_grid(rows, columns):
    tokens = list(itertools.product(range(V), repeat=rows * columns * G))
    return torch.tensor(tokens).view(-1, rows, columns, G)


@pytest.mark.parametrize("embedding", ["tables", "codewords"])
@pytest.mark.parametrize("head", ["depth", "parallel"])
@torch.no_grad()
def test_probabilities_of_all_grids_sum_to_one(make, head, embedding):
    grids, prior = every_grid(1, 2), make(head, embedding)
    for labels in (None, torch.full((len(grids),), 1)):
        probabilities = (-prior(grids, labels).sum((1, 2, 3))).double().exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
        assert probabilities.max() > 3 / len(grids)  # far from uniform, which would sum to one whatever is wrong


@torch.no_grad()
def test_the_exact_copy_is_a_distribution_close_to_its_prior(make):
    grids, prior = every_grid(1, 2), make()
    exact = (-prior.exact()(grids).sum((1, 2, 3))).exp()
    assert exact.sum().item() == pytest.approx(1, abs=1e-5)
    assert (exact - (-prior(grids).sum((1, 2, 3))).exp()).abs().max() < 0.01


@torch.no_grad()
def test_the_depth_head_is_the_chain_rule(make):
    """P(t1, t2 | before) of the first position by marginals of all grids, against what the head says of each group."""
    prior = make()
    grids = every_grid(1, 2)
    joint = (-prior(grids).sum((1, 2, 3))).double().exp().view(V, V, V, V)
    losses = prior(grids).view(V, V, V, V, 2, G)
    first, both = joint.sum((1, 2, 3)), joint.sum((2, 3))
    torch.testing.assert_close(losses[:, 0, 0, 0, 0, 0].double(), -first.log(), atol=1e-5, rtol=1e-5)
    given = -(both / first[:, None]).log()
    torch.testing.assert_close(losses[:, :, 0, 0, 0, 1].double(), given, atol=1e-5, rtol=1e-5)
    assert (given - given[:1]).abs().max() > 1e-2  # the second group does depend on the first


@torch.no_grad()
def test_who_sees_whom(make):
    """A token changed: which losses of a 2 x 2 grid change with it."""
    tokens = torch.randint(V, (1, 2, 2, G))
    for head in ("depth", "parallel"):
        prior = make(head, grid=(2, 2))
        before = prior(tokens).view(4, G)
        for position, group in itertools.product(range(4), range(G)):
            changed = tokens.clone().view(1, 4, G)
            changed[0, position, group] = (changed[0, position, group] + 1) % V
            moved = (prior(changed.view(tokens.shape)).view(4, G) - before).abs() > 1e-7
            assert not moved[:position].any()
            assert moved[position + 1 :].all()
            expected = [other == group or (head == "depth" and other > group) for other in range(G)]
            assert moved[position].tolist() == expected


@torch.no_grad()
def test_the_masked_head_sees_all_but_what_is_hidden(make):
    prior, tokens = make("masked", grid=(2, 2)), torch.randint(V, (1, 2, 2, G))
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    hidden[0, 0, 1, 0] = hidden[0, 1, 1, 1] = True
    losses = prior(tokens, hidden=hidden)
    assert torch.equal(losses != 0, hidden)
    other = tokens.clone()
    other[0, 1, 1, 1] = (other[0, 1, 1, 1] + 1) % V
    assert prior(other, hidden=hidden)[0, 0, 1, 0] == losses[0, 0, 1, 0]  # a hidden token says nothing
    other[0, 1, 0, 0] = (other[0, 1, 0, 0] + 1) % V
    assert prior(other, hidden=hidden)[0, 0, 1, 0] != losses[0, 0, 1, 0]
    with pytest.raises(ValueError, match="told which tokens are hidden"):
        prior(tokens)


@pytest.mark.parametrize("exact", [False, True])
@torch.no_grad()
def test_the_cache_changes_nothing(make, exact):
    prior = make(grid=(3, 4), embedding="codewords")
    tokens, labels = torch.randint(V, (2, 3, 4, G)), torch.tensor([0, 2])
    if exact:
        prior = prior.exact()
    whole = prior.positions(tokens, labels)
    state, flat = prior.begin(2, (3, 4), labels), tokens.flatten(1, 2)
    steps = torch.stack([prior.step(state, flat[:, i - 1] if i else None) for i in range(12)], 1)
    if exact:
        assert torch.equal(steps, whole)
    else:
        torch.testing.assert_close(steps, whole, atol=1e-5, rtol=1e-5)


def test_losses_in_parts_are_those_of_the_whole(make, monkeypatch):
    prior, tokens = make(grid=(2, 3)), torch.randint(V, (4, 2, 3, G))
    whole = prior(tokens)
    whole.sum().backward()
    gradients = {name: p.grad.clone() for name, p in prior.named_parameters()}
    prior.zero_grad()
    monkeypatch.setattr("gsqtok.generation.embeddings.MOST_LOGITS", 5 * V)
    parts = prior(tokens)
    parts.sum().backward()
    torch.testing.assert_close(parts, whole)
    for name, parameter in prior.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["depth", "masked"])
@torch.no_grad()
def test_losses_of_chosen_positions(make, head):
    prior, tokens = make(head, grid=(2, 3)), torch.randint(V, (2, 2, 3, G))
    hidden = torch.rand(tokens.shape) < 0.7 if head == "masked" else None
    whole = prior(tokens, hidden=hidden).flatten(1, 2)
    chosen = torch.tensor([[4, 0], [1, 2]])
    some = prior(tokens, hidden=hidden, chosen=chosen)
    torch.testing.assert_close(some, torch.stack([whole[0, [4, 0]], whole[1, [1, 2]]]))


def test_all_parameters_are_trained(make):
    """Else data-parallel training would wait for a gradient that never comes."""
    tokens = torch.randint(V, (2, 1, 2, G))
    for head, embedding in itertools.product(("depth", "parallel", "masked"), ("tables", "codewords")):
        prior = make(head, embedding)
        prior(tokens, None, torch.ones_like(tokens, dtype=torch.bool) if head == "masked" else None).sum().backward()
        assert [name for name, p in prior.named_parameters() if p.grad is None] == []


def test_heads_have_equally_many_parameters(make):
    counts = [sum(p.numel() for p in make(head).parameters()) for head in ("depth", "parallel", "masked")]
    assert max(counts) < 1.01 * min(counts)


def test_codewords_need_no_table_of_the_codebook_s_size():
    config = PriorModelConfig(embedding="codewords", width=64, layers=1, head_layers=1)
    sizes = [
        sum(p.numel() for p in Prior(config, Vocabulary("a", 2, size, (2, 2)), torch.zeros(1, size, 4)).parameters())
        for size in (16, 262_144)
    ]
    assert sizes[0] == sizes[1]


def test_codewords_are_what_the_quantizer_decodes(tiny_tokenizer):
    codewords = codewords_of(tiny_tokenizer)
    assert codewords.shape == (1, 64, 4)
    tokens = torch.randint(64, (10, 2))
    expected = tiny_tokenizer.quantizer.decode(tokens)
    assert torch.equal(F.embedding(tokens, codewords[0]).flatten(1), expected)
    tiny_tokenizer.quantizer = build_quantizer("rvq", dim=8, stages=2, codebook_size=16)
    with pytest.raises(ValueError, match=r"model.embedding tables"):
        codewords_of(tiny_tokenizer)


def test_saved_and_loaded(make, tmp_path):
    prior, tokens = make(embedding="codewords"), torch.randint(V, (2, 1, 2, G))
    prior.save_pretrained(tmp_path / "run" / "prior")
    loaded = Prior.from_pretrained(tmp_path / "run")  # of a run, or its own folder
    assert (
        loaded.fingerprint() == prior.fingerprint() == Prior.from_pretrained(tmp_path / "run" / "prior").fingerprint()
    )
    assert torch.equal(loaded(tokens), prior(tokens))
    with torch.no_grad():
        next(loaded.parameters()).add_(1e-3)
    assert loaded.fingerprint() != prior.fingerprint()
    with pytest.raises(FileNotFoundError, match="no prior in"):
        Prior.from_pretrained(tmp_path)
    (tmp_path / "run" / "prior" / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="does not hold a prior"):
        Prior.from_pretrained(tmp_path / "run")


def test_wrong_use_is_refused(make):
    prior = make()
    with pytest.raises(ValueError, match=r"tokens must be \(B, h, w, 2\)"):
        prior(torch.zeros(1, 2, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="there is no class 2: this prior knows 0 to 1"):
        prior.labels([0, 2])
    with pytest.raises(ValueError, match="multiple of 64"):
        PriorModelConfig(width=100)


def test_a_random_prior_costs_about_log_v(make):
    config = PriorModelConfig(width=64, layers=1, head_layers=1)
    torch.manual_seed(0)
    prior = Prior(config, Vocabulary("a", 2, 50, (2, 2)), torch.randn(1, 50, 4))
    assert prior(torch.randint(50, (8, 2, 2, 2))).mean().item() == pytest.approx(math.log(50), rel=0.1)
