import pytest
import torch

from gsqtok.acceleration import recompute
from gsqtok.networks import Decoder, Encoder


@pytest.mark.parametrize("levels", [1, 2, 9])
def test_recomputed_blocks_have_equal_gradients_and_keep_less(levels):
    torch.manual_seed(0)
    arguments = (8, 32, (1, 2, 2), (1, 1, 1), 1, True)
    encoder, decoder = Encoder(*arguments).double(), Decoder(*arguments, adaptive_norm=True).double()
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    gradients, kept = [], []
    for wanted in (0, levels):
        for network in (encoder, decoder):
            recompute(network, levels=wanted)
        encoder.zero_grad()
        decoder.zero_grad()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            out = decoder(encoder(images))
        out.square().sum().backward()
        gradients.append([p.grad.clone() for p in (*encoder.parameters(), *decoder.parameters())])
        kept.append(sum(saved))
    assert kept[1] < kept[0]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
