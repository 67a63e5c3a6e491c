"""The Triton kernels: on the GPU where there is one, elsewhere their logic in Triton's interpreter, in a process apart
since the interpreter has to be chosen before Triton is imported."""

import functools
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import DEVICE, INTERPRETED, check_in_interpreter, runs_interpreter, runs_kernels
from search_truth import SCALES, mixed_scales, nearest_by_distance

from gsqtok.search import chunked, nearest, reference
from gsqtok.search import sorted as sorted_search
from gsqtok.search.codebook import Codebook

triton = pytest.importorskip("triton")
GAP = 1e-13  # how far below the best the chosen codeword's similarity may be
SLOW = pytest.mark.slow
KINDS = ["uniform", "clustered", "duplicated", "close", "bisector", "behind"]


@runs_interpreter
def test_kernels_in_the_interpreter(pytestconfig):
    marked = pytestconfig.getoption("markexpr")  # slow ones where they are run here
    check_in_interpreter(__file__, Path(__file__).with_name("test_search_sphere_triton.py"), marked=marked)


@pytest.mark.skipif(INTERPRETED, reason="asks what happens without the interpreter")
def test_kernels_refuse_cpu_tensors():
    with pytest.raises(ValueError, match="use_triton=True, but the kernels need CUDA"):
        nearest(torch.randn(3, 8), torch.randn(4, 8), use_triton=True)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("n", "v", "d", "metric", "capability"),
    [
        (100, 1024, 16, "cosine", 90),  # Triton 3.6 failed here alone
        (4096, 1 << 20, 4, "cosine", 80),
        (32768, 1 << 18, 8, "euclidean", 90),
        (100, 512, 64, "euclidean", 80),
    ],
)
def test_kernels_compile_for_gpus_of_two_generations(n, v, d, metric, capability, monkeypatch):
    from compiling import compiled, launches

    from gsqtok.search import triton as kernel

    kernel._launches.cache_clear()
    found = launches(kernel, lambda: kernel.nearest(torch.zeros(n, d), torch.zeros(v, d), metric), monkeypatch)
    kernel._launches.cache_clear()
    longest = ["_longest"] if metric == "euclidean" else []
    assert [launch[0].__name__ for launch in found] == [*longest, "_prepare", "_search", "_settle"]
    for launch in found:
        assert compiled(*launch, capability).metadata.shared <= 99 << 10  # of a block on the smaller GPUs


