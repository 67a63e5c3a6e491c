"""The search as an ONNX graph, run by onnxruntime, against float64 distances."""

import numpy as np
import onnxruntime
import pytest
import torch

from gsqtok.export import onnx_search
from gsqtok.export.onnx_search import translate_nearest
from gsqtok.search import nearest, reference


class Searches(torch.nn.Module):
    """Any number of searches, so that one export covers them all."""

    def __init__(self, cases):
        super().__init__()
        self.codebooks = torch.nn.ParameterList(codebook for codebook, _ in cases)
        self.metrics = [metric for _, metric in cases]

    def forward(self, *latents):
        searches = zip(latents, self.codebooks, self.metrics, strict=True)
        return tuple(nearest(z, codebook, metric=metric) for z, codebook, metric in searches)


def exported(cases, path):
    """Codebooks and metrics -> what takes as many latents and gives their indices."""
    searches = Searches(cases).eval().requires_grad_(False)
    program = torch.onnx.export(
        searches,
        tuple(torch.zeros(5, codebook.shape[1]) for codebook, _ in cases),
        dynamo=True,
        verbose=False,
        opset_version=18,
        dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in cases),),
        custom_translation_table={torch.ops.gsqtok.nearest.default: translate_nearest},
    )
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*latents):
        found = session.run(None, {name: z.numpy() for name, z in zip(names, latents, strict=True)})
        return [torch.from_numpy(np.asarray(indices)) for indices in found]

    return run


def awkward(d, size):
    """A codebook with equals, of which the lowest index counts, and a zero row."""
    codebook = torch.randn(size, d, generator=torch.Generator().manual_seed(d))
    codebook[-1] = codebook[4]
    codebook[size // 2 : size // 2 + 20] = codebook[6]
    codebook[7] = 0
    return codebook


def on_an_arc():
    angles = torch.linspace(0.3, 0.4, 20_000, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1).float()


def far_away():
    return 1000 + 0.01 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))


AWKWARD = {
    (d, size, metric): (awkward(d, size), metric)
    for d, size, metric in [
        (1, 300, "cosine"),
        (1, 300, "euclidean"),
        (2, 3000, "cosine"),
        (2, 300, "euclidean"),
        (3, 1000, "cosine"),
        (16, 1000, "cosine"),
        (16, 1000, "euclidean"),
    ]
}


def one_far_codeword():
    near = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    return torch.cat([near, torch.full((1, 8), 1e7)])


CASES = AWKWARD | {
    "arc": (on_an_arc(), "cosine"),
    "far": (far_away(), "euclidean"),
    "one far": (one_far_codeword(), "euclidean"),
}


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """Latents for one of CASES -> their indices."""
    run = exported(list(CASES.values()), str(tmp_path_factory.mktemp("onnx") / "searches.onnx"))

    def one(name, latents):
        every = [latents if case == name else torch.ones(1, c.shape[1]) for case, (c, _) in CASES.items()]
        return run(*every)[list(CASES).index(name)]

    return one


@pytest.mark.parametrize("name", AWKWARD, ids=str)
def test_as_float64_distances_say(name, search):
    codebook, metric = CASES[name]
    generator = torch.Generator().manual_seed(1)
    for count in (1, 7, 2000):
        latents = torch.randn(count, codebook.shape[1], generator=generator) * 3
        if count > 1:
            latents[0] = 0
            latents[1:4] = codebook[4:7]
        found = search(name, latents)
        assert found.dtype == torch.int64
        assert torch.equal(found, reference.nearest(latents, codebook, metric))


def test_neighbours_on_a_circle_that_float32_products_cannot_tell_apart(search):
    codebook, _ = CASES["arc"]
    latents = codebook[::37] * 0.7
    found = search("arc", latents)
    assert torch.equal(found, reference.nearest(latents, codebook, "cosine"))
    products = torch.nn.functional.normalize(latents, dim=1) @ torch.nn.functional.normalize(codebook, dim=1).T
    assert (products.argmax(1) != found).float().mean() > 0.5


def test_codewords_far_from_the_origin(search):
    codebook, _ = CASES["far"]
    latents = 1000 + 0.01 * torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(search("far", latents), reference.nearest(latents, codebook, "euclidean"))


def test_one_far_codeword_costs_the_others_no_precision(search):
    codebook, _ = CASES["one far"]
    latents = torch.randn(2000, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(search("one far", latents), reference.nearest(latents, codebook, "euclidean"))


def test_memory_is_bounded_in_the_number_of_latents(tmp_path, monkeypatch):
    """With a budget of a few rows at a time the result is the same, also where it does not divide their number."""
    monkeypatch.setattr(onnx_search, "SCORES", 3 * 257)
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(257, 8, generator=generator)
    search = exported([(codebook, "cosine")], str(tmp_path / "search.onnx"))
    import onnx

    scans = [node for node in onnx.load(tmp_path / "search.onnx").graph.node if node.op_type == "Scan"]
    assert len(scans) == 1
    for count in (1, 2, 3, 100):
        latents = torch.randn(count, 8, generator=generator)
        assert torch.equal(search(latents)[0], reference.nearest(latents, codebook, "cosine"))
