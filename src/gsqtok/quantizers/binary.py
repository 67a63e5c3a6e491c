"""Codes of one bit a channel: packing into indices, and the entropy of soft assignments without a codebook."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from gsqtok.distributed import mean_over_ranks
from gsqtok.options import Positive, Rule, Weight
from gsqtok.quantizers.base import GroupedQuantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import mean_square

MAX_BITS = 62  # of an int64 index, its sign aside
EntropyBits = Annotated[int, Rule("from 1 to 24", lambda bits: 1 <= bits <= 24)]


@dataclass(eq=False, repr=False, kw_only=True)
class BinaryQuantizer(GroupedQuantizer):
    """Signs of the channels as bits: what LFQ and BSQ share.

    Token bit i is 1 where channel i of the group is above 0. A subclass says where a latent lies (``project``) and how
    far from 0 its codewords are (``magnitude``).
    """

    entropy_weight: Weight = 0.1
    diversity: Weight = 1.0
    temperature: Positive = 1.0
    entropy_bits: EntropyBits = 9
    commitment_weight: Weight

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_dim > MAX_BITS:
            d = self.group_dim
            raise ValueError(f"a group of {d} channels gives {d} bits, an index has {MAX_BITS}; use more groups")
        self.codebook_size = 2**self.group_dim

    @property
    @abstractmethod
    def magnitude(self) -> float:
        """Absolute value of every channel of a codeword."""

    @abstractmethod
    def project(self, latent: Tensor) -> Tensor:
        """Latents (..., d) to where they are compared."""

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        projected = self.project(self.split(latent))
        shifts = torch.arange(projected.shape[-1], device=latent.device)
        indices = torch.bitwise_left_shift((projected > 0).long(), shifts).sum(-1)  # "<<" has no ONNX translation
        codewords = self.lookup(indices).view_as(projected)
        loss = latent.new_zeros(())
        losses: dict[str, Tensor] = {}
        if self.entropy_weight:
            # log(p / (1 - p)) of a bit being 1: the difference of -|projected - codeword|^2 / temperature
            logits = 4 * self.magnitude / self.temperature * projected
            sample, batch = binary_entropies(logits.flatten(0, -2), self.entropy_bits)
            losses |= {"sample_entropy": sample, "batch_entropy": batch}
            loss = loss + self.entropy_weight * (sample - self.diversity * batch)
        if self.commitment_weight:
            losses["commitment"] = mean_square(projected - codewords)
            loss = loss + self.commitment_weight * losses["commitment"]
        return QuantizerOutput(straight_through(projected, codewords).flatten(-2), indices, loss, losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        shifts = torch.arange(self.group_dim, device=indices.device)
        bits = torch.bitwise_right_shift(indices[..., None], shifts) & 1
        return ((2 * bits - 1) * self.magnitude).float().flatten(-2)


def binary_entropies(logits: Tensor, entropy_bits: int) -> tuple[Tensor, Tensor]:
    """Mean entropy of a sample's codeword, and entropy of the mean codeword, with bits independent given a sample.

    The first is exact: the entropies of the bits add. The second is not a sum over bits, since the mean over samples
    correlates them. It is exact for up to ``entropy_bits`` bits; more are cut into chunks whose joint entropies are
    added, which is an upper bound (subadditivity), met where chunks are independent. The joint distribution of a chunk
    of k bits is one product of two (N, 2^(k/2)) matrices, so memory stays far below N x 2^k.

    Args:
        logits: (N, bits) float32, log-odds of each bit.
        entropy_bits: bits of a chunk.

    Returns:
        Both in nats; 0 for an empty batch. The mean codeword is over all ranks.
    """
    samples = max(logits.shape[0], 1)
    per_bit = F.softplus(logits) - logits * logits.sigmoid()  # -p log p - (1 - p) log(1 - p)
    batch = logits.new_zeros(())
    for chunk in logits.split(entropy_bits, dim=1):
        half = chunk.shape[1] // 2
        joint = _joint(chunk[:, :half]).T @ _joint(chunk[:, half:]) / samples
        joint = mean_over_ranks(joint)
        batch = batch - torch.xlogy(joint, joint.clamp_min(1e-30)).sum()
    return per_bit.sum() / samples, batch


def _joint(logits: Tensor) -> Tensor:
    """Probabilities of all 2^k patterns of k independent bits: (N, k) -> (N, 2^k)."""
    k = logits.shape[1]
    numbers, places = torch.arange(2**k, device=logits.device), torch.arange(k, device=logits.device)
    patterns = torch.bitwise_right_shift(numbers[:, None], places) & 1
    patterns = patterns.to(logits.dtype)
    return (F.logsigmoid(logits) @ patterns.T + F.logsigmoid(-logits) @ (1 - patterns).T).exp()