def test_falls_back_where_triton_is_absent(monkeypatch):
    latents, codebook = torch.randn(30, 8), torch.randn(40, 8)
    expected = nearest(latents, codebook)
    monkeypatch.delitem(sys.modules, "gsqtok.search.triton", raising=False)
    monkeypatch.delattr("gsqtok.search.triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert torch.equal(nearest(latents.to(DEVICE), codebook.to(DEVICE)).cpu(), expected)
    with pytest.raises(ValueError, match="use_triton=True, but Triton is not installed"):
        nearest(latents, codebook, use_triton=True)


def search(latents, codebook, metric="cosine", **plan):
    """The kernel with a plan of the test's choice, by default the one that nearest would take."""
    from gsqtok.search import triton as kernel

    n, d = latents.shape
    chosen = kernel.Plan.choose(n, len(codebook), d, metric)
    plan = kernel.Plan(**{**vars(chosen), **plan})
    return kernel.nearest(latents.to(DEVICE), codebook.to(DEVICE), metric, plan).cpu()


def assert_nearest(found, latents, codebook, metric):
    z, c = latents.double(), codebook.double()
    if metric == "cosine":
        z, c = F.normalize(z, dim=1, eps=1e-300), F.normalize(c, dim=1, eps=1e-300)
        score = z @ c.T
        slack = GAP
    else:
        score = -torch.cdist(z, c, compute_mode="donot_use_mm_for_euclid_dist")
        slack = 1e-12 * z.abs().max()
    assert found.dtype == torch.int64
    chosen = score.gather(1, found[:, None])[:, 0]
    assert (score.amax(dim=1) - chosen).max() <= slack
    first = (codebook[:, None] == codebook[None]).all(dim=2).byte().argmax(dim=1)
    assert torch.equal(first[found], found)


@runs_kernels
@pytest.mark.parametrize(("d", "metric"), [(1, "cosine"), (2, "cosine"), (4, "cosine"), (5, "euclidean")])
def test_groups_with_a_codebook_each_are_searched_at_once(d, metric, monkeypatch):
    """One launch of each kernel, and in each group what a search of that group alone finds."""
    from gsqtok.search import sorted_triton
    from gsqtok.search import triton as kernel

    n, groups, v = latents_for(d), 3, 70
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(groups, n, d, generator=g).transpose(0, 1).to(DEVICE)
    codebook = (
        torch.randn(groups, d, v, generator=g).transpose(1, 2) * torch.tensor([1.0, 1e-3, 1e3])[:, None, None]
    ).to(DEVICE)
    module = sorted_triton if d < 3 else kernel
    alone = [nearest(latents[:, group], codebook[group], metric=metric, use_triton=True) for group in range(groups)]
    launches = []
    search = module.nearest
    monkeypatch.setattr(module, "nearest", lambda *given: launches.append(given) or search(*given))
    found = nearest(latents, codebook, metric=metric, use_triton=True)
    assert len(launches) == 1
    assert torch.equal(found, torch.stack(alone, 1))
    interleaved = codebook.transpose(0, 1).contiguous().transpose(0, 1)  # whose groups lie side by side in memory
    assert torch.equal(nearest(latents, interleaved, metric=metric, use_triton=True), found)
    bad = codebook.clone()
    bad[1, 5, 0] = torch.nan
    if DEVICE == "cuda":
        found_bad = nearest(latents, bad, metric=metric)
        assert (found_bad[:, 1] == -1).all()
        assert torch.equal(found_bad[:, ::2], found[:, ::2])


def latents_for(d):
    """Several blocks of every kernel with one that is not full; of the last kernel alone where each term costs time."""
    return 70 if d < 16 else 20


def make(kind, n, v, d, seed):
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
        latents = F.normalize(codebook, dim=1)[torch.randint(v, (n, 2), generator=g)].mean(dim=1)
    elif kind == "behind":  # every codeword on the far side: all similarities are negative
        latents, codebook = latents.abs(), -codebook.abs()
    return latents, codebook


@runs_kernels
@pytest.mark.slow
@given(
    kind=st.sampled_from(KINDS),
    metric=st.sampled_from(["cosine", "euclidean"]),
    v=st.integers(1, 300),
    d=st.sampled_from([3, 4, 5, 8, 16, 24, 32, 64]),
    data=st.data(),
)
@settings(max_examples=12)
def test_kernel_is_exact(kind, metric, v, d, data):
    n = data.draw(st.integers(1, latents_for(d)), label="n")
    plan = data.draw(
        st.fixed_dictionaries(
            {
                "rows": st.sampled_from([64, 128]),
                "codewords": st.sampled_from([32, 64, 128, 256]),
                "terms": st.sampled_from([1, 2, 3]),
                "splits": st.sampled_from([1, 2, 3, 7]),
            }
        )
    )
    latents, codebook = make(kind, n, v, d, data.draw(st.integers(0, 2**31)))
    assert_nearest(search(latents, codebook, metric, **plan), latents, codebook, metric)


@runs_kernels
@pytest.mark.parametrize("d", [3, 4, 6, 8, 16, 24, 64, pytest.param(100, marks=SLOW), pytest.param(128, marks=SLOW)])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_every_dimension_with_its_own_plan(d, metric):
    latents, codebook = make("uniform", latents_for(d), 300 if d < 16 else 150, d, seed=d)
    found = nearest(latents.to(DEVICE), codebook.to(DEVICE), metric=metric, use_triton=True).cpu()
    assert torch.equal(found, reference.nearest(latents, codebook, metric))


@runs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_kernel_on_kinds_of_data(kind, metric):
    latents, codebook = make(kind, 40, 130, 8, seed=5)  # three tiles, of which one split has two
    assert_nearest(search(latents, codebook, metric, splits=2, codewords=64), latents, codebook, metric)


@pytest.fixture
def scored_all(monkeypatch):
    """Of each call to the slow path, how many latents were in it."""
    from gsqtok.search import triton as kernel

    latents, plain = [], kernel._score_all

    def watched(source, stride_d, active, *arguments):
        latents.append(int(active.handle.data.sum()))
        return plain(source, stride_d, active, *arguments)

    monkeypatch.setattr(kernel, "_score_all", watched)
    return latents


watches = pytest.mark.skipif(
    not INTERPRETED, reason="watches a function of the kernel, which only the interpreter calls"
)


@watches
def test_slots_settle_uniform_data_and_not_codewords_too_close_to_tell_apart(scored_all):
    search(*make("uniform", 64, 2048, 8, seed=0))
    assert sum(scored_all) <= 1
    scored_all.clear()
    search(*make("close", 32, 2048, 8, seed=0), splits=2)
    assert sum(scored_all) == 32 * 2 * 4


@watches
def test_slots_settle_a_dense_codebook(scored_all):
    """A cap as dense as 11 million codewords would make the sphere; a group's number takes 8 bits."""
    g = torch.Generator().manual_seed(0)
    ball = F.normalize(torch.randn(8192 + 32, 3, generator=g), dim=1) * torch.rand(8192 + 32, 1, generator=g) ** (1 / 3)
    rows = F.normalize(F.pad(0.15 * ball, (0, 1), value=1.0), dim=1)
    latents, codebook = rows[:32], rows[32:]
    found = search(latents, codebook, "euclidean", codewords=32, splits=1)
    assert torch.equal(found, reference.nearest(latents, codebook, "euclidean"))
    assert sum(scored_all) <= 1


@watches
def test_zero_latents_need_no_scores(scored_all):
    codebook = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    assert search(torch.zeros(40, 8), codebook).tolist() == [0] * 40
    assert scored_all == []
    codebook[200, 3] = float("nan")
    assert search(torch.zeros(40, 8), codebook).tolist() == [-1] * 40


@runs_kernels
def test_only_the_crowded_part_is_scored_whole_and_other_parts_still_count():
    """Eight groups of the second split's first quarter, more than it has slots, are all but equally near."""
    g = torch.Generator().manual_seed(0)
    codebook = F.normalize(torch.randn(512, 8, generator=g), dim=1)
    latent = F.normalize(torch.randn(1, 8, generator=g), dim=1)
    codebook[256:512:32] = F.normalize(latent + 1e-4 * torch.randn(8, 8, generator=g), dim=1)
    for nearest_of_all in (40, 256 + 7 * 32):
        changed = codebook.clone()
        changed[nearest_of_all] = latent
        found = search(latent, changed, splits=2, codewords=32)
        assert found.tolist() == [nearest_of_all]


@runs_kernels
@pytest.mark.parametrize("d", [4, 8, 16])
def test_similarities_are_compared_in_float64(d):
    """Codewords whose similarities to the latent differ by less than float32 can tell."""
    g = torch.Generator().manual_seed(d)
    latents = torch.randn(20, d, generator=g)
    codebook = torch.cat([latents + 1e-4 * torch.randn(20, d, generator=g) for _ in range(10)])
    assert torch.equal(search(latents, codebook), reference.nearest(latents, codebook, "cosine"))


@runs_kernels
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_lattice_ties_go_to_the_lowest_index(metric):
    g = torch.Generator().manual_seed(0)
    codebook = torch.randint(-1, 2, (300, 3), generator=g).float()
    latents = torch.randint(-2, 3, (70, 3), generator=g).float()
    found = search(latents, codebook, metric, splits=3)
    assert_nearest(found, latents, codebook, metric)
    if metric == "euclidean":
        squares = (latents[:, None] - codebook[None]).square().sum(dim=2).numpy()
        assert (found.numpy() == squares.argmin(axis=1)).all()


@runs_kernels
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_zero_rows_and_extreme_magnitudes(metric):
    latents, codebook = make("uniform", 40, 140, 8, seed=1)
    latents[::5] = 0
    codebook[::7] = 0
    plain = search(latents, codebook, metric)
    assert torch.equal(plain, chunked.nearest(latents, Codebook(codebook), metric))
    if metric == "cosine":
        assert (plain[::5] == 0).all()
    for scale in (2.0**-100, 2.0**100):
        assert torch.equal(search(latents * scale, codebook * scale, metric), plain)
    if metric == "cosine":
        assert torch.equal(search(latents * 2.0**-120, codebook * 2.0**120, metric), plain)
    assert search(latents, torch.zeros(5, 8), metric).tolist() == [0] * 40


@runs_kernels
@pytest.mark.parametrize(
    ("exponent", "kind"),
    [*((exponent, kind) for exponent in (6, 20, 38) for kind in SCALES[:4]), *((38, kind) for kind in SCALES[4:])],
)  # the last two kinds have scales of their own
def test_euclidean_is_exact_whatever_the_scales(kind, exponent):
    latents, codebook = mixed_scales(kind, 40, 150, 5, exponent, seed=exponent)
    assert torch.equal(search(latents, codebook, "euclidean"), nearest_by_distance(latents, codebook)[:, 0])


@runs_kernels
@pytest.mark.parametrize("d", [3, 16])
def test_half_bfloat16_and_strided_input(d):
    latents, codebook = make("uniform", 20, 150, d, seed=2)
    for dtype in (torch.float16, torch.bfloat16):
        low, low_codebook = latents.to(dtype), codebook.to(dtype)
        assert torch.equal(search(low, low_codebook), search(low.float(), low_codebook.float()))
        assert torch.equal(search(low, codebook), search(low.float(), codebook))
    latents, codebook = latents.to(DEVICE), codebook.to(DEVICE)
    plain = search(latents, codebook)
    assert torch.equal(search(torch.stack([latents, -latents], dim=2)[:, :, 0], codebook.T.contiguous().T), plain)
    assert torch.equal(search(latents[:1].expand(20, d), codebook), plain[:1].expand(20))


@runs_kernels
@pytest.mark.parametrize(
    ("d", "metric"), [(1, "cosine"), *((d, metric) for d in (2, 3, 16) for metric in ("cosine", "euclidean"))]
)
def test_nan_and_infinity_give_minus_one(d, metric):
    from gsqtok.search import sorted_triton
    from gsqtok.search import triton as kernel

    def look_up(z, c):
        z, c = z.to(DEVICE), c.to(DEVICE)
        by_sorting = d == 1 or (d == 2 and metric == "cosine")
        return (sorted_triton.nearest(z, c) if by_sorting else kernel.nearest(z, c, metric)).cpu()

    n = latents_for(d)
    latents, codebook = make("uniform", n, 150, d, seed=3)
    plain = look_up(latents, codebook)
    assert plain.min() >= 0
    latents[4, -1], latents[-1, -1] = torch.nan, -torch.inf
    found = look_up(latents, codebook)
    invalid = torch.zeros(n, dtype=torch.bool).index_fill_(0, torch.tensor([4, n - 1]), True)
    assert torch.equal(found, plain.masked_fill(invalid, -1))
    for bad in (torch.nan, -torch.inf):
        codebook[140, 0] = bad
        assert look_up(latents, codebook).tolist() == [-1] * n


@runs_kernels
@given(
    n=st.integers(1, 300),
    v=st.integers(1, 600),
    d=st.sampled_from([1, 2]),
    duplicated=st.booleans(),
    zeros=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=20)
def test_sorting_kernels_do_what_sorting_does(n, v, d, duplicated, zeros, seed):
    latents, codebook = make("duplicated" if duplicated else "uniform", n, v, d, seed)
    if zeros:
        latents[::3], codebook[::4] = 0, 0
        codebook = -codebook.abs()
    found = nearest(latents.to(DEVICE), codebook.to(DEVICE), use_triton=True).cpu()
    plain = sorted_search.nearest_on_line if d == 1 else sorted_search.nearest_on_circle
    assert torch.equal(found, plain(latents, Codebook(codebook)))


@runs_kernels
def test_angles_that_differ_by_little_are_told_apart():
    g = torch.Generator().manual_seed(0)
    codebook = torch.stack([torch.ones(210), 1e-11 * torch.randint(0, 300, (210,), generator=g)], 1)
    codebook[60::3] = torch.randn(50, 2, generator=g)
    latents = torch.stack([torch.ones(60), 1e-11 * torch.rand(60, generator=g) * 300], 1)
    both = torch.stack([codebook, codebook.flip(0)])
    found = nearest(latents[:, None].expand(-1, 2, -1).to(DEVICE), both.to(DEVICE), use_triton=True).cpu()
    for group in range(2):
        assert torch.equal(found[:, group], sorted_search.nearest_on_circle(latents, Codebook(both[group])))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sorting_kernels_compile(d, dtype, monkeypatch):
    from compiling import compiled, launches

    from gsqtok.search import sorted_triton

    rows = torch.zeros(600, d, dtype=dtype)
    found = launches(sorted_triton, lambda: sorted_triton.nearest(rows, rows), monkeypatch)
    assert len(found) == (1 if d == 1 else 3)
    for launch in found:
        assert compiled(*launch, 90).metadata.shared <= 99 << 10


@runs_kernels
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_kernels_find_the_first_of_k(metric):
    """They search for one codeword; of several the search in blocks says which, and the first is theirs."""
    latents, codebook = (x.to(DEVICE) for x in make("uniform", 40, 200, 6, seed=5))
    found = nearest(latents, codebook, metric=metric, k=3)
    assert torch.equal(found[:, 0], nearest(latents, codebook, metric=metric, use_triton=True))
    with pytest.raises(ValueError, match="the kernels find one codeword"):
        nearest(latents, codebook, metric=metric, k=3, use_triton=True)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("d", [3, 8, 200])
def test_on_a_gpu_euclidean_is_exact_whatever_the_scales(kind, d):
    for exponent in (3, 38):
        latents, codebook = mixed_scales(kind, 300, 1000, d, exponent, seed=exponent)
        truth = nearest_by_distance(latents, codebook, 3)
        latents, codebook = latents.cuda(), codebook.cuda()
        for use_triton in (None, False):
            found = nearest(latents, codebook, metric="euclidean", use_triton=use_triton)
            assert torch.equal(found.cpu(), truth[:, 0])
        assert torch.equal(nearest(latents, codebook, metric="euclidean", k=3).cpu(), truth)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
@pytest.mark.parametrize(("n", "v", "d"), [(5000, 8192, 8), (700, 262_144, 16), (3000, 8192, 4), (9000, 65_536, 2)])
def test_on_a_gpu_all_paths_agree(n, v, d):
    latents, codebook = (x.cuda() for x in make("uniform", n, v, d, seed=4))
    kernels = functools.partial(nearest, use_triton=True)
    found = kernels(latents, codebook)
    assert torch.equal(found, nearest(latents, codebook, use_triton=False))
    assert torch.equal(nearest(latents[:300], codebook, k=5).cpu(), nearest(latents[:300].cpu(), codebook.cpu(), k=5))
    assert torch.equal(found[:500].cpu(), reference.nearest(latents[:500].cpu(), codebook.cpu(), "cosine"))
    assert torch.equal(torch.compile(kernels, fullgraph=True)(latents, codebook), found)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(kernels(latents, codebook), found)
        assert torch.equal(nearest(latents, codebook, use_triton=False), found)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # capturing fails if anything waits for the device
        replayed = kernels(latents, codebook)
    graph.replay()
    assert torch.equal(replayed, found)
