"""Vector quantization with a codebook of moving averages: VQ-VAE-2, Razavi et al. 2019, arXiv 1906.00446, section 2.1.

Each codeword is the exponentially weighted mean of the latents that chose it (mini-batch k-means that forgets), so only
the commitment loss is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from gsqtok.options import Decay, Natural, Weight
from gsqtok.quantizers.base import LATER, GroupedQuantizer, QuantizerOutput
from gsqtok.quantizers.codebook import CodebookSize, mean_square, nearest_codewords, take_codewords
from gsqtok.quantizers.fused import Method, fusible, look_up
from gsqtok.quantizers.kmeans import KMeansStart, kmeans
from gsqtok.quantizers.learnt import Gradient, through
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.statistics import clusters
from gsqtok.search import normalize


@register_quantizer("ema_vq")
@dataclass(eq=False, repr=False, kw_only=True)
class EMAVQ(GroupedQuantizer):
    """Vector quantization whose codewords follow their latents, with dead ones revived.

    ``update``, after each training step: N_j <- decay N_j + (1 - decay) n_j and m_j <- decay m_j + (1 - decay) (sum of
    the n_j latents that chose j), and c_j = m_j / N_j (Razavi 2019, equation 2). N_j starts at 1 and m_j at c_j, and
    codewords that no latent chose stay where they are: the usual start at 0 with Laplace smoothing pulls them to the
    origin. All sums run over all ranks.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebook; each position gets G tokens.
        codebook_size: number of codewords V.
        metric: ``"euclidean"``: the nearest codeword; ``"cosine"``: latents are l2-normalised, and codewords are the
            directions of the means (Yu et al. 2022, arXiv 2110.04627, section 3.2).
        init: ``"normal"``: N(0, 1), with ``"cosine"`` uniform on the sphere; ``"kmeans"``: as normal until training has
            seen 4 latents a codeword, whose cluster centres then become the codewords.
        decay: of the moving averages, in [0, 1).
        revive_after: training steps without use after which a codeword moves to a latent of the current one, drawn at
            random (after Dhariwal et al. 2020, arXiv 2005.00341, section 3.1); 0 for never. Choose it well above
            V / (latents per batch), or codewords that are merely rare move too.
        commitment_weight: weight of the commitment loss.
        gradient: ``"straight_through"`` or ``"rotation"``, see `rotation_trick`.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: ``commitment``.
    """

    codebook_size: CodebookSize = 8192
    decay: Decay = 0.99
    revive_after: Natural = 100
    commitment_weight: Weight = 0.25
    metric: Literal["euclidean", "cosine"] = field(default="euclidean", metadata=LATER)
    init: Literal["normal", "kmeans"] = field(default="normal", metadata=LATER)
    gradient: Gradient = field(default="straight_through", metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_dim == 1 and self.metric == "cosine":
            raise ValueError("metric 'cosine' leaves only the sign of groups of one channel; use euclidean")
        self.codebook = nn.Buffer(self._prepared(torch.randn(self.codebook_size, self.group_dim)))
        self.counts = nn.Buffer(torch.ones(self.codebook_size))
        self.sums = nn.Buffer(self.codebook.clone())
        self.idle = nn.Buffer(torch.zeros(self.codebook_size, dtype=torch.int64))
        self.start = KMeansStart(self.codebook_size) if self.init == "kmeans" else None

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        rows = self.split(latent)
        latent, indices = self._prepared(rows), nearest_codewords(rows, self.codebook, self.metric)
        codewords = take_codewords(self.codebook, indices)
        commitment = mean_square(latent - codewords)
        return QuantizerOutput(
            through(latent, codewords, self.gradient).flatten(-2),
            indices,
            self.commitment_weight * commitment,
            {"commitment": commitment},
        )

    def quantize_fused(self, latent: Tensor) -> QuantizerOutput | None:
        """See ``Quantizer.quantize_fused``."""
        if type(self) is not EMAVQ or self.gradient != "straight_through" or not fusible(latent, self.groups):
            return None
        method = Method(self.groups, self.metric == "cosine", 0.0, self.commitment_weight)
        out = look_up(latent, self.codebook, method)
        return QuantizerOutput(out.quantized, out.indices, out.loss, {"commitment": out.commitment})

    def _prepared(self, rows: Tensor) -> Tensor:
        return normalize(rows) if self.metric == "cosine" else rows

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        return take_codewords(self.codebook, indices).flatten(-2)

    @property
    def follows(self) -> bool:
        """See ``Quantizer.follows``."""
        return self.training and not self.frozen

    def move(self, latent: Tensor, indices: Tensor) -> None:
        """See ``Quantizer.update``, and the class. A step without any latent that counts changes nothing."""
        rows = self._prepared(latent.reshape(-1, self.group_dim))
        if self.start is not None and self.start.pending:
            gathered = self.start.gather(rows[indices.flatten() >= 0])
            if gathered is not None:
                self.codebook.copy_(self._prepared(kmeans(gathered, self.codebook_size)))
                self.sums.copy_(self.codebook)
            return
        batch = clusters(rows, indices.flatten(), self.codebook_size)
        used = batch.counts > 0
        new = (1 - self.decay) * used.any()
        self.counts.lerp_(batch.counts, new)
        self.sums.lerp_(batch.sums, new)
        mean = self._prepared(self.sums / self.counts[:, None])
        self.codebook.copy_(torch.where(used[:, None], mean, self.codebook))
        if self.revive_after:
            self.idle.copy_(torch.where(used, 0, self.idle + used.any()))
            dead = (self.idle >= self.revive_after) & batch.sampled
            self.codebook.copy_(torch.where(dead[:, None], batch.samples, self.codebook))
            self.sums.copy_(torch.where(dead[:, None], batch.samples, self.sums))
            self.counts.masked_fill_(dead, 1)
            self.idle.masked_fill_(dead, 0)
