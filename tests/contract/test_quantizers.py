"""The contract of ``gsqtok.quantizers.base``, held against every registered quantizer."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy
import processes
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch._inductor import config as inductor
from torch.utils.checkpoint import checkpoint

import gsqtok.studies  # noqa: F401, which registers gsq_study
from gsqtok.quantizers import Quantizer, build_quantizer, list_quantizers
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig


@dataclass(frozen=True)
class Case:
    """A quantizer and the bits it must declare.

    ``huge``: the same method with indices beyond 2^24, where it can have them. ``projects``: what it hands on is a
    fixed point of it; not so for residual codes, which are greedy, nor where the latent is squashed before it is
    rounded. ``random``: training draws at random, so that two processes agree with each other, not with one.
    """

    name: str
    options: dict[str, Any]
    bits: float
    huge: dict[str, Any] | None = None
    projects: bool = True
    random: bool = False

    @property
    def draws_indices(self) -> bool:
        return self.options.get("sample", False)

    @property
    def draws_values(self) -> bool:
        """Whether in training a decoder gets what indices do not say."""
        return self.name == "diveq" or bool({"stage_dropout", "nested"} & set(self.options))

    def build(self) -> Quantizer:
        torch.manual_seed(0)
        return build_quantizer(self.name, **self.options)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.options.items())})"


CASES = [
    Case("gsq", {"dim": 8, "groups": 2, "codebook_size": 64}, bits=12),
    Case("gsq", {"dim": 3, "groups": 3, "codebook_size": 32}, bits=15),
    Case("gsq", {"dim": 4, "groups": 2, "codebook_size": 50, "norm": "none"}, bits=2 * math.log2(50)),
    Case("gsq", {"dim": 6, "groups": 2, "codebook_size": 32, "norm": "l1", "output": "normalized"}, bits=10),
    # of two codewords that are alike in bfloat16, rounding decides
    Case("gsq_study", {"dim": 6, "groups": 2, "codebook_size": 32, "search": "bf16"}, bits=10, projects=False),
    Case("vq", {"dim": 6, "groups": 2, "codebook_size": 32}, bits=10),
    Case("vq", {"dim": 6, "codebook_size": 32, "metric": "cosine", "gradient": "rotation"}, bits=5),
    Case("vq", {"dim": 6, "codebook_size": 8, "init": "kmeans"}, bits=3, random=True),  # starts in the second step
    Case("vq", {"dim": 5, "codebook_dim": 6, "groups": 2, "codebook_size": 32}, bits=10, projects=False),
    Case("ema_vq", {"dim": 6, "groups": 2, "codebook_size": 32}, bits=10),
    Case("ema_vq", {"dim": 6, "codebook_size": 64, "revive_after": 1}, bits=6, random=True),
    Case("ema_vq", {"dim": 6, "codebook_size": 8, "metric": "cosine", "init": "kmeans"}, bits=3, random=True),
    Case("gsq", {"dim": 8, "groups": 2, "codebook_size": 64, "codebooks": "separate"}, bits=12),
    Case(
        "gsq",
        {"dim": 6, "groups": 3, "codebook_size": 4, "codebooks": "separate", "init": "kmeans", "gradient": "rotation"},
        bits=6,
        random=True,
    ),
    Case("gsq", {"dim": 9, "groups": 3, "codebook_size": 16, "nested": "uniform"}, bits=12, random=True),
    Case(
        "fsq",
        {"dim": 6, "groups": 3, "levels": [5, 4], "nested": "geometric", "filler": "zeros"},
        bits=3 * math.log2(20),
        projects=False,
        random=True,
    ),
    Case("bsq", {"dim": 12, "groups": 3, "nested": "uniform", "nested_full": 0.5}, bits=12, random=True),
    Case("simvq", {"dim": 6, "groups": 2, "codebook_size": 32, "gradient": "rotation"}, bits=10),
    Case("fvq", {"dim": 6, "groups": 2, "codebook_size": 32, "patch": 8, "width": 16}, bits=10),
    Case("diveq", {"dim": 6, "groups": 2, "codebook_size": 32}, bits=10, random=True),
    Case("ibq", {"dim": 6, "groups": 2, "codebook_size": 32}, bits=10, projects=False),
    Case("rfsq", {"dim": 6, "groups": 2, "stages": 3, "levels": [4, 3, 5]}, bits=6 * math.log2(60), projects=False),
    Case("rlfq", {"dim": 6, "groups": 2, "stages": 3}, bits=18, projects=False),
    Case(
        "fsq",
        {"dim": 8, "groups": 2, "levels": [7, 5, 4, 2]},
        bits=2 * math.log2(280),
        huge={"dim": 12, "levels": [8] * 12},
        projects=False,
    ),
    Case("fsq", {"dim": 3, "target_bits": 9}, bits=9, projects=False),
    Case("lfq", {"dim": 12, "groups": 2}, bits=12, huge={"dim": 124, "groups": 2}),
    Case("bsq", {"dim": 12, "groups": 2, "entropy_bits": 4}, bits=12, huge={"dim": 36}),
    Case("rvq", {"dim": 6, "groups": 2, "stages": 3, "codebook_size": 32}, bits=30, projects=False),
    Case(
        "rvq",
        {"dim": 6, "stages": 2, "codebook_size": 8, "init": "kmeans", "stage_dropout": 0.5},
        bits=6,
        projects=False,
        random=True,
    ),
    Case("rsq", {"dim": 6, "groups": 2, "stages": 3, "codebook_size": 32}, bits=30, projects=False),
    Case("leech", {"dim": 48, "groups": 2}, bits=2 * math.log2(196_560)),
    Case("random_sphere", {"dim": 6, "groups": 2, "codebook_size": 32}, bits=10),
    Case("fibonacci_sphere", {"dim": 6, "groups": 2, "codebook_size": 32}, bits=10),
    Case("identity", {"dim": 3}, bits=96, huge={"dim": 3}),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def latents(dim: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, 4, dim, generator=torch.Generator().manual_seed(seed))


def test_every_registered_quantizer_has_a_case():
    assert {case.name for case in CASES} == set(list_quantizers("*"))


@each_case
@pytest.mark.parametrize("training", [False, True])
def test_shapes_dtypes_and_range(case, training):
    quantizer = case.build().train(training)
    x = latents(quantizer.dim)
    out = quantizer(x)
    assert out.quantized.shape == x.shape
    assert out.quantized.dtype == torch.float32
    assert out.indices.shape == (*x.shape[:-1], quantizer.tokens_per_position)
    assert out.indices.dtype == torch.int64
    assert out.indices.min() >= 0
    assert out.indices.max() < quantizer.codebook_size
    for loss in (out.loss, *out.losses.values()):
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()


@each_case
def test_decode_gives_quantized_bit_for_bit(case):
    quantizer = case.build().eval()
    out = quantizer(3 * latents(quantizer.dim))
    decoded = quantizer.decode(out.indices)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, out.quantized)
    if quantizer.codebook_size <= 2**31:
        assert torch.equal(quantizer.decode(out.indices.int()), out.quantized)


@pytest.mark.parametrize("case", [case for case in CASES if case.projects], ids=str)
def test_quantizing_a_value_again_keeps_it(case):
    quantizer = case.build().eval()
    out = quantizer(latents(quantizer.dim))
    assert torch.equal(quantizer(out.quantized).quantized, out.quantized)


@each_case
def test_any_leading_shape(case):
    quantizer = case.build().eval()
    x = latents(quantizer.dim)
    whole = quantizer(x)
    flat = quantizer(x.reshape(-1, quantizer.dim))
    assert torch.equal(flat.indices, whole.indices.flatten(0, -2))
    assert torch.equal(quantizer(x[0, 0, 0]).indices, whole.indices[0, 0, 0])
    channels_last = quantizer(x.movedim(-1, 1).contiguous().movedim(1, -1))
    assert torch.equal(channels_last.indices, whole.indices)


@each_case
@pytest.mark.parametrize("training", [False, True])
def test_empty_batch(case, training):
    quantizer = case.build().train(training)
    out = quantizer(torch.empty(0, 3, quantizer.dim, requires_grad=True))
    assert out.quantized.shape == (0, 3, quantizer.dim)
    assert out.indices.shape == (0, 3, quantizer.tokens_per_position)
    assert all(loss == 0 for name, loss in out.losses.items() if name != "coding_rate")  # that one is the codebook's
    assert out.loss.isfinite()
    assert quantizer.decode(out.indices).shape == out.quantized.shape
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@each_case
def test_gradient_reaches_latent_and_codebook(case):
    quantizer = case.build().train()
    x = latents(quantizer.dim).requires_grad_()
    torch.manual_seed(1)  # with which a nested case drops a group of one of the two examples
    out = quantizer(x)
    target = latents(quantizer.dim, seed=2)
    (through,) = torch.autograd.grad((out.quantized - target).square().mean(), x, retain_graph=True)
    assert through.isfinite().all()
    assert (through != 0).any(-1).all(), "the gradient of the decoder reaches every latent"
    if out.loss.requires_grad or list(quantizer.parameters()):
        (out.loss + (out.quantized - target).square().mean()).backward()
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_inside_whatever_comes(case, dtype):
    quantizer = case.build().eval()
    x = latents(quantizer.dim).to(dtype)
    expected = quantizer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(x)
        decoded = quantizer.decode(out.indices)
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(decoded, expected.quantized)


@each_case
@pytest.mark.parametrize("scale", [1e-30, 1e20])
def test_only_the_direction_counts_on_a_sphere(case, scale):
    """At lengths whose squares overflow or vanish in float32, too; elsewhere the nearest value is still found."""
    quantizer = case.build().eval()
    x = latents(quantizer.dim)
    out = quantizer(scale * x, check=False)
    spherical = {"gsq", "gsq_study", "bsq", "rsq", "leech", "random_sphere", "fibonacci_sphere"}
    if case.name in spherical and "clip" != getattr(quantizer, "norm", "l2") != "none":
        same = (out.indices == quantizer(x).indices).float().mean()
        assert same > 0.97  # the last bit of a length may decide between two codewords as near
    assert (out.indices >= 0).all()
    assert out.quantized.isfinite().all()


@each_case
def test_what_float32_cannot_hold_is_not_finite(case):
    quantizer = case.build().train()
    x = latents(quantizer.dim).double()
    x[1, 2, 3, 0] = 1e39
    out = quantizer(x)
    assert (out.indices[1, 2, 3] == -1).all()
    assert (out.indices.flatten(0, 2)[:-1] >= 0).all()


@each_case
def test_a_latent_of_zeros_has_a_moderate_gradient(case):
    quantizer = case.build().train()
    x = torch.zeros(4, quantizer.dim, requires_grad=True)
    out = quantizer(x)
    (out.loss + out.quantized.sum()).backward()
    assert x.grad.abs().max() < 100


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_leaves_statistics_in_float32(case, dtype):
    quantizer = case.build().to(dtype).train()
    assert {b.dtype for b in quantizer.buffers()} <= {torch.float32, torch.int64}
    assert {p.dtype for p in quantizer.parameters()} <= {dtype}
    for seed in range(3):
        x = latents(quantizer.dim, seed).to(dtype)
        out = quantizer(x)
        quantizer.update(x, out.indices)
        assert out.quantized.dtype == torch.float32
        assert (out.indices >= 0).all()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@each_case
@pytest.mark.parametrize("training", [False, True])
def test_on_the_meta_device(case, training):
    """Shapes alone; then real memory and a strict load make it what it was, in both ways to give it memory."""
    reference = case.build().eval()
    with torch.device("meta"):
        quantizer, other = case.build(), case.build()
    assert all(value.is_meta for value in quantizer.state_dict().values())
    out = quantizer.train(training)(torch.empty(2, 3, quantizer.dim, device="meta"))
    assert out.quantized.shape == (2, 3, quantizer.dim)
    assert quantizer.decode(out.indices).shape == (2, 3, quantizer.dim)
    quantizer.to_empty(device="cpu").load_state_dict(reference.state_dict())
    other.load_state_dict(reference.state_dict(), assign=True)
    x = latents(reference.dim)
    for restored in (quantizer, other):
        assert torch.equal(restored.eval()(x).quantized, reference(x).quantized)
        assert torch.equal(restored.decode(reference(x).indices), reference(x).quantized)


@each_case
def test_tokens_of_any_integer_type(case):
    quantizer = case.build().eval()
    indices = quantizer(latents(quantizer.dim)).indices
    for dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64):
        if torch.iinfo(dtype).max >= indices.max():
            assert torch.equal(quantizer.decode(indices.to(dtype)), quantizer.decode(indices)), dtype


@each_case
def test_channels_first_and_unpacking(case):
    quantizer = case.build().eval()
    x = latents(quantizer.dim)
    expected = quantizer(x)
    quantized, indices, loss = quantizer(x.movedim(-1, 1), channel_first=True)
    assert torch.equal(quantized, expected.quantized.movedim(-1, 1))
    assert torch.equal(indices, expected.indices)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(quantizer.decode(indices, channel_first=True), quantized)
    with pytest.raises(ValueError, match=r"movedim\(1, -1\), or channel_first=True"):
        quantizer(torch.zeros(2, quantizer.dim, quantizer.dim + 1))


@each_case
def test_a_mask_leaves_positions_out(case):
    quantizer = case.build().train()
    x = latents(quantizer.dim).requires_grad_()
    mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(0)) < 0.6
    torch.manual_seed(0)
    out = quantizer(x, mask=mask)
    torch.manual_seed(0)
    kept = quantizer(x[mask])
    assert torch.equal(out.indices[mask], kept.indices)
    if "nested" not in case.options:  # whose examples are images, not positions
        exact = {"rtol": 0, "atol": 0} if "codebook_dim" not in case.options else {}  # a product of another shape
        torch.testing.assert_close(out.quantized[mask], kept.quantized, **exact)
    assert torch.equal(out.loss, kept.loss)
    assert (out.indices[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    (out.quantized - latents(quantizer.dim, seed=2)).square().sum().backward()
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).any(-1).all()
    with pytest.raises(ValueError, match="mask must be bool of shape"):
        quantizer(x, mask=mask[0])


@pytest.mark.parametrize("case", [case for case in CASES if "codebook_dim" not in case.options], ids=str)
def test_codebook_dim_maps_the_latent_to_it_and_back(case):
    inner = case.build().eval()
    torch.manual_seed(1)
    outer = build_quantizer(case.name, **case.options | {"dim": 7, "codebook_dim": inner.dim}).eval()
    for name, parameter in inner.state_dict().items():
        outer.state_dict()[name].copy_(parameter)
    x = latents(7).requires_grad_()
    out = outer(x)
    assert out.quantized.shape == x.shape
    assert torch.equal(outer.decode(out.indices), out.quantized)
    expected = inner(outer.project_in(x))
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out[0], outer.project_out(expected.quantized))
    (out.quantized - latents(7, seed=2)).square().sum().backward()
    for parameter in (x, outer.project_in.weight, outer.project_out.weight):
        assert parameter.grad.abs().max() > 0
    mask = torch.zeros(x.shape[:-1], dtype=torch.bool)
    assert (outer(x, mask=mask).quantized == 0).all()
    if inner.train().follows:  # the codebook follows what the map gives
        for _ in range(3):
            torch.manual_seed(2)
            outer.train().update(x, out.indices)
            torch.manual_seed(2)
            inner.update(outer.project_in(x), out.indices)
        for name, parameter in inner.state_dict().items():
            assert torch.equal(outer.state_dict()[name], parameter), name


@each_case
def test_state_is_saved_and_loaded(case):
    quantizer = case.build().train()
    x = latents(quantizer.dim)
    quantizer.update(x, quantizer(x).indices)
    torch.manual_seed(123)
    other = build_quantizer(**quantizer.config)
    other.load_state_dict(load(save(quantizer.state_dict())))
    x = latents(quantizer.dim, seed=3)
    assert torch.equal(other.eval()(x).indices, quantizer.eval()(x).indices)
    assert torch.equal(other(x).quantized, quantizer(x).quantized)


def state_of(quantizer: Quantizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


@each_case
def test_forward_changes_no_state(case):
    """So it may be computed again, and what a training step's indices decode to is what its decoder got."""
    quantizer = case.build().train()
    x, before = latents(quantizer.dim), state_of(quantizer)
    out = quantizer(x)
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    if not case.draws_values:
        assert torch.equal(quantizer.decode(out.indices), out.quantized)


