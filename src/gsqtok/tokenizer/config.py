"""What a tokenizer is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gsqtok.networks import AnyDecoder, AnyEncoder, CompactDecoder, CompactEncoder, Decoder, Encoder
from gsqtok.networks.blocks import NORM_EPS, NORM_GROUPS
from gsqtok.options import Count, Natural, Positive, check, check_names
from gsqtok.quantizers import QuantizerOptions, build_quantizer, quantizer_options
from gsqtok.quantizers.base import LATER
from gsqtok.tokenizer.parts import Parts

Blocks = Natural | tuple[Natural, ...]


@dataclass(frozen=True, kw_only=True)
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
        decoder_counts: the decoder is told how many groups each position has, by a channel for each number: for
            quantizers with nested groups.
        norm_eps: of the group norms outside of attention.
        quantizer: the quantizer's name and options, such as ``quantizer_options("gsq", groups=8)``; a mapping such as
            {"name": "gsq", "groups": 8} becomes that.
    """

    latent_dim: Count = 16
    network: Literal["paper", "compact"] = "paper"
    channels: Count = 128
    multipliers: tuple[Count, ...] = (1, 2, 2, 4)
    decoder_multipliers: tuple[Count, ...] | None = None
    encoder_blocks: Blocks = 2
    decoder_blocks: Blocks = 2
    encoder_middle_blocks: Natural = 2
    decoder_middle_blocks: Natural = 2
    middle_attention: bool = False
    attention_factors: tuple[Count, ...] = ()
    adaptive_norm: bool = False
    depth_to_space: bool = False
    decoder_counts: bool = field(default=False, metadata=LATER)
    norm_eps: Positive = NORM_EPS
    quantizer: QuantizerOptions = field(default_factory=lambda: quantizer_options("gsq", groups=8, codebook_size=8192))

    def __post_init__(self) -> None:
        if isinstance(self.quantizer, Mapping):  # as JSON and YAML have it
            object.__setattr__(self, "quantizer", self._typed(self.quantizer))
        check(self)
        for name in ("multipliers", "decoder_multipliers"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must be one positive number for each level, got none")
        if len(self.decoder_multipliers or self.multipliers) != len(self.multipliers):
            raise ValueError(
                f"decoder_multipliers names {len(self.decoder_multipliers or ())} levels, multipliers "
                f"{len(self.multipliers)}"
            )
        self._check_network()
        if self.decoder_counts and getattr(self.quantizer, "nested", None) is None:
            raise ValueError("decoder_counts is for nested groups: give the quantizer nested: uniform, or leave it out")
        if self.channels % NORM_GROUPS:
            raise ValueError(f"channels must be a multiple of {NORM_GROUPS}, got {self.channels}")
        for name in ("encoder_blocks", "decoder_blocks"):
            self.blocks_per_level(name)
        count = len(self.multipliers)
        if wrong := sorted({f for f in self.attention_factors if f.bit_count() != 1 or f.bit_length() > count}):
            levels = [2**i for i in range(count)]
            raise ValueError(f"attention_factors must be among {levels}, got {wrong}")

    def _typed(self, written: Mapping[str, Any]) -> QuantizerOptions:
        if "name" not in written:
            raise ValueError('quantizer must name its method, such as {"name": "gsq"}')
        options = dict(written)
        dim = options.pop("dim", self.latent_dim)
        if dim != self.latent_dim:
            raise ValueError(f"quantizer has dim = {dim}, latent_dim is {self.latent_dim}: leave dim out")
        return quantizer_options(**options)

    def _check_network(self) -> None:
        paper_only = ("middle_attention", "attention_factors", "adaptive_norm", "depth_to_space")
        if self.network == "compact" and (wrong := [name for name in paper_only if getattr(self, name)]):
            raise ValueError(f"{wrong[0]} is an option of the paper's networks: compact ones have none; leave it out")

    @property
    def factor(self) -> int:
        """The down-sampling factor f."""
        return 1 << (len(self.multipliers) - (self.network == "paper"))

    def blocks_per_level(self, name: str) -> tuple[int, ...]:
        """``encoder_blocks`` or ``decoder_blocks`` as one number for each level."""
        blocks: Blocks = getattr(self, name)
        if isinstance(blocks, int):
            blocks = (blocks,) * len(self.multipliers)
        if len(blocks) != len(self.multipliers):
            raise ValueError(f"{name} names {len(blocks)} levels, multipliers {len(self.multipliers)}")
        return blocks

    def build(self) -> Parts:
        """Make the networks and the quantizer, with random weights."""
        encoder = self._encoder()
        quantizer = build_quantizer(dim=self.latent_dim, **dataclasses.asdict(self.quantizer))
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
        inputs = self.latent_dim + (getattr(self.quantizer, "groups", 1) if self.decoder_counts else 0)
        if self.network == "compact":
            return CompactDecoder(inputs, self._widths(multipliers), _deepened(blocks, self.decoder_middle_blocks))
        return Decoder(
            latent_dim=inputs,
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
        values = dataclasses.asdict(self) | {"quantizer": self.quantizer.to_dict()}
        for name in ("network", "decoder_multipliers", "decoder_counts", "norm_eps"):
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
        flags = ("middle_attention", "adaptive_norm", "depth_to_space", "decoder_counts")
        words += [word for word in flags if getattr(self, word)]
        if self.attention_factors:
            words.append(f"attention at factors {list(self.attention_factors)}")
        return ", ".join(words).replace("_", " ")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenizerConfig:
        """From parsed JSON; an unknown key raises ValueError."""
        check_names(values, [f.name for f in dataclasses.fields(cls)], "unknown configuration key")
        return cls(**values)


def _deepened(blocks: tuple[int, ...], more: int) -> tuple[int, ...]:
    """Blocks a level, with so many more in the last, which is the lowest resolution."""
    return (*blocks[:-1], blocks[-1] + more)
