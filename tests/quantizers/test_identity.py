import torch

from gsqtok.quantizers import Identity


def test_the_latent_passes_to_the_last_bit():
    x = torch.tensor([[1.5, -0.0, 1e-45], [3e38, -2.0, 0.1]], requires_grad=True)
    quantizer = Identity(3)
    out = quantizer(x)
    assert torch.equal(out.quantized, x)
    assert out.indices[0, 0] == 0x3FC00000, "IEEE 754: sign 0, exponent 127, fraction 1/2"
    assert out.indices[0, 1] == 0x80000000
    assert torch.equal(quantizer.decode(out.indices).view(torch.int32), x.detach().view(torch.int32))
    assert quantizer.bits == 96
    out.quantized.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))
