"""The encoder: image to latent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gsqtok.networks.blocks import NORM_EPS, Attention, Downsample, GroupNorm, ResidualBlock


class Encoder(nn.Module):
    """Convolutional encoder of the paper (section 4.1); down-samples by f = 2^(levels - 1).

    Args:
        latent_dim: channels D of the latent.
        channels: channels of the first convolution (128 in the paper), a multiple of 32.
        multipliers: one per level; level i has ``channels * multipliers[i]`` channels.
        blocks: residual blocks of each level, beside the one that changes the channel count.
        middle_blocks: residual blocks after the last level.
        middle_attention: attention between the middle blocks.
        attention_factors: down-sampling factors (1, 2, 4, ...) at which each residual block is followed by attention.
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
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList()
        width = channels
        for level, (multiplier, count) in enumerate(zip(multipliers, blocks, strict=True)):
            if width != channels * multiplier:
                self.blocks.append(ResidualBlock(width, channels * multiplier, norm_eps))
                width = channels * multiplier
            for _ in range(count):
                self.blocks.append(ResidualBlock(width, width, norm_eps))
                if 2**level in attention_factors:
                    self.blocks.append(Attention(width))
            if level < len(multipliers) - 1:
                self.blocks.append(Downsample(width))
        self.blocks.extend(middle(width, middle_blocks, middle_attention, norm_eps))
        self.norm_out = GroupNorm(width, norm_eps, silu=True)
        self.conv_out = nn.Conv2d(width, latent_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W multiples of f -> (B, D, H/f, W/f)."""
        x = self.conv_in(images)
        for block in self.blocks:
            x = block(x)
        # the last two layers may be kept more precise than those before
        return self.conv_out(self.norm_out(x.to(self.conv_out.weight.dtype)))


def middle(width: int, blocks: int, attention: bool, norm_eps: float) -> list[nn.Module]:
    """The residual blocks at the lowest resolution, with attention between them if wanted."""
    modules: list[nn.Module] = []
    for i in range(blocks):
        if attention and i > 0:
            modules.append(Attention(width))
        modules.append(ResidualBlock(width, width, norm_eps))
    return modules
