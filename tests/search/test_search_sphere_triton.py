"""The search on the sphere that leaves codewords out, against the kernels that look at all of them.

On the GPU where there is one, elsewhere in Triton's interpreter, by `test_search_triton.py`.
"""

import pytest
import torch
from interpreter import DEVICE, INTERPRETED, runs_kernels
from search_truth import rows_of_kind

from gsqtok.search import nearest

triton = pytest.importorskip("triton")
N, V = (90, 600) if DEVICE == "cpu" else (20_000, 70_000)


def both(latents, codebook):
    from gsqtok.search import sphere_triton
    from gsqtok.search import triton as kernel

    latents, codebook = latents.to(DEVICE), codebook.to(DEVICE)
    return sphere_triton.nearest(latents, codebook), kernel.nearest(latents, codebook, "cosine")


@runs_kernels
@pytest.mark.parametrize(("d", "kind"), [(3, "uniform"), (3, "lattice"), (4, "lattice"), (4, "entries")])
def test_the_same_codewords(d, kind):
    """A lattice is full of ties and duplicates, of which the lowest index is wanted, and of zeros."""
    found, expected = both(*rows_of_kind(kind, N, V, d, seed=d))
    assert torch.equal(found, expected)


@runs_kernels
def test_half_precision_strides_and_zeros():
    latents, codebook = rows_of_kind("uniform", 40, 300, 4, seed=1)
    latents[::5], codebook[7] = 0, 0
    found, expected = both(latents.half().T.contiguous().T, codebook.repeat_interleave(2, dim=0)[::2].bfloat16())
    assert torch.equal(found, expected)
    assert (found[::5] == 0).all()


@runs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity(bad):
    latents, codebook = rows_of_kind("uniform", 40, 300, 3, seed=2)
    latents[3, 1] = bad
    found, expected = both(latents, codebook)
    assert torch.equal(found, expected)
    assert found[3] == -1
    codebook[280, 0] = bad
    assert (both(latents, codebook)[0] == -1).all()


@runs_kernels
def test_one_direction_for_all():
    """Where the codebook has collapsed, every tile is as near as every other."""
    g = torch.Generator().manual_seed(0)
    codebook = torch.tensor([1.0, 2.0, 3.0]) + 1e-6 * torch.randn(600, 3, generator=g)
    found, expected = both(torch.cat([codebook[:30], -codebook[:30]]), codebook)
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("d", [3, 4])
def test_on_a_gpu_large_codebooks_take_it(d, monkeypatch):
    from gsqtok.search import sphere_triton
    from gsqtok.search import triton as kernel

    latents, codebook = (torch.randn(n, d, device="cuda") for n in (1 << 16, 1 << 18))
    taken, search = [], sphere_triton.nearest
    monkeypatch.setattr(sphere_triton, "nearest", lambda *given: taken.append(given) or search(*given))
    found = nearest(latents, codebook)
    assert len(taken) == 1
    assert torch.equal(found, kernel.nearest(latents, codebook, "cosine"))
    nearest(latents, codebook, metric="euclidean")
    nearest(latents[:100], codebook)
    assert len(taken) == 1


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("d", [3, 4])
def test_kernels_compile(d, monkeypatch):
    from compiling import compiled, launches

    from gsqtok.search import sphere_triton

    sphere_triton._launches.cache_clear()
    rows = torch.zeros(600, d)
    found = launches(sphere_triton, lambda: sphere_triton.nearest(rows, rows), monkeypatch)
    sphere_triton._launches.cache_clear()
    names = [launch[0].__name__ for launch in found]
    assert names == ["_cells", "_cells", "_gather", "_gather", "_boxes", "_prepare", "_search", "_settle"]
    for launch in found:
        assert compiled(*launch, 80).metadata.shared <= 99 << 10
