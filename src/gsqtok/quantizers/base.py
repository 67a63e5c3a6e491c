"""The contract that every quantizer keeps.

A quantizer maps latents to the nearest of finitely many values and says which one it took:

    out = quantizer(latent)            # latent (..., dim)
    out.quantized                      # (..., dim), what a decoder gets; its gradient reaches the latent
    out.indices                        # (..., tokens_per_position) int64
    quantizer.decode(out.indices)      # (..., dim), equal to out.quantized

Arithmetic is float32 whatever autocast says, since half precision picks wrong codewords.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.options import Count, Share, check
from gsqtok.quantizers.nesting import Schedule, draw_groups

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class QuantizerOutput:
    """What a quantizer returns.

    Attributes:
        quantized: (..., dim) float32, the codewords; the gradient goes straight through to the latent.
        indices: (..., tokens_per_position) int64; -1 where the latent was not finite (training only).
        loss: scalar float32, the weighted sum of ``losses``; 0 for a quantizer without a loss.
        losses: each term by name, before its weight.
        counts: (...) int64, of nested groups how many ``quantized`` holds of each position; None: all.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    counts: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """The first three, for ``quantized, indices, loss = quantizer(latent)``."""
        return iter((self.quantized, self.indices, self.loss))

    def __getitem__(self, which: int) -> Tensor:
        """One of these three, for ``quantizer(latent)[0]``."""
        return (self.quantized, self.indices, self.loss)[which]


torch.export.register_dataclass(QuantizerOutput, serialized_type_name="gsqtok.QuantizerOutput")


@dataclass(frozen=True)
class QuantizerOptions:
    """Name and options of a quantizer, without its ``dim``; each method has a subclass with its own fields.

    Made by ``quantizer_options``. ``dataclasses.asdict`` gives the form of JSON and YAML: {"name": "gsq", "groups": 4}.
    """

    name: str

    def __post_init__(self) -> None:
        check(self)

    def to_dict(self) -> dict[str, Any]:
        """As files hold it: without options that came ``LATER`` and are left alone."""
        values = dataclasses.asdict(self)
        for option in dataclasses.fields(self):
            if option.metadata.get("later") and values[option.name] == option.default:
                del values[option.name]
        return values


LATER = {"later": True}
"""Metadata of a field that was added after tokenizers with that quantizer had been saved: it changes no fingerprint."""


