"""vector-quantize-pytorch's class replaced by GSQ: the same call, (quantized, indices, loss), with the exact search.

    # from vector_quantize_pytorch import VectorQuantize
    # quantize = VectorQuantize(dim=64, codebook_size=16_384, heads=4, codebook_dim=16, use_cosine_sim=True)
    quantize = DropIn(dim=64, codebook_size=16_384, heads=4)

python examples/replace_vector_quantize_pytorch.py
"""

import torch
from torch import nn

from gsqtok import build_quantizer


class DropIn(nn.Module):
    """GSQ by the names of ``VectorQuantize``: heads are groups, which share the codebook.

    Unlike there the codebook has a gradient: give it to the optimizer, and add the loss, whose weights are inside.
    ``accept_image_fmap`` takes (B, dim, H, W) instead of (..., dim), as there.
    """

    def __init__(self, dim: int, codebook_size: int, heads: int = 1, accept_image_fmap: bool = False) -> None:
        super().__init__()
        self.quantizer = build_quantizer("gsq", dim=dim, groups=heads, codebook_size=codebook_size)
        self.image = accept_image_fmap

    def forward(self, x):
        """(quantized as x, indices (..., heads) or (...) for one head, loss)."""
        quantized, indices, loss = self.quantizer(x, channel_first=self.image)
        return quantized, indices.squeeze(-1), loss  # one head has no dimension of its own there

    def get_output_from_indices(self, indices):
        """Indices -> quantized (..., dim)."""
        return self.quantizer.decode(indices if self.quantizer.groups > 1 else indices.unsqueeze(-1))


if __name__ == "__main__":
    quantize = DropIn(dim=64, codebook_size=16_384, heads=4)
    quantized, indices, loss = quantize(torch.randn(2, 256, 64))
    print(tuple(quantized.shape), tuple(indices.shape), f"loss {loss.item():.4f}")
