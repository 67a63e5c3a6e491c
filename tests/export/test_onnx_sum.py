"""Sums in an exported graph, run by onnxruntime, against Python's integers."""

import onnxruntime
import pytest
import torch

from gsqtok.export.onnx_sum import translate_sum

pytestmark = pytest.mark.slow


class Sums(torch.nn.Module):
    def forward(self, integers, floats):
        return (
            integers.sum(-1),
            integers.sum((0, 2), keepdim=True),
            integers.sum(-1, dtype=torch.float32),
            floats.sum(1),
        )


def test_sums_are_exact_at_62_bits_and_of_either_sign(tmp_path):
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-(2**57), 2**57, (3, 4, 7), generator=generator)
    integers[0, 0] = torch.tensor([2**60, 2**59, 1, 0, 0, 3, -1])
    floats = torch.rand(3, 4, generator=generator)
    program = torch.onnx.export(
        Sums().eval(),
        (integers, floats),
        dynamo=True,
        verbose=False,
        opset_version=18,
        custom_translation_table={torch.ops.aten.sum.dim_IntList: translate_sum},
    )
    program.save(tmp_path / "sums.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "sums.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    last, outer, as_float, of_floats = session.run(
        None, dict(zip(names, (integers.numpy(), floats.numpy()), strict=True))
    )
    rows = integers.tolist()
    assert last.tolist() == [[sum(row) for row in block] for block in rows]
    assert last[0, 0] == 2**60 + 2**59 + 3
    assert outer.tolist() == [[[sum(sum(block[i]) for block in rows)] for i in range(4)]]
    assert as_float.dtype == "float32"
    assert of_floats.tolist() == pytest.approx(floats.sum(1).tolist())
