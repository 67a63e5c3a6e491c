"""The search against truths computed here, apart from it: NumPy in float64 or wider, brute force."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from search_truth import SCALES, is_nearest_by_fractions, mixed_scales, nearest_by_distance

from gsqtok.search import chunked, nearest, reference
from gsqtok.search import sorted as sorted_search
from gsqtok.search.codebook import Codebook

GAP = 2e-7  # how far below the best the chosen codeword's similarity may be at d >= 3
DIMS = [1, 2, 3, 4, 5, 8, 16, 32, 64]
KINDS = ["uniform", "clustered", "duplicated", "close", "bisector"]


def make(kind: str, n: int, v: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (n, d) and a codebook (v, d), float32."""
    g = torch.Generator().manual_seed(seed)
    latents, codebook = torch.randn(n, d, generator=g), torch.randn(v, d, generator=g)
    if kind == "clustered":
        centres = torch.randn(3, d, generator=g)
        codebook = centres[torch.randint(3, (v,), generator=g)] + 1e-2 * codebook
        latents = centres[torch.randint(3, (n,), generator=g)] + 1e-2 * latents
    elif kind == "duplicated":
        codebook = codebook[torch.randint(max(1, v // 4), (v,), generator=g)]
    elif kind == "close":
        codebook = torch.randn(1, d, generator=g) + 1e-3 * F.normalize(codebook, dim=1)
    elif kind == "bisector":
        pairs = F.normalize(codebook, dim=1)[torch.randint(v, (n, 2), generator=g)]
        latents = pairs.mean(dim=1)
    return latents, codebook


def unit(rows: torch.Tensor) -> np.ndarray:
    rows = rows.numpy().astype(np.longdouble)
    return rows / np.maximum(np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True), 1e-300).astype(
        np.longdouble
    )


def assert_nearest(found: torch.Tensor, latents: torch.Tensor, codebook: torch.Tensor, metric: str, gap: float) -> None:
    """Every choice is within gap of the best by an independent wide computation, and the first of its duplicates."""
    assert found.dtype == torch.int64
    assert found.shape == (len(latents),)
    assert found.min() >= 0
    assert found.max() < len(codebook)
    z, c, found = latents, codebook, found.numpy()
    if metric == "cosine" and latents.shape[1] > 1:
        z, c = unit(latents), unit(codebook)
        score = z @ c.T
    else:
        z, c = latents.numpy().astype(np.longdouble), codebook.numpy().astype(np.longdouble)
        score = -np.linalg.norm((z[:, None] - c[None]).astype(np.float64), axis=2)
    chosen = score[np.arange(len(z)), found]
    assert float((score.max(axis=1) - chosen).max()) <= gap
    first = (codebook[found, None] == codebook[None]).all(dim=2).byte().argmax(dim=1).numpy()
    assert (first == found).all()


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@given(
    n=st.integers(1, 70),
    v=st.integers(1, 300),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15)
def test_nearest_is_exact(d, metric, n, v, kind, seed):
    latents, codebook = make(kind, n, v, d, seed)
    assert_nearest(nearest(latents, codebook, metric=metric), latents, codebook, metric, gap=1e-14)
    assert_nearest(reference.nearest(latents, codebook, metric), latents, codebook, metric, gap=1e-14)
    if d > 2 or metric == "euclidean":  # which few scores would not be left to
        in_blocks = chunked.nearest(latents, Codebook(codebook), "euclidean" if d == 1 else metric)
        assert_nearest(in_blocks, latents, codebook, metric, gap=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_many_blocks_match_the_reference(kind, metric):
    latents, codebook = make(kind, 140, 4201, 8, seed=3)  # two blocks of latents, three of codewords
    found, truth = nearest(latents, codebook, metric=metric), reference.nearest(latents, codebook, metric)
    gap = (codebook[found] - codebook[truth]).norm(dim=1)
    ties = found != truth
    assert ties.sum() <= (len(latents) if kind == "bisector" else 0)
    assert_nearest(found, latents, codebook, metric, gap=1e-14)
    assert gap.isfinite().all()


def circle(angles) -> torch.Tensor:
    angles = torch.as_tensor(angles, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@given(
    angles=st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=40),
    queries=st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=40),
)
@settings(max_examples=200)
def test_circle_by_exact_angle(angles, queries):
    """Integer angles: the truth is integer arithmetic on a ring of 2^20 steps."""
    ring = 2**20
    found = nearest(circle(np.array(queries) * 2 * np.pi / ring), circle(np.array(angles) * 2 * np.pi / ring))
    apart = np.abs(np.array(queries)[:, None] - np.array(angles)[None])
    apart = np.minimum(apart, ring - apart)
    chosen = apart[np.arange(len(queries)), found.numpy()]
    assert (chosen == apart.min(axis=1)).all()


def test_circle_tells_neighbours_apart_that_float32_products_cannot():
    """262,144 codewords on the circle, in float32: neighbours' cosines differ by 3e-10."""
    v = 262_144
    angles = (torch.arange(v, dtype=torch.float64) + 0.25) * 2 * torch.pi / v
    order = torch.randperm(v, generator=torch.Generator().manual_seed(0))
    codebook = circle(angles[order]).float()
    picks = torch.randint(v, (200,), generator=torch.Generator().manual_seed(1))
    latents = (3.7 * circle(angles[order][picks] + 0.2 * 2 * torch.pi / v)).float()
    assert torch.equal(nearest(latents, codebook), picks)
    product = (F.normalize(latents, dim=1) @ F.normalize(codebook, dim=1).T).argmax(dim=1)
    assert (product != picks).float().mean() > 0.5


@pytest.mark.parametrize("angle", [torch.pi, -torch.pi + 1e-9, torch.pi - 1e-9, 0.0, -1e-9])
def test_circle_at_the_seam(angle):
    codebook = circle([3.0, -3.1, 0.05, -0.01])
    expected = 1 if abs(angle) > 3 else 3
    assert nearest(circle([angle]), codebook).item() == expected


def test_circle_knows_both_signs_of_zero_at_the_seam():
    codebook = torch.tensor([[-1.0, -0.0], [-1.0, 0.0], [1.0, 0.0]])
    latents = torch.tensor([[-2.0, 0.0], [-2.0, -0.0], [5.0, -0.0]])
    assert nearest(latents, codebook).tolist() == [0, 0, 2]


@given(
    values=st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    queries=st.lists(st.integers(-50, 50), min_size=1, max_size=30),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
@settings(max_examples=200)
def test_line_by_value_with_lowest_index(values, queries, metric):
    """Small integers are exact in any dtype and full of duplicates and ties."""
    found = nearest(torch.tensor(queries).half()[:, None], torch.tensor(values).float()[:, None], metric=metric)
    assert found.tolist() == [min(range(len(values)), key=lambda j: (abs(values[j] - q), j)) for q in queries]


@given(seed=st.integers(0, 2**31), d=st.integers(2, 6), v=st.integers(1, 200))
@settings(max_examples=60)
def test_ties_on_a_lattice_go_to_the_lowest_index(seed, d, v):
    """Euclidean distances of small integers are exact, so every tie is a true one."""
    g = torch.Generator().manual_seed(seed)
    codebook, latents = torch.randint(-2, 3, (v, d), generator=g), torch.randint(-3, 4, (40, d), generator=g)
    squares = (latents[:, None] - codebook[None]).square().sum(dim=2).numpy()
    found = nearest(latents.float(), codebook.float(), metric="euclidean")
    assert (found.numpy() == squares.argmin(axis=1)).all()


@pytest.mark.parametrize("d", [2, 3, 8])
def test_zero_rows(d):
    g = torch.Generator().manual_seed(0)
    codebook = torch.randn(100, d, generator=g)
    latents = torch.cat([torch.zeros(2, d), torch.randn(5, d, generator=g)])
    assert nearest(latents, codebook)[:2].tolist() == [0, 0]
    # Only codewords on the far side: the zero codeword's similarity of 0 is the best.
    far = torch.tensor([[-1.0] + [0.0] * (d - 1)]).repeat(4, 1)
    far[2:] = 0
    assert nearest(torch.tensor([[1.0] + [0.0] * (d - 1)]), far).item() == 2
    # At a right angle a zero codeword ties.
    right = torch.zeros(3, d)
    right[1, 1] = 1
    assert nearest(torch.tensor([[1.0] + [0.0] * (d - 1)]), right).item() == 0
    assert nearest(torch.tensor([[1.0] + [0.0] * (d - 1)]), right[1:]).item() == 0
    assert nearest(latents, torch.zeros(3, d)).tolist() == [0] * 7
    assert nearest(latents, torch.zeros(3, d), metric="euclidean").tolist() == [0] * 7


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_any_layout_and_float_dtype(d, metric):
    latents, codebook = make("uniform", 50, 200, d, seed=7)
    plain = nearest(latents, codebook, metric=metric)
    wide = torch.stack([latents, latents], dim=2)[:, :, 0]
    assert torch.equal(nearest(wide, codebook.T.contiguous().T, metric=metric), plain)
    assert torch.equal(nearest(latents.double(), codebook, metric=metric), plain)
    assert torch.equal(nearest(latents[:1].expand(3, d), codebook, metric=metric), plain[:1].expand(3))
    for dtype in (torch.float16, torch.bfloat16):
        low = nearest(latents.to(dtype), codebook.to(dtype), metric=metric)
        assert torch.equal(low, nearest(latents.to(dtype).float(), codebook.to(dtype).double(), metric=metric))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_extreme_magnitudes(metric):
    latents, codebook = make("uniform", 40, 150, 4, seed=1)
    truth = nearest(latents.double(), codebook.double(), metric=metric)
    for scale in (1e-300, 1e-30, 1e30, 1e300):
        assert torch.equal(nearest(latents.double() * scale, codebook.double() * scale, metric=metric), truth)
    if metric == "cosine":
        assert torch.equal(nearest(latents * 1e-38, codebook * 1e37), truth)


@pytest.mark.parametrize("kind", SCALES)
@given(
    n=st.integers(1, 40),
    v=st.integers(1, 200),
    d=st.integers(1, 9),
    exponent=st.integers(1, 38),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15, deadline=None)
def test_euclidean_is_exact_whatever_the_scales(kind, n, v, d, exponent, seed):
    latents, codebook = mixed_scales(kind, n, v, d, exponent, seed)
    found = nearest(latents, codebook, metric="euclidean")
    if d > 1:
        assert torch.equal(found, nearest_by_distance(latents, codebook)[:, 0])
    assert is_nearest_by_fractions(found[:3].tolist(), latents[:3], codebook)


def test_one_far_codeword_costs_the_others_no_precision():
    g = torch.Generator().manual_seed(0)
    latents, near = torch.randn(2000, 8, generator=g), torch.randn(50, 8, generator=g)
    for far in (1e6, 1e7, 1e30):
        codebook = torch.cat([near, torch.full((1, 8), far)])
        found = nearest(latents, codebook, metric="euclidean")
        assert torch.equal(found, nearest_by_distance(latents, codebook)[:, 0])


@given(
    n=st.integers(1, 40),
    v=st.integers(2, 200),
    d=st.integers(1, 9),
    kind=st.sampled_from([*KINDS, *SCALES]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_k_nearest_by_distance_then_index(n, v, d, kind, seed, data):
    k = data.draw(st.integers(2, v), label="k")
    scaled = kind in SCALES
    latents, codebook = mixed_scales(kind, n, v, d, 12, seed) if scaled else make(kind, n, v, d, seed)
    found = nearest(latents, codebook, metric="euclidean", k=k)
    assert torch.equal(found, nearest_by_distance(latents, codebook, k))
    if d > 1:
        assert torch.equal(found[:, 0], nearest(latents, codebook, metric="euclidean"))


@pytest.mark.parametrize("d", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("v", "k"), [(20, 20), (300, 7), (5000, 3)])
def test_k_nearest_by_angle(d, kind, v, k):
    latents, codebook = make(kind, 60, v, d, seed=k)
    found = nearest(latents, codebook, k=k)
    similarity = torch.from_numpy((unit(latents) @ unit(codebook).T).astype(np.float64))
    torch.testing.assert_close(similarity.gather(1, found), similarity.topk(k).values, rtol=0, atol=1e-14)
    assert all(len(set(row)) == k for row in found.tolist())
    assert_nearest(found[:, 0], latents, codebook, "cosine", gap=1e-14)
    if d > 2:
        assert torch.equal(found[:, 0], nearest(latents, codebook))


def test_k_nearest_of_zero_rows_and_duplicates():
    codebook = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]).repeat(20, 1)
    latents = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    # Along the first two; at a right angle to all; at a right angle to the first three.
    assert nearest(latents, codebook, k=5).tolist() == [[0, 1, 4, 5, 8], [0, 1, 2, 3, 4], [0, 1, 2, 4, 5]]
    assert nearest(latents, codebook, k=80)[2, -20:].tolist() == list(range(3, 80, 4))


def test_k_nearest_has_the_same_dtypes_shapes_and_refusals():
    latents, codebook = make("uniform", 30, 50, 4, seed=0)
    plain = nearest(latents, codebook, k=3)
    assert plain.shape == (30, 3)
    assert plain.dtype == torch.int64
    assert nearest(latents[:0], codebook, k=3).shape == (0, 3)
    low = nearest(latents.half(), codebook.bfloat16(), k=3)
    assert torch.equal(low, nearest(latents.half().float(), codebook.bfloat16().float(), k=3))
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: nearest(z, codebook, k=3), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(latents), plain)
    for k in (0, 51):
        with pytest.raises(ValueError, match=f"k must be from 1 to the 50 codewords; got {k}"):
            nearest(latents, codebook, k=k)
    with pytest.raises(ValueError, match="the kernels find one codeword"):
        nearest(latents, codebook, k=2, use_triton=True)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("d", "v"), [(1, 60), (2, 60), (4, 3000), (12, 300)])  # by value, by angle, tree, blocks
def test_k_nearest_keeps_the_promises_of_one(metric, d, v):
    latents, codebook = make("uniform", 1100, v, d, seed=3)
    plain = nearest(latents, codebook, metric=metric, k=4)
    if d > 1 or metric == "euclidean":
        assert torch.equal(plain[:, 0], nearest(latents, codebook, metric=metric))
    wide = torch.stack([latents, latents], 2)[:, :, 0]
    assert torch.equal(nearest(wide, codebook.T.contiguous().T, metric=metric, k=4), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(latents, codebook, metric=metric, k=4), plain)
    for scale in (1e-300, 1e300):
        scaled = nearest(latents.double() * scale, codebook.double() * scale, metric=metric, k=4)
        assert torch.equal(scaled, nearest(latents.double(), codebook.double(), metric=metric, k=4))
    assert torch.equal(nearest(latents, codebook, metric=metric, k=4, use_triton=False), plain)
    for rows, other, name in ((latents, codebook, "latents"), (codebook, latents, "codebook")):
        bad = rows.clone()
        bad[7] = torch.nan
        arguments = (bad, other) if name == "latents" else (other, bad)
        with pytest.raises(ValueError, match=f"{name}: 1 of {len(rows)} rows hold NaN or infinity, the first is row 7"):
            nearest(*arguments, metric=metric, k=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_float32_doubts_are_resolved_in_float64(kind, metric, monkeypatch):
    """Both precisions of the product, and which latents need distances: those with ties, not with close codewords."""
    latents, codebook = make(kind, 100, 2100, 8, seed=9)
    doubtful = []
    settle = chunked._settle

    def watch(points, codebook, latents, *others):
        doubtful.append(len(latents))
        return settle(points, codebook, latents, *others)

    monkeypatch.setattr(chunked, "_settle", watch)
    found = nearest(latents, codebook, metric=metric)
    assert_nearest(found, latents, codebook, metric, gap=1e-14)
    if kind in ("uniform", "close"):
        assert sum(doubtful) <= 1
    elif kind == "duplicated":
        assert sum(doubtful) > 50
    monkeypatch.setattr(chunked, "_float32_is_kept", lambda: False)
    assert torch.equal(nearest(latents, codebook, metric=metric), found)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_autocast_and_matmul_precision_change_nothing(precision):
    latents, codebook = make("uniform", 256, 4096, 4, seed=2)
    plain = nearest(latents, codebook)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert chunked._float32_is_kept() == (precision == "highest")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nearest(latents, codebook), plain)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch < 2.9 has the one setting alone")
def test_float32_is_not_trusted_after_a_setting_of_the_backend_alone():
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert not chunked._float32_is_kept()
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert chunked._float32_is_kept()


@pytest.mark.parametrize("d", [1, 2, 8])
def test_compiles_without_graph_break_for_any_batch(d):
    latents, codebook = make("uniform", 33, 64, d, seed=4)
    codebook.requires_grad_()

    def look_up(z, c):
        return c[nearest(z - 0.5, c)]

    torch._dynamo.reset()
    compiled = torch.compile(look_up, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (33, 5, 2):
        assert torch.equal(compiled(latents[:n], codebook), look_up(latents[:n], codebook))
    compiled(latents, codebook).sum().backward()
    usage = nearest(latents - 0.5, codebook).bincount(minlength=64)
    assert torch.equal(codebook.grad, usage[:, None].expand(64, d).float())


def test_operator_is_registered_soundly():
    latents, codebook = make("uniform", 20, 30, 8, seed=5)
    torch.library.opcheck(torch.ops.gsqtok.nearest.default, (latents, codebook, "cosine", None))
    torch.library.opcheck(torch.ops.gsqtok.nearest.default, (latents[:0], codebook, "euclidean", False))
    torch.library.opcheck(torch.ops.gsqtok.nearest.default, (latents, codebook, "cosine", None, 3))


@pytest.mark.parametrize("d", [1, 2, 8])
def test_no_latents(d):
    found = nearest(torch.empty(0, d), torch.randn(5, d))
    assert found.shape == (0,)
    assert found.dtype == torch.int64


@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_named(d, bad):
    latents, codebook = torch.randn(10, d), torch.randn(20, d)
    latents[[4, 7], -1] = bad
    with pytest.raises(ValueError, match=r"latents: 2 of 10 rows .* first is row 4"):
        nearest(latents, codebook)
    latents, codebook[19, 0] = torch.randn(10, d), bad
    with pytest.raises(ValueError, match=r"codebook: 1 of 20 rows .* first is row 19"):
        nearest(latents, codebook, metric="euclidean")


@pytest.mark.parametrize(
    ("latents", "codebook", "metric", "error", "message"),
    [
        (torch.randn(4, 3), torch.randn(0, 3), "cosine", ValueError, "codebook is empty"),
        (torch.randn(4), torch.randn(2, 3), "cosine", ValueError, r"latents must have two dimensions"),
        (torch.randn(4, 3), torch.randn(1, 2, 3), "cosine", ValueError, r"codebook must have two dimensions"),
        (torch.randn(4, 3), torch.randn(2, 4), "cosine", ValueError, "got 3 and 4"),
        (torch.randn(4, 0), torch.randn(2, 0), "cosine", ValueError, "at least 1"),
        (
            torch.ones(4, 3, dtype=torch.long),
            torch.randn(2, 3),
            "cosine",
            TypeError,
            "latents must hold floating-point",
        ),
        (
            torch.randn(4, 3),
            torch.ones(2, 3, dtype=torch.int8),
            "cosine",
            TypeError,
            "codebook must hold floating-point",
        ),
        (torch.randn(4, 3), torch.randn(2, 3, device="meta"), "cosine", ValueError, "on cpu but codebook is on meta"),
        (torch.randn(4, 3), torch.randn(2, 3), "dot", ValueError, "metric must be one of"),
    ],
)
def test_bad_arguments(latents, codebook, metric, error, message):
    with pytest.raises(error, match=message):
        nearest(latents, codebook, metric=metric)


MEMORY = """
import re, torch
import scipy.spatial  # the package's own memory is no part of it
from gsqtok.search import nearest
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
latents, codebook = torch.randn(1024, 8), torch.randn(262_144, 8)
nearest(latents, codebook[:4096])
before = peak()
nearest(latents, codebook)
nearest(latents[:64], codebook, k=10)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_extra_memory_is_under_64_mib():
    """1,024 latents, 262,144 codewords: the matrix would take 1 GiB."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 1 < float(run.stdout) < 64


def test_searches_agree_where_both_apply():
    latents, codebook = make("uniform", 500, 700, 2, seed=8)
    codebook = Codebook(codebook)
    found = chunked.nearest(latents, codebook, "cosine")
    assert torch.equal(sorted_search.nearest_on_circle(latents, codebook), found)
    latents, codebook = make("uniform", 500, 700, 1, seed=8)
    codebook = Codebook(codebook)
    found = chunked.nearest(latents, codebook, "euclidean")
    assert torch.equal(sorted_search.nearest_on_line(latents, codebook), found)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("d", [1, 2, 3, 8])
@pytest.mark.parametrize("k", [1, 3])
def test_a_codebook_for_each_group(d, metric, k):
    g = torch.Generator().manual_seed(d)
    latents, codebook = torch.randn(50, 4, d, generator=g), torch.randn(4, 40, d, generator=g)
    found = nearest(latents, codebook, metric=metric, k=k)
    alone = [nearest(latents[:, group], codebook[group], metric=metric, k=k) for group in range(4)]
    assert torch.equal(found, torch.stack(alone, 1))
    assert torch.equal(nearest(latents, codebook, metric=metric, k=k), found)  # with what was kept
    assert nearest(latents[:0], codebook, metric=metric, k=k).shape == (0, *found.shape[1:])


def test_groups_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="latents of 3 groups need as many codebooks; got 2"):
        nearest(torch.zeros(5, 3, 4), torch.zeros(2, 10, 4))
    with pytest.raises(ValueError, match="latents must have two dimensions"):
        nearest(torch.zeros(5, 3, 4), torch.zeros(10, 4))
    with pytest.raises(ValueError, match="1 of 15 rows hold NaN"):
        nearest(torch.tensor([1.0] * 14 + [torch.nan]).view(5, 3, 1), torch.zeros(3, 10, 1))
