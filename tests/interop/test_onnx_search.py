"""The search as an ONNX graph, run by onnxruntime, against float64 distances."""

import numpy as np
import onnxruntime
import pytest
import torch

from gsqtok.interop import onnx_search
from gsqtok.interop.onnx_search import translate_nearest
from gsqtok.search import nearest, reference


class Search(torch.nn.Module):
    def __init__(self, codebook, metric):
        super().__init__()
        self.register_buffer("codebook", codebook)
        self.metric = metric

    def forward(self, latents):
        return nearest(latents, self.codebook, metric=self.metric)


def exported(codebook, metric, path):
    program = torch.onnx.export(
        Search(codebook, metric).eval(),
        (torch.zeros(5, codebook.shape[1]),),
        dynamo=True,
        verbose=False,
        opset_version=18,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        custom_translation_table={torch.ops.gsqtok.nearest.default: translate_nearest},
    )
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda latents: torch.from_numpy(np.asarray(session.run(None, {"latents": latents.numpy()})[0]))


@pytest.mark.parametrize(
    ("d", "size", "metric"),
    [
        (1, 300, "cosine"),
        (1, 300, "euclidean"),
        (2, 3000, "cosine"),
        (2, 300, "euclidean"),
        (3, 1000, "cosine"),
        (16, 1000, "cosine"),
        (16, 1000, "euclidean"),
    ],
)
def test_as_float64_distances_say(d, size, metric, tmp_path):
    generator = torch.Generator().manual_seed(d)
    codebook = torch.randn(size, d, generator=generator)
    codebook[-1] = codebook[4]  # equals: the lowest index
    codebook[size // 2 : size // 2 + 20] = codebook[6]
    codebook[7] = 0
    search = exported(codebook, metric, str(tmp_path / "search.onnx"))
    for count in (1, 7, 2000):
        latents = torch.randn(count, d, generator=generator) * 3
        if count > 1:
            latents[0] = 0
            latents[1:4] = codebook[4:7]
        found = search(latents)
        assert found.dtype == torch.int64
        assert torch.equal(found, reference.nearest(latents, codebook, metric))


def test_neighbours_on_a_circle_that_float32_products_cannot_tell_apart(tmp_path):
    angles = torch.linspace(0.3, 0.4, 20_000, dtype=torch.float64)
    codebook = torch.stack([angles.cos(), angles.sin()], 1).float()
    latents = codebook[::37] * 0.7
    search = exported(codebook, "cosine", str(tmp_path / "search.onnx"))
    assert torch.equal(search(latents), reference.nearest(latents, codebook, "cosine"))
    products = torch.nn.functional.normalize(latents, dim=1) @ torch.nn.functional.normalize(codebook, dim=1).T
    assert (products.argmax(1) != search(latents)).float().mean() > 0.5


def test_codewords_far_from_the_origin(tmp_path):
    generator = torch.Generator().manual_seed(0)
    codebook = 1000 + 0.01 * torch.randn(500, 4, generator=generator)
    latents = 1000 + 0.01 * torch.randn(200, 4, generator=generator)
    search = exported(codebook, "euclidean", str(tmp_path / "search.onnx"))
    assert torch.equal(search(latents), reference.nearest(latents, codebook, "euclidean"))


def test_memory_is_bounded_in_the_number_of_latents(tmp_path, monkeypatch):
    """With a budget of a few rows at a time the result is the same, also where it does not divide their number."""
    monkeypatch.setattr(onnx_search, "SCORES", 3 * 257)
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(257, 8, generator=generator)
    search = exported(codebook, "cosine", str(tmp_path / "search.onnx"))
    import onnx

    scans = [node for node in onnx.load(tmp_path / "search.onnx").graph.node if node.op_type == "Scan"]
    assert len(scans) == 1
    for count in (1, 2, 3, 100):
        latents = torch.randn(count, 8, generator=generator)
        assert torch.equal(search(latents), reference.nearest(latents, codebook, "cosine"))
