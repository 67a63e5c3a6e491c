"""The decoder: quantized latent to image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gsqtok.networks.blocks import (
    NORM_EPS,
    AdaptiveGroupNorm,
    Attention,
    DepthToSpaceUpsample,
    GroupNorm,
    NearestUpsample,
    ResidualBlock,
)
from gsqtok.networks.encoder import middle


class Decoder(nn.Module):
    """Convolutional decoder of the paper (section 4.1), the encoder's mirror; up-samples by f = 2^(levels - 1).

    Args:
        latent_dim: channels D of the latent, and of what else there is about a position.
        channels: channels at full resolution per unit of multiplier, a multiple of 32.
        multipliers: as for the encoder, first level first: the decoder walks them from the last to the first.
        blocks: residual blocks of each level, in the same order as ``multipliers``.
        middle_blocks: residual blocks before the first up-sampling.
        middle_attention: attention between the middle blocks.
        attention_factors: down-sampling factors at which each residual block is followed by attention.
        adaptive_norm: normalise with statistics of the quantized latent after the middle and after each up-sampling.
        depth_to_space: up-sample by a convolution to 4C channels instead of repetition.
        norm_eps: of the group norms outside of attention.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: Sequence[int],
        middle_blocks: int,
        middle_attention: bool = False,
        attention_factors: Sequence[int] = (),
        adaptive_norm: bool = False,
        depth_to_space: bool = False,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        width = channels * multipliers[-1]
        upsample = DepthToSpaceUpsample if depth_to_space else NearestUpsample
        self.conv_in = nn.Conv2d(latent_dim, width, 3, padding=1)
        self.blocks = nn.ModuleList(middle(width, middle_blocks, middle_attention, norm_eps))
        if adaptive_norm:
            self.blocks.append(AdaptiveGroupNorm(width, latent_dim))
        for level, (multiplier, count) in reversed(list(enumerate(zip(multipliers, blocks, strict=True)))):
            if width != channels * multiplier:
                self.blocks.append(ResidualBlock(width, channels * multiplier, norm_eps))
                width = channels * multiplier
            for _ in range(count):
                self.blocks.append(ResidualBlock(width, width, norm_eps))
                if 2**level in attention_factors:
                    self.blocks.append(Attention(width))
            if level > 0:
                self.blocks.append(upsample(width))
                if adaptive_norm:
                    self.blocks.append(AdaptiveGroupNorm(width, latent_dim))
        self.norm_out = GroupNorm(width, norm_eps, silu=True)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The weights whose gradient the adaptive adversarial weight compares."""
        return self.conv_out.weight

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, h*f, w*f), about [-1, 1], not clamped."""
        x = self.conv_in(quantized)
        for block in self.blocks:
            x = block(x, quantized) if isinstance(block, AdaptiveGroupNorm) else block(x)
        return self.conv_out(self.norm_out(x.to(self.conv_out.weight.dtype)))
