"""What a tokenizer is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from gsqtok.networks import Decoder, Encoder
from gsqtok.networks.blocks import NORM_EPS, NORM_GROUPS
from gsqtok.quantizers import build_quantizer
from gsqtok.tokenizer.parts import Parts

Blocks = int | tuple[int, ...]


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer is made of; the defaults are the paper's f8 model with 8 groups.

    Args:
        latent_dim: channels D of the latent.
        channels: channels at full resolution, a multiple of 32 (128 in the paper).
        multipliers: channel multiplier of each level; n levels down-sample by f = 2^(n - 1). The paper's are
            f8 [1, 2, 2, 4], f16 [1, 1, 2, 2, 4], f32 [1, 1, 2, 2, 4, 4].
        encoder_blocks: residual blocks a level in the encoder: one number, or one for each level.
        decoder_blocks: the same in the decoder, first level first.
        encoder_middle_blocks: residual blocks at the lowest resolution of the encoder.
        decoder_middle_blocks: the same in the decoder.
        middle_attention: attention between the middle blocks.
        attention_factors: down-sampling factors (1, 2, 4, ...) at which residual blocks are followed by attention.
        adaptive_norm: the decoder normalises with statistics of the quantized latent.
        depth_to_space: the decoder up-samples by depth-to-space instead of repetition.
        norm_eps: of the group norms outside of attention.
        quantizer: the quantizer's registry name and options, such as {"name": "gsq", "groups": 8}.
    """

    latent_dim: int = 16
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    encoder_blocks: Blocks = 2
    decoder_blocks: Blocks = 2
    encoder_middle_blocks: int = 2
    decoder_middle_blocks: int = 2
    middle_attention: bool = False
    attention_factors: tuple[int, ...] = ()
    adaptive_norm: bool = False
    depth_to_space: bool = False
    norm_eps: float = NORM_EPS
    quantizer: dict[str, Any] = field(default_factory=lambda: {"name": "gsq", "groups": 8, "codebook_size": 8192})

    def __post_init__(self) -> None:
        # JSON and YAML know lists only; a configuration is hashable and comparable with tuples.
        for name in ("multipliers", "attention_factors", "encoder_blocks", "decoder_blocks"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one positive number for each level, got {list(self.multipliers)}")
        if self.channels < 1 or self.channels % NORM_GROUPS:
            raise ValueError(f"channels must be a positive multiple of {NORM_GROUPS}, got {self.channels}")
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be positive, got {self.latent_dim}")
        for name in ("encoder_blocks", "decoder_blocks"):
            if min(self.blocks_per_level(name)) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if min(self.encoder_middle_blocks, self.decoder_middle_blocks) < 0:
            raise ValueError("encoder_middle_blocks and decoder_middle_blocks must not be negative")
        levels = [2**i for i in range(len(self.multipliers))]
        if wrong := sorted(set(self.attention_factors) - set(levels)):
            raise ValueError(f"attention_factors must be among {levels}, got {wrong}")
        if "name" not in self.quantizer:
            raise ValueError('quantizer must name its method, such as {"name": "gsq"}')

    @property
    def factor(self) -> int:
        """The down-sampling factor f."""
        return 2 ** (len(self.multipliers) - 1)

    def blocks_per_level(self, name: str) -> tuple[int, ...]:
        """``encoder_blocks`` or ``decoder_blocks`` as one number for each level."""
        blocks = getattr(self, name)
        blocks = (blocks,) * len(self.multipliers) if isinstance(blocks, int) else tuple(blocks)
        if len(blocks) != len(self.multipliers):
            raise ValueError(f"{name} names {len(blocks)} levels, multipliers {len(self.multipliers)}")
        return blocks

    def build(self) -> Parts:
        """Make the networks and the quantizer, with random weights."""
        encoder = Encoder(
            latent_dim=self.latent_dim,
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks_per_level("encoder_blocks"),
            middle_blocks=self.encoder_middle_blocks,
            middle_attention=self.middle_attention,
            attention_factors=self.attention_factors,
            norm_eps=self.norm_eps,
        )
        quantizer = build_quantizer(**{"dim": self.latent_dim} | self.quantizer)
        decoder = Decoder(
            latent_dim=self.latent_dim,
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks_per_level("decoder_blocks"),
            middle_blocks=self.decoder_middle_blocks,
            middle_attention=self.middle_attention,
            attention_factors=self.attention_factors,
            adaptive_norm=self.adaptive_norm,
            depth_to_space=self.depth_to_space,
            norm_eps=self.norm_eps,
        )
        return Parts(encoder, quantizer, decoder, self.factor)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, and as a tokenizer's fingerprint counts it."""
        values = dataclasses.asdict(self)
        if self.norm_eps == NORM_EPS:  # came later than the rest: what it leaves alone keeps its fingerprint
            del values["norm_eps"]
        return values

    def summary(self) -> str:
        """The networks in a few words."""
        words = [f"{self.channels} channels x {list(self.multipliers)}"]
        words += [word for word in ("middle_attention", "adaptive_norm", "depth_to_space") if getattr(self, word)]
        if self.attention_factors:
            words.append(f"attention at factors {list(self.attention_factors)}")
        return ", ".join(words).replace("_", " ")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenizerConfig:
        """From parsed JSON; an unknown key raises ValueError."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown configuration key '{unknown[0]}'")
        return cls(**values)
