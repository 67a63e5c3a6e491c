"""What a tokenizer is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from gsqtok.networks import AnyDecoder, AnyEncoder, CompactDecoder, CompactEncoder, Decoder, Encoder
from gsqtok.networks.blocks import NORM_EPS, NORM_GROUPS
from gsqtok.quantizers import build_quantizer
from gsqtok.tokenizer.parts import Parts

Blocks = int | tuple[int, ...]


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer is made of; the defaults are the paper's f8 model with 8 groups.

    Args:
        latent_dim: channels D of the latent.
        network: the paper's networks, or compact ones, whose first level is at half resolution
            (`gsqtok.networks.compact`); these have neither attention nor adaptive norms.
        channels: channels per unit of multiplier, a multiple of 32 (128 in the paper).
        multipliers: channel multiplier of each level, the finest first; n levels down-sample by f = 2^(n - 1), compact
            ones by 2^n. The paper's are f8 [1, 2, 2, 4], f16 [1, 1, 2, 2, 4], f32 [1, 1, 2, 2, 4, 4].
        decoder_multipliers: the same for the decoder; null takes those of the encoder.
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
    network: Literal["paper", "compact"] = "paper"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    decoder_multipliers: tuple[int, ...] | None = None
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
        for name in ("multipliers", "decoder_multipliers", "attention_factors", "encoder_blocks", "decoder_blocks"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        for name in ("multipliers", "decoder_multipliers"):
            numbers = getattr(self, name)
            if numbers is not None and (not numbers or min(numbers) < 1):
                raise ValueError(f"{name} must be one positive number for each level, got {list(numbers)}")
        if len(self.decoder_multipliers or self.multipliers) != len(self.multipliers):
            raise ValueError(
                f"decoder_multipliers names {len(self.decoder_multipliers)} levels, multipliers {len(self.multipliers)}"
            )
        self._check_network()
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

    def _check_network(self) -> None:
        if self.network not in ("paper", "compact"):
            raise ValueError(f"network must be 'paper' or 'compact', got '{self.network}'")
        paper_only = ("middle_attention", "attention_factors", "adaptive_norm", "depth_to_space")
        if self.network == "compact" and (wrong := [name for name in paper_only if getattr(self, name)]):
            raise ValueError(f"{wrong[0]} is an option of the paper's networks: compact ones have none; leave it out")

    @property
    def factor(self) -> int:
        """The down-sampling factor f."""
        return 2 ** (len(self.multipliers) - (self.network == "paper"))

    def blocks_per_level(self, name: str) -> tuple[int, ...]:
        """``encoder_blocks`` or ``decoder_blocks`` as one number for each level."""
        blocks = getattr(self, name)
        blocks = (blocks,) * len(self.multipliers) if isinstance(blocks, int) else tuple(blocks)
        if len(blocks) != len(self.multipliers):
            raise ValueError(f"{name} names {len(blocks)} levels, multipliers {len(self.multipliers)}")
        return blocks

    def build(self) -> Parts:
        """Make the networks and the quantizer, with random weights."""
        encoder = self._encoder()
        quantizer = build_quantizer(**{"dim": self.latent_dim} | self.quantizer)
        return Parts(encoder, quantizer, self._decoder(), self.factor)

    def _encoder(self) -> AnyEncoder:
        blocks = self.blocks_per_level("encoder_blocks")
        if self.network == "compact":
            return CompactEncoder(
                self.latent_dim, self._widths(self.multipliers), _deepened(blocks, self.encoder_middle_blocks)
            )
        return Encoder(
            latent_dim=self.latent_dim,
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=blocks,
            middle_blocks=self.encoder_middle_blocks,
            middle_attention=self.middle_attention,
            attention_factors=self.attention_factors,
            norm_eps=self.norm_eps,
        )

    def _decoder(self) -> AnyDecoder:
        multipliers, blocks = self.decoder_multipliers or self.multipliers, self.blocks_per_level("decoder_blocks")
        if self.network == "compact":
            return CompactDecoder(
                self.latent_dim, self._widths(multipliers), _deepened(blocks, self.decoder_middle_blocks)
            )
        return Decoder(
            latent_dim=self.latent_dim,
            channels=self.channels,
            multipliers=multipliers,
            blocks=blocks,
            middle_blocks=self.decoder_middle_blocks,
            middle_attention=self.middle_attention,
            attention_factors=self.attention_factors,
            adaptive_norm=self.adaptive_norm,
            depth_to_space=self.depth_to_space,
            norm_eps=self.norm_eps,
        )

    def _widths(self, multipliers: tuple[int, ...]) -> list[int]:
        return [self.channels * multiplier for multiplier in multipliers]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, and as a tokenizer's fingerprint counts it."""
        values = dataclasses.asdict(self)
        for name in ("network", "decoder_multipliers", "norm_eps"):
            if values[name] == getattr(type(self), name):  # came later: what leaves it alone keeps its fingerprint
                del values[name]
        return values

    def summary(self) -> str:
        """The networks in a few words."""
        words = [f"{self.channels} channels x {list(self.multipliers)}"]
        if self.network == "compact":
            words.insert(0, "compact")
        if self.decoder_multipliers is not None:
            words.append(f"decoder x {list(self.decoder_multipliers)}")
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


def _deepened(blocks: tuple[int, ...], more: int) -> tuple[int, ...]:
    """Blocks a level, with so many more in the last, which is the lowest resolution."""
    return (*blocks[:-1], blocks[-1] + more)