def train_two_steps_alone(case: Case, checkpointed: bool, parts: int) -> dict[str, torch.Tensor]:
    """Two SGD steps of a trained layer and the quantizer: the state after them."""
    module = Encoder(case).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(2):
        torch.manual_seed(step)
        seen = []
        for x in latents(module.quantizer.dim, seed=step).flatten(0, 1).chunk(parts):
            x.requires_grad_()
            out = checkpoint(module, x, use_reentrant=False) if checkpointed else module(x)
            ((out.loss + out.quantized.square().mean()) / parts).backward()
            seen.append((module.linear(x), out.indices))
        optimizer.step()
        optimizer.zero_grad()
        module.quantizer.update(*(torch.cat(each) for each in zip(*seen, strict=True)))
    return state_of(module)


@each_case
def test_activation_checkpointing_changes_nothing(case):
    plain, again = (train_two_steps_alone(case, checkpointed, parts=1) for checkpointed in (False, True))
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


@each_case
def test_accumulated_parts_move_a_codebook_as_the_whole_batch(case):
    quantizer, other = case.build().train(), case.build().train()
    x = latents(quantizer.dim).flatten(0, 1)
    torch.manual_seed(0)
    quantizer.update(x, quantizer(x).indices)
    indices = torch.cat([other(part).indices for part in x.chunk(3)])
    torch.manual_seed(0)
    other.update(x, indices)
    if not case.draws_indices:
        torch.testing.assert_close(other.state_dict(), quantizer.state_dict(), rtol=0, atol=0)