@dataclass(eq=False, repr=False)
class Quantizer(nn.Module, ABC):
    """Base of all quantizers.

    A method is a dataclass: its fields are its options, checked against their annotations (`gsqtok.options`), and
    ``build_quantizer(**quantizer.config)`` builds it again. ``__post_init__`` makes what it stores.

    Args:
        dim: channels D of the latent.
        codebook_dim: channels that are quantized in the place of ``dim``, between two learnt linear maps: one to them,
            and one back. None: the latent itself is quantized, and there are no maps.

    Attributes:
        name: the name in the registry.
        Options: the dataclass of its options without ``dim``, for configurations.
        codebook_size: number of values V that one index can take.
        tokens_per_position: indices per latent vector (groups, or groups times stages).
        nested: whether, and how, it was trained such that a position's first groups alone decode; see
            `GroupedQuantizer`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[QuantizerOptions]]
    nested: ClassVar[Schedule | None] = None
    dim: Count
    codebook_dim: Count | None = field(default=None, kw_only=True, metadata=LATER)
    codebook_size: int = field(init=False)
    tokens_per_position: int = field(init=False)

    def __post_init__(self) -> None:
        super().__init__()
        self.frozen = False
        check(self)
        if self.codebook_dim is not None:
            self.project_in, self.project_out = (
                nn.Linear(self.dim, self.codebook_dim),
                nn.Linear(self.codebook_dim, self.dim),
            )

    @property
    def inner_dim(self) -> int:
        """Channels that the method itself sees."""
        return self.codebook_dim or self.dim

    def inward(self, latent: Tensor) -> Tensor:
        """Map a latent (..., dim) to what is quantized, (..., inner_dim)."""
        return latent if self.codebook_dim is None else _linear(self.project_in, latent)

    def outward(self, values: Tensor) -> Tensor:
        """Map values (..., inner_dim) to what a decoder gets, (..., dim)."""
        return values if self.codebook_dim is None else _linear(self.project_out, values)

    @property
    def bits(self) -> float:
        """Bits per position: what the indices of one latent vector can carry."""
        return self.bits_of(None)

    def bits_of(self, groups: int | None) -> float:
        """Bits of a position's first ``groups``; None is all of them. Raises as ``tokens_of``."""
        return self.tokens_of(groups) * math.log2(self.codebook_size)

    def tokens_of(self, groups: int | None) -> int:
        """Tokens of a position's first ``groups``; None is all of them.

        Raises:
            ValueError: no such number of groups, or fewer than all of a quantizer whose groups are not nested.
            TypeError: no whole number.
        """
        if groups is None:
            return self.tokens_per_position
        of_all = getattr(self, "groups", 1)
        if not isinstance(groups, Integral) or isinstance(groups, bool):
            raise TypeError(f"groups must be a whole number from 1 to {of_all}, got {groups!r}")
        if not 1 <= groups <= of_all:
            raise ValueError(f"groups must be from 1 to {of_all}, got {groups}")
        if groups < of_all and self.nested is None:
            raise ValueError(
                f"groups must be {of_all}, got {groups}: the tokenizer was not trained with nested groups, so that "
                "fewer of them do not decode"
            )
        return self.tokens_per_position * groups // of_all

    @property
    def config(self) -> dict[str, Any]:
        """The registry name, and every constructor parameter: JSON values only."""
        parameters = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {"name": self.name} | {p: getattr(self, p) for p in parameters}

    def forward(
        self, latent: Tensor, *, check: bool = True, channel_first: bool = False, mask: Tensor | None = None
    ) -> QuantizerOutput:
        """Quantize latents. No state changes; see ``update``.

        Args:
            latent: (..., dim), any float type; quantized in float32.
            check: outside training, raise for latents that are not finite, for which the host waits for the device;
                False treats them as in training.
            channel_first: the latent is (B, dim, ...), and so is ``quantized``; the indices stay (B, ..., tokens).
            mask: (...) bool, the positions that count, where others only pad; those take no part in the losses, have
                index -1 and value 0.

        Raises:
            ValueError: the channels are not ``dim``, the mask has another shape, or, outside training, a latent is NaN
                or infinite. In training such a position gets index -1 and a NaN value, and the loss is NaN, so that a
                guard can skip the update without a synchronisation at every step.
            TypeError: the latent is not a floating-point tensor.
        """
        if not isinstance(latent, Tensor) or not latent.is_floating_point():
            raise TypeError(f"the latent must be a floating-point tensor, got {getattr(latent, 'dtype', type(latent))}")
        if channel_first:
            latent = latent.movedim(1, -1)
        if latent.shape[-1:] != (self.dim,):
            hint = "; channels come last here: use latent.movedim(1, -1), or channel_first=True"
            raise ValueError(
                f"the latent's last dimension must be dim = {self.dim}, got shape {tuple(latent.shape)}"
                + (hint if latent.shape[1:2] == (self.dim,) else "")
            )
        if mask is not None and (mask.dtype != torch.bool or mask.shape != latent.shape[:-1]):
            raise ValueError(f"the mask must be bool of shape {tuple(latent.shape[:-1])}, got {tuple(mask.shape)}")
        out = self.quantize_checked(self.inward(latent if mask is None else latent[mask]), check)
        if mask is not None:
            everywhere = mask.unsqueeze(-1)
            indices = out.indices.new_full((*mask.shape, self.tokens_per_position), -1)
            out.indices = indices.masked_scatter(everywhere, out.indices)
            out.quantized = out.quantized.new_zeros(*mask.shape, self.inner_dim).masked_scatter(
                everywhere, out.quantized
            )
        self.drop_last_groups(out)
        out.quantized = self.outward(out.quantized)
        if mask is not None and self.codebook_dim is not None:  # whose map has a bias
            out.quantized = out.quantized.masked_fill(~mask.unsqueeze(-1), 0)
        if channel_first:
            out.quantized = out.quantized.movedim(-1, 1)
        return out

    def drop_last_groups(self, out: QuantizerOutput) -> None:
        """Leave of nested groups what a decoder gets in training."""

    def quantize_checked(self, latent: Tensor, check: bool) -> QuantizerOutput:
        """``quantize`` in float32, of latents among which some may not be finite; see ``forward``."""
        with exact_arithmetic(latent.device):
            latent = latent.float()  # before anything is asked of it: what float32 cannot hold is infinite here
            looking = check and not self.training and not latent.is_meta and not torch.compiler.is_compiling()
            fused = self.quantize_fused(latent)
            if fused is not None:
                if looking:
                    self._require((fused.indices >= 0).all(-1))
                return fused
            finite = latent.isfinite().all(-1, keepdim=True)
            out = self.quantize(torch.where(finite, latent, 0))
            found = finite & (out.indices >= 0).all(-1, keepdim=True)
            if looking:
                self._require(found)
            out.indices = torch.where(found, out.indices, -1)
            out.quantized = torch.where(found, out.quantized, torch.nan)
            out.loss = out.loss + torch.where(found.all(), 0.0, torch.nan)
        return out

    @staticmethod
    def _require(found: Tensor) -> None:
        if not found.all():
            bad = (~found).sum().item()
            raise ValueError(f"{bad} of {found.numel()} latent vectors, or the codebook, hold NaN or infinity")

    def quantize_fused(self, latent: Tensor) -> QuantizerOutput | None:
        """Do all that ``quantize_checked`` does, without looking, by few kernels; None where that is not possible."""
        return None

    def decode(self, indices: Tensor, *, channel_first: bool = False) -> Tensor:
        """Values of indices: (..., tokens_per_position) integers -> (..., dim) float32.

        Args:
            indices: of any integer type. Of nested groups fewer will do: (..., k) are the first k groups, and -1 stands
                for a group that is left out, behind which all are.
            channel_first: give (B, dim, ...) for (B, ..., tokens_per_position).

        Raises:
            ValueError: wrong last dimension, or (outside compiled code) an index out of range.
            TypeError: the indices are not a tensor of integers.
        """
        whole = isinstance(indices, Tensor) and not (indices.is_floating_point() or indices.is_complex())
        if not whole or indices.dtype == torch.bool:
            raise TypeError(f"indices must be a tensor of integers, got {getattr(indices, 'dtype', type(indices))}")
        expected, given = self.tokens_per_position, indices.shape[-1] if indices.ndim else 0
        if not (given == expected or (self.nested is not None and 1 <= given < expected)):
            fewer = " or fewer" if self.nested is not None else ""
            hint = ": its groups are not nested, so that fewer do not decode" if given < expected and not fewer else ""
            raise ValueError(
                f"the last dimension of the indices must be {expected}{fewer}, got shape {tuple(indices.shape)}{hint}"
            )
        indices = indices.long()  # first: uint16 to uint64 know next to no operation but this
        if indices.numel() and not indices.is_meta and not torch.compiler.is_compiling():
            self.check_indices(indices)
        with exact_arithmetic(indices.device):
            values = self.outward(self.lookup(indices) if self.nested is None else self.lookup_first(indices))
        return values.movedim(-1, 1) if channel_first else values

    def check_indices(self, indices: Tensor) -> None:
        """Raise ValueError for an index that means nothing."""
        low, high = (int(x) for x in torch.aminmax(indices))
        if low < 0 or high >= self.codebook_size:
            wrong = low if low < 0 else high
            raise ValueError(f"index {wrong} is out of range: the codebook has {self.codebook_size} codewords")

    def lookup_first(self, indices: Tensor) -> Tensor:
        """Do as ``lookup`` for nested groups: (..., k) of which -1 are left out -> (..., inner_dim)."""
        raise NotImplementedError

    @abstractmethod
    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """The method itself: (..., inner_dim) float32, finite, autocast off. Changes no state."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """The inverse: (..., tokens_per_position) int64, checked -> (..., inner_dim) float32."""

    @property
    def follows(self) -> bool:
        """Whether ``update`` would move a codebook."""
        return False

    @torch.no_grad()
    def update(self, latent: Tensor, indices: Tensor) -> None:
        """Move the codebooks that follow the latents without a gradient: moving averages, a k-means start.

        ``forward`` moves nothing, so that it can be computed again (activation checkpointing), compiled and exported,
        and ``decode(out.indices)`` gives ``out.quantized`` until this is called. Call it once after each optimizer
        step, on every rank, with all that the step has seen (the parts of an accumulated step together). Nothing
        happens in evaluation mode, after ``requires_grad_(False)``, and in methods that learn by gradient alone.

        Args:
            latent: (..., dim), what ``forward`` got.
            indices: (..., tokens_per_position), what it gave; a position with an index of -1 does not count.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if latent.shape[:-1] != indices.shape[:-1]:
            raise ValueError(f"latent {tuple(latent.shape)} and indices {tuple(indices.shape)} are not of one batch")
        if self.follows:
            with exact_arithmetic(latent.device):
                found = (indices >= 0).all(-1, keepdim=True)
                inner = self.inward(torch.where(found, latent.float(), 0))
                self.move(torch.where(found, inner, 0), torch.where(found, indices, -1))

    def plain(self) -> Quantizer:
        """The same quantizer for use alone, without what only training needs; itself if there is nothing."""
        return self

    def move(self, latent: Tensor, indices: Tensor) -> None:
        """Do what ``update`` says, for methods that follow: (..., inner_dim) float32, zero where the index is -1."""
        raise NotImplementedError

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As in every module; False also keeps codebooks from following the latents."""
        self.frozen = not requires_grad
        return super().requires_grad_(requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as every module does, but buffers (statistics, fixed codebooks) stay in float32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def extra_repr(self) -> str:
        """The configuration and the bits, shown by ``print(quantizer)``."""
        options = ", ".join(f"{k}={v}" for k, v in self.config.items() if k != "name")
        return f"{options}, bits={self.bits:g}"


@dataclass(eq=False, repr=False, kw_only=True)
class GroupedQuantizer(Quantizer):
    """Base of the methods that quantize groups of d = D / G neighbouring channels, each by itself.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        groups: number of groups G; each position gets G tokens.
        nested: train such that the first k groups of a position decode alone, for every k: in training the decoder gets
            only the first groups of an example (of the latent's first dimension), their number k drawn anew each time,
            ``"uniform"``: from 1 to G, or ``"geometric"``: all with probability 1/2 or so, one less with 1/4, and so
            on. None: all groups are needed. All groups are searched and trained by their own losses all the same.
        nested_full: share of the draws that keep all groups besides, whatever the schedule.
        nested_mixed: share of the examples in which each position draws for itself, as where bits go where they are
            needed (`gsqtok.tokenizer.allocation`).
        filler: what takes the place of a dropped group: ``"learned"``, a vector of each group, or ``"zeros"``.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``; one group that is nested; or one of the three options of
            nested groups without ``nested``, where it would change nothing.
    """

    groups: Count = 1
    nested: Schedule | None = field(default=None, metadata=LATER)  # type: ignore[misc]
    nested_full: Share = field(default=0.0, metadata=LATER)
    nested_mixed: Share = field(default=0.0, metadata=LATER)
    filler: Literal["learned", "zeros"] = field(default="learned", metadata=LATER)
    least_group_dim: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        which = "dim" if self.codebook_dim is None else "codebook_dim"
        given = f"got {which} = {self.inner_dim}, groups = {self.groups}"
        if self.inner_dim % self.groups:
            raise ValueError(f"{which} must be a multiple of groups, {given}")
        if self.group_dim < self.least_group_dim:
            raise ValueError(f"{self.name} needs groups of at least {self.least_group_dim} channels, {given}")
        self.tokens_per_position = self.groups
        self._check_nesting()
        if self.nested is not None and self.filler == "learned":
            self.fillers = nn.Parameter(torch.zeros(self.inner_dim))

    def _check_nesting(self) -> None:
        """Refuse options of nested groups where they change nothing."""
        if self.nested is not None and self.groups == 1:
            raise ValueError(
                f"nested: {self.nested} leaves out some of several groups, got groups = 1: give more, or leave it out"
            )
        for option in dataclasses.fields(self):
            own = option.name in ("nested_full", "nested_mixed", "filler")
            if self.nested is None and own and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"{option.name} is for nested groups, got {getattr(self, option.name)!r} without them: give "
                    f"nested: uniform (or geometric), or leave {option.name} out"
                )

    @property
    def group_dim(self) -> int:
        """Channels d of one group."""
        return self.inner_dim // self.groups

    def split(self, latent: Tensor) -> Tensor:
        """Latents by group: (..., inner_dim) -> (..., groups, group_dim)."""
        by_group: Tensor = latent.unflatten(-1, (self.groups, self.group_dim))
        return by_group

    def drop_last_groups(self, out: QuantizerOutput) -> None:
        """See ``Quantizer.drop_last_groups``."""
        if self.nested is None or not self.training:
            return
        counts = draw_groups(out.quantized, self.groups, self.nested, self.nested_full, self.nested_mixed)
        kept = torch.arange(self.groups, device=counts.device) < counts.unsqueeze(-1)
        out.quantized = self._filled(out.quantized, kept | (out.indices < 0))  # of a latent that is not finite, NaN
        out.counts = counts.expand(out.quantized.shape[:-1])

    def lookup_first(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.lookup_first``."""
        indices = F.pad(indices, (0, self.groups - indices.shape[-1]), value=-1)
        return self._filled(self.lookup(indices.clamp_min(0)), indices >= 0)

    def check_indices(self, indices: Tensor) -> None:
        """See ``Quantizer.check_indices``; of nested groups the last may be -1."""
        if self.nested is not None:
            left_out = indices == -1
            if left_out[..., 0].any():
                raise ValueError("index -1 is out of range: a position needs its first group at least")
            if (left_out[..., :-1] & ~left_out[..., 1:]).any():
                raise ValueError("index -1 leaves a group out, and then all behind it must be -1, too")
            indices = torch.where(left_out, 0, indices)
        super().check_indices(indices)

    def _filled(self, values: Tensor, kept: Tensor) -> Tensor:
        """Values (..., inner_dim), with the filler where a group (..., groups) is not kept."""
        filler = self.fillers.float() if self.filler == "learned" else values.new_zeros(())
        return torch.where(kept.repeat_interleave(self.group_dim, -1), values, filler)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in float32, whatever its weights are stored in and autocast says."""
    with exact_arithmetic(x.device):
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def exact_arithmetic(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, autocast rounds nothing; the meta device knows no autocast."""
    if device.type == "meta" or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type)):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def straight_through(latent: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` to the last bit, with the gradient of ``latent`` (Bengio et al. 2013).

    The usual ``latent + (quantized - latent).detach()`` is off by a rounding error, and ``decode`` would then not
    return what the decoder was trained on. Adding a difference that is exactly zero is not.
    """
    return quantized.detach() + (latent - latent.detach())