@each_case
@pytest.mark.parametrize("stop", ["frozen", "frozen within", "evaluation"])
def test_a_frozen_codebook_does_not_move(case, stop):
    quantizer = case.build().train()
    if stop == "frozen":
        quantizer.requires_grad_(False)
    elif stop == "frozen within":
        tokenizer = tiny_tokenizer(case).train().requires_grad_(False)
        quantizer = tokenizer.quantizer
    else:
        quantizer.eval()
    x, before = latents(quantizer.dim), state_of(quantizer)
    for _ in range(8):
        quantizer.update(x, quantizer(x).indices)
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)


def test_codebooks_move_by_update_alone():
    """What the tests above would not see if nothing moved at all."""
    for case in CASES:
        quantizer = case.build().train()
        x, before = torch.cat([latents(quantizer.dim, seed) for seed in range(8)]), state_of(quantizer)
        follows = quantizer.follows
        quantizer.update(x, quantizer(x).indices)
        moved = any(not torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
        assert moved == follows == (case.name == "ema_vq" or case.options.get("init") == "kmeans"), str(case)


def test_update_refuses_another_batch():
    quantizer = CASES[0].build()
    x = latents(quantizer.dim)
    with pytest.raises(ValueError, match="not of one batch"):
        quantizer.update(x, quantizer(x[:1]).indices)


@each_case
def test_config_rebuilds_through_json(case):
    quantizer = case.build()
    config = json.loads(json.dumps(quantizer.config))
    rebuilt = build_quantizer(**config)
    assert config["name"] == case.name
    assert rebuilt.config == quantizer.config
    assert type(rebuilt) is type(quantizer)
    assert str(quantizer.dim) in repr(quantizer)


@each_case
def test_bits_as_declared(case):
    quantizer = case.build()
    assert quantizer.bits == pytest.approx(case.bits)
    assert quantizer.bits == pytest.approx(quantizer.tokens_per_position * math.log2(quantizer.codebook_size))
    if quantizer.codebook_size <= 1024:  # all values of a token are different values for the decoder
        indices = torch.zeros(quantizer.codebook_size, quantizer.tokens_per_position, dtype=torch.int64)
        indices[:, -1] = torch.arange(quantizer.codebook_size)
        assert len(quantizer.decode(indices).unique(dim=0)) == quantizer.codebook_size


@pytest.mark.parametrize("case", [case for case in CASES if "nested" in case.options], ids=str)
def test_the_first_groups_decode_alone(case):
    quantizer = case.build().eval()
    groups = quantizer.groups
    if case.options.get("filler") != "zeros":
        nn.init.normal_(quantizer.fillers)
    x = latents(quantizer.dim)
    out = quantizer(x)
    filler = quantizer.fillers if quantizer.filler == "learned" else torch.zeros(quantizer.dim)
    for k in range(1, groups + 1):
        assert quantizer.tokens_of(k) == k
        expected = torch.cat(
            [out.quantized[..., : k * quantizer.group_dim], filler[k * quantizer.group_dim :].expand(2, 3, 4, -1)], -1
        )
        first = out.indices[..., :k]
        assert torch.equal(quantizer.decode(first), expected)
        assert torch.equal(quantizer.decode(nn.functional.pad(first, (0, groups - k), value=-1)), expected)
    counts = torch.randint(1, groups + 1, x.shape[:-1])
    left_out = torch.arange(groups) >= counts[..., None]
    mixed = quantizer.decode(out.indices.masked_fill(left_out, -1))
    for place in numpy.ndindex(*counts.shape):
        assert torch.equal(mixed[place], quantizer.decode(out.indices[place][: counts[place]]))
    for k in (0, -1, groups + 1):
        with pytest.raises(ValueError, match=f"groups must be from 1 to {groups}, got {k}"):
            quantizer.tokens_of(k)
    for k in (2.0, True, "1"):
        with pytest.raises(TypeError, match=f"groups must be a whole number from 1 to {groups}, got {k!r}"):
            quantizer.tokens_of(k)
    hole = out.indices[0, 0, 0].clone()
    hole[1] = -1
    with pytest.raises(ValueError, match="all behind it must be -1"):
        quantizer.decode(hole)


@pytest.mark.parametrize("case", [case for case in CASES if "nested" in case.options], ids=str)
def test_training_draws_the_groups_of_each_example(case):
    quantizer = case.build().train()
    x = latents(quantizer.dim).flatten(0, 2)
    groups_are_filled = (quantizer.split(quantizer.eval()(x).quantized) != 0).any(-1).all(-1)  # 0 may be a codeword
    x = x[groups_are_filled].expand(4000, -1, -1)
    torch.manual_seed(0)
    out = quantizer.train()(x)
    whole = quantizer.eval()(x[:1]).quantized
    mixed = build_quantizer(case.name, **case.options, nested_mixed=1.0).train()
    mixed.load_state_dict(quantizer.state_dict())
    same = (mixed.split(mixed(x[:400]).quantized) == mixed.split(whole)).all(-1).sum(-1)
    assert (same != same[:, :1]).any(), "a number of groups for each position"
    same = (quantizer.split(out.quantized) == quantizer.split(whole)).all(-1)
    counts = same.sum(-1)
    assert (counts == counts[:, :1]).all(), "one number of groups for all positions of an example"
    shares = torch.bincount(counts[:, 0], minlength=quantizer.groups + 1)[1:] / len(x)
    full = case.options.get("nested_full", 0.0)
    weights = torch.tensor([2.0**k if case.options["nested"] == "geometric" else 1.0 for k in range(quantizer.groups)])
    expected = (1 - full) * weights / weights.sum()
    expected[-1] += full
    assert (shares - expected).abs().max() < 0.04  # 5 standard deviations


@each_case
def test_options_of_nested_groups_that_would_change_nothing(case):
    if "nested" not in case.build().config:  # methods of one value, and residual ones, have other options
        return
    plain = {name: value for name, value in case.options.items() if not name.startswith(("nested", "filler"))}
    as_saved = {"nested": None, "nested_full": 0.0, "nested_mixed": 0.0, "filler": "learned"}
    assert build_quantizer(case.name, **plain, **as_saved).nested is None
    for name, value in {"nested_full": 0.5, "nested_mixed": 0.5, "filler": "zeros"}.items():
        with pytest.raises(ValueError, match=f"{name} is for nested groups.* give nested: uniform"):
            build_quantizer(case.name, **plain, **{name: value})
    if case.build().groups == 1:
        with pytest.raises(ValueError, match="nested: geometric leaves out some of several groups, got groups = 1"):
            build_quantizer(case.name, **plain, nested="geometric")


@each_case
def test_fewer_groups_need_nesting(case):
    quantizer = case.build()
    of_all = getattr(quantizer, "groups", 1)
    assert quantizer.tokens_of(None) == quantizer.tokens_of(of_all) == quantizer.tokens_per_position
    if "nested" not in case.options and of_all > 1:
        with pytest.raises(ValueError, match="not trained with nested groups"):
            quantizer.tokens_of(1)
        tokens = quantizer.tokens_per_position
        with pytest.raises(ValueError, match="its groups are not nested"):
            quantizer.decode(torch.zeros(2, tokens - 1, dtype=torch.int64))


@each_case
def test_same_input_same_output(case):
    quantizer = case.build().eval()
    x = latents(quantizer.dim)
    assert torch.equal(quantizer(x).indices, quantizer(x).indices)
    state = {k: v.clone() for k, v in quantizer.state_dict().items()}
    assert all(torch.equal(v, state[k]) for k, v in quantizer.state_dict().items()), "evaluation changes no state"


@each_case
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_latents_that_are_not_finite(case, bad):
    quantizer = case.build()
    x = latents(quantizer.dim)
    good = quantizer.eval()(x)
    x[1, 2, 3, 0] = bad
    with pytest.raises(ValueError, match="1 of 24 latent vectors"):
        quantizer(x)
    for out in (quantizer(x, check=False), quantizer.train()(x)):
        assert (out.indices[1, 2, 3] == -1).all()
        assert out.quantized[1, 2, 3].isnan().all()
        assert out.loss.isnan()
        others = (indices.flatten(0, 2)[:-1] for indices in (out.indices, good.indices))
        assert torch.equal(*others), "the others are not touched"
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@each_case
def test_bad_input_is_refused(case):
    quantizer = case.build().eval()
    tokens = quantizer.tokens_per_position
    with pytest.raises(ValueError, match=f"last dimension must be dim = {quantizer.dim}"):
        quantizer(torch.zeros(2, quantizer.dim + 1))
    with pytest.raises(ValueError, match="last dimension must be dim"):
        quantizer(torch.zeros(()))
    for wrong in (torch.zeros(2, quantizer.dim, dtype=torch.int64), numpy.zeros((2, quantizer.dim))):
        with pytest.raises(TypeError, match="floating-point tensor"):
            quantizer(wrong)
    with pytest.raises(ValueError, match=f"last dimension of the indices must be {tokens}"):
        quantizer.decode(torch.zeros(2, tokens + 1, dtype=torch.int64))
    for wrong in (torch.zeros(2, tokens), torch.zeros(2, tokens, dtype=torch.bool), numpy.zeros((2, tokens), int)):
        with pytest.raises(TypeError, match="indices must be a tensor of integers"):
            quantizer.decode(wrong)
    with pytest.raises(ValueError, match=f"last dimension of the indices must be {tokens}"):
        quantizer.decode(torch.zeros(2, 0, dtype=torch.int64))
    for wrong in (-1, quantizer.codebook_size):
        with pytest.raises(ValueError, match=f"index {wrong} is out of range"):
            quantizer.decode(torch.full((2, tokens), wrong))
    with pytest.raises(ValueError):
        build_quantizer(case.name, **(case.options | {"dim": 0}))


FIRST = list({case.name: case for case in reversed(CASES)}.values())  # of each method


# Of each implementation the first method, without those for studies: Inductor writes its code from the graphs that
# aot_eager runs, and a C++ compiler takes seconds a graph.
METHODS = [case for case in FIRST if ".studies." not in type(case.build()).__module__]
WRITTEN_APART = list({type(case.build()).quantize: case for case in reversed(METHODS)}.values())
INDUCTOR = [(CASES[0], False), *((case, True) for case in WRITTEN_APART)]


def compiled_by(case: Case, training: bool) -> str:
    """The least that shows what is new.

    Evaluation is traced and functionalised by test_exports, and of a method's other options these two alone compute
    with what no first case has: what is left is that Dynamo sees one graph, and that it and its gradients are right.
    """
    if (case, training) in INDUCTOR and os.environ.get("ATEN_CPU_CAPABILITY") != "default":  # else at::vec all the same
        return "inductor"
    new = case in FIRST or {"sample", "codebook_dim"} & set(case.options)
    return "aot_eager" if training and new else "eager"


# Training has all that evaluation has, in every case, and what only training has besides; what evaluation leaves out is
# left out by each implementation, whatever the method.
@pytest.mark.parametrize(
    ("case", "training"),
    [*((case, True) for case in CASES), *((case, False) for case in [CASES[0], *WRITTEN_APART])],
    ids=str,
)
def test_compiles_without_a_graph_break(case, training):
    with inductor.patch(fallback_random=True):  # the same draws as in eager mode
        check_compiled(case, training, compiled_by(case, training))


def check_compiled(case: Case, training: bool, backend: str) -> None:
    torch.compiler.reset()
    eager, quantizer = case.build().train(training), case.build().train(training)
    x = latents(quantizer.dim).requires_grad_()
    y = x.detach().clone().requires_grad_()
    compiled = torch.compile(quantizer, fullgraph=True, backend=backend)
    torch.manual_seed(0)
    out = compiled(y)
    torch.manual_seed(0)
    expected = eager(x)
    assert torch.equal(out.indices, expected.indices)
    torch.testing.assert_close(out.quantized, expected.quantized)
    torch.testing.assert_close(out.loss, expected.loss)
    (expected.loss + expected.quantized.square().mean()).backward()
    (out.loss + out.quantized.square().mean()).backward()
    torch.testing.assert_close(y.grad, x.grad)
    for a, b in zip(quantizer.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(quantizer.state_dict(), eager.state_dict())


# Options at which evaluation does not look: its graph is that of a case without them.
IN_TRAINING = {"entropy_bits", "init", "nested", "revive_after", "stage_dropout", "target_bits"}
EXPORTED = [case for case in CASES if case in FIRST or "metric" in case.options or not IN_TRAINING & set(case.options)]


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_exports(case):
    """Its parts, of which parts round otherwise, are what ONNX is written from: see tests/export."""
    quantizer = case.build().eval()
    x = latents(quantizer.dim)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(quantizer, (x,), dynamic_shapes={"latent": {0: batch}})
    larger = torch.cat([x, latents(quantizer.dim, seed=5), x])
    expected = quantizer(larger)
    programs = [program]
    if case in FIRST:  # options change nothing about files
        torch.export.save(program, file := io.BytesIO())
        file.seek(0)
        programs.append(torch.export.load(file))
    for exported in programs:
        out = exported.module()(larger)
        assert torch.equal(out.indices, expected.indices)
        assert torch.equal(out.quantized, expected.quantized)


@pytest.mark.parametrize("case", [case for case in CASES if case.huge], ids=str)
def test_indices_above_float32_integers_are_exact(case):
    quantizer = build_quantizer(case.name, **case.huge).eval()
    assert quantizer.codebook_size > 2**24
    shape = (64, quantizer.tokens_per_position)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(2**24, quantizer.codebook_size, shape, generator=generator)
    indices[0], indices[1] = 2**24 + 1, quantizer.codebook_size - 1  # neither is a float32
    if case.name == "identity":
        indices = indices % 0x7F800000  # above are negative numbers, infinity and NaN
    values = quantizer.decode(indices)
    latent = unsquashed(quantizer, values) if case.name == "fsq" else values
    out = quantizer(latent)
    assert torch.equal(out.indices, indices)
    assert torch.equal(out.quantized, values)


def unsquashed(quantizer: Quantizer, values: torch.Tensor) -> torch.Tensor:
    """A latent that FSQ takes to these values, for 8 levels: tanh undone, a little inside the outer levels."""
    half = 3.5 * (1 - 1e-3)
    return torch.atanh((values * 4 + 0.5) * 0.998 / half) - math.tan(0.5 / half)


def tiny_tokenizer(case: Case) -> ImageTokenizer:
    options = {name: value for name, value in case.options.items() if name != "dim"}
    return ImageTokenizer(
        TokenizerConfig(
            latent_dim=case.options["dim"],
            channels=32,
            multipliers=(1, 1),
            encoder_blocks=0,
            decoder_blocks=0,
            encoder_middle_blocks=1,
            decoder_middle_blocks=1,
            quantizer={"name": case.name, **options},
        )
    )


class Encoder(nn.Module):
    """A trained layer before a quantizer, to see the gradients that DDP averages."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.quantizer = case.build()
        self.linear = nn.Linear(self.quantizer.dim, self.quantizer.dim)

    def forward(self, x: torch.Tensor):
        return self.quantizer(self.linear(x))


def train_two_steps(case: Case, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Two SGD steps on this rank's share of the batch; the state after them and the indices on the whole batch."""
    module = Encoder(case).train()
    model = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False) if world > 1 else module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for step in range(2):
        x = latents(module.quantizer.dim, seed=10 + step).flatten(0, 2).chunk(world)[rank]
        target = latents(module.quantizer.dim, seed=20 + step).flatten(0, 2).chunk(world)[rank]
        out = model(x)
        optimizer.zero_grad()
        (out.loss + (out.quantized - target).square().mean()).backward()
        optimizer.step()
        module.quantizer.update(module.linear(x), out.indices)
    whole = module.eval()(latents(module.quantizer.dim, seed=30))
    state = dict(module.state_dict()) | {"quantized": whole.quantized}
    if module.quantizer.codebook_size < 2**32:  # the last bits of a float32 depend on how a sum was split
        state["indices"] = whole.indices
    return state


def run_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save([train_two_steps(case, rank, 2) for case in CASES], f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[list[dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("two_processes")
    processes.spawn(run_rank, (str(folder),))
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_two_processes_equal_one(number, two_processes):
    one = train_two_steps(CASES[number], 0, 1)
    for rank in range(2):
        two = two_processes[rank][number]
        if not CASES[number].random:
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    for key, value in two_processes[0][number].items():
        assert torch.equal(value, two_processes[1][number][key]), f"{key} differs between the ranks"
