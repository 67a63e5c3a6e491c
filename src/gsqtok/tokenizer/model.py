"""The image tokenizer: encoder, quantizer and decoder behind three calls."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.acceleration import accelerate, cpu, tiled
from gsqtok.acceleration.replay import Replays
from gsqtok.networks import AnyDecoder, AnyEncoder
from gsqtok.quantizers import quantizer_options
from gsqtok.quantizers.nesting import count_channels
from gsqtok.tokenizer.checkpoint import Pretrained
from gsqtok.tokenizer.config import TokenizerConfig
from gsqtok.tokenizer.parts import Config

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("gsqtok.tokenizer")
MANY_PIXELS = 4096  # of which none is below mid-grey: hardly a batch of photographs in [-1, 1]


@dataclass
class TokenizerOutput:
    """What ``ImageTokenizer.forward`` returns.

    Attributes:
        reconstruction: (B, 3, H, W), about [-1, 1], not clamped, so that a loss sees how far it overshoots.
        tokens: (B, h, w, G) int64.
        latent: (B, D, h, w), before quantization.
        quantized: (B, D, h, w) float32, what the decoder got.
        quantizer_loss: scalar, the quantizer's weighted loss.
        quantizer_losses: its terms by name, before their weights.
    """

    reconstruction: Tensor
    tokens: Tensor
    latent: Tensor
    quantized: Tensor
    quantizer_loss: Tensor
    quantizer_losses: dict[str, Tensor]


class ImageTokenizer(Pretrained):
    """Images to grids of discrete tokens and back.

    Example:
        >>> tokenizer = ImageTokenizer.from_pretrained()      # the embedded default
        >>> tokens = tokenizer.encode(images)                 # (B, 3, H, W) in [-1, 1] -> (B, h, w, G) int64
        >>> images = tokenizer.decode(tokens)                 # -> (B, 3, H, W) in [-1, 1]

    Any height and width: what is no multiple of the factor f is padded (edges repeated) on the way in, so
    h = ceil(H / f), w = ceil(W / f); ``decode(tokens, size=(H, W))`` crops on the way out. Some published tokenizers
    take squares of one ``size`` only; and with the ``layout`` "sequence" N tokens have h = 1, w = N, G = 1.

    Attributes:
        config: a ``Config``: what it is made of; with the networks of this package a ``TokenizerConfig``.
        size: pixels a side of the square that the networks are made for; None where they take any image.
        length: tokens of an image, where they are a sequence.
    """

    encoder: AnyEncoder  # or a module of another project that does the same
    decoder: AnyDecoder

    def __init__(self, config: Config | None = None) -> None:
        config = config or TokenizerConfig()
        super().__init__(config)
        parts = config.build()
        self.encoder, self.quantizer, self.decoder = parts.encoder, parts.quantizer, parts.decoder
        self._factor, self.size, self.length = parts.factor, parts.size, parts.length
        if isinstance(config, TokenizerConfig):
            # With the quantizer's options resolved, so that a default that changes later changes no saved tokenizer.
            options = {k: v for k, v in self.quantizer.config.items() if k != "dim"}
            self.config = dataclasses.replace(config, quantizer=quantizer_options(**options))
        self._replays: Replays | None = None
        accelerate(self)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As in every module; False also keeps the quantizer's codebook from following the latents."""
        self.quantizer.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def plain(self) -> Self:
        """The same tokenizer for use alone, with the quantizer's `plain` form; it shares the networks."""
        quantizer = self.quantizer.plain()
        if quantizer is self.quantizer:
            return self
        plain = copy.copy(self)
        plain._modules = self._modules | {"quantizer": quantizer}
        options = {name: value for name, value in quantizer.config.items() if name != "dim"}
        assert isinstance(self.config, TokenizerConfig)
        plain.config = dataclasses.replace(self.config, quantizer=quantizer_options(**options))
        return plain

    @property
    def factor(self) -> int | None:
        """The down-sampling factor f; None where tokens are a sequence."""
        return self._factor

    @property
    def layout(self) -> Literal["grid", "sequence"]:
        """Whether a token stands for a place of the image, or takes part in all of it."""
        return "grid" if self._factor is not None else "sequence"

    @property
    def bits_per_pixel(self) -> float:
        """Bits per pixel: bits per position over f^2; for a sequence, those of all tokens over the image's pixels."""
        return self.bits_per_pixel_of(None)

    def bits_per_pixel_of(self, groups: int | None) -> float:
        """Bits per pixel of each position's first ``groups``; None is all of them.

        Raises:
            ValueError: no such number of groups, or fewer than all where they are not nested.
        """
        bits = self.quantizer.bits_of(groups)
        if self._factor is not None:
            return bits / self._factor**2
        assert self.length is not None
        assert self.size is not None
        return bits * self.length / self.size**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width (h, w) of the tokens that ``encode`` makes of an image of so many pixels.

        Raises:
            ValueError: the networks take squares of one size only, and this is another.
        """
        if self.size is not None and (height, width) != (self.size, self.size):
            raise ValueError(
                f"this tokenizer takes images of {self.size} x {self.size} pixels, not {height} x {width}: resize and "
                f"crop them first (--size {self.size} --crop center)"
            )
        if self._factor is None:
            return 1, self.length or 0
        return -(-height // self._factor), -(-width // self._factor)

    def image_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width in pixels of the image that ``decode`` makes of a grid of tokens.

        Raises:
            ValueError: the networks take one number of tokens only, and this is another.
        """
        if self.size is None:
            assert self._factor is not None
            return rows * self._factor, columns * self._factor
        expected = self.grid(self.size, self.size)
        if (rows, columns) != expected:
            raise ValueError(f"this tokenizer takes {expected[0]} x {expected[1]} tokens, not {rows} x {columns}")
        return self.size, self.size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def input_device(self, tile: int | None) -> torch.device:
        """Where ``encode`` and ``decode`` take their input with this ``tile``: tiles are cut from host memory."""
        return self.device if tile is None else torch.device("cpu")

    def optimize(self, dtype: torch.dtype | None = None, *, cuda_graphs: bool = True) -> ImageTokenizer:
        """Make ``encode`` and ``decode`` fast, in place, for inference only.

        Channels become innermost in memory, for which convolutions are fastest; on CUDA the stages between them then
        run as fused kernels (`gsqtok.acceleration.fused`), and small batches of a shape that comes again from CUDA
        graphs. Convolutions get weights of ``dtype``; normalisation (its statistics too), the encoder's last layer and
        the quantizer stay in float32. Half precision changes some tokens, those of latents near the border of two
        codewords: `benchmarks/throughput.py` prints the share.

        On a CPU `encode` and `decode` run the fastest exact way by themselves (`gsqtok.acceleration.cpu`); this sets
        the layout of the weights, which gains little, and half precision pays only where the processor has it
        (docs/performance.md).

        Call it on the device where the tokenizer is to run. Weights loaded later replace the optimized ones in place.

        Args:
            dtype: of the convolutions' weights; None chooses bfloat16 on CUDA and keeps float32 elsewhere.
            cuda_graphs: record graphs for small batches (CUDA only).

        Returns:
            The tokenizer itself, in evaluation mode.
        """
        cuda = self.device.type == "cuda"
        dtype = dtype or (torch.bfloat16 if cuda else torch.float32)
        for network in (self.encoder, self.decoder):
            if not isinstance(network, tiled.Network):  # of another project: no part of it stays in float32
                network.to(dtype)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last).to(dtype)
        if isinstance(self.encoder, AnyEncoder):
            self.encoder.conv_out.float()
        self._replays = Replays() if cuda and cuda_graphs else None
        return self.eval()

    def _run(
        self,
        network: AnyEncoder | AnyDecoder,
        x: Tensor,
        pixels: int,
        tile: int | None,
        progress: tiled.Progress | None,
    ) -> Tensor:
        if tile is not None:
            return tiled.run(network, x, tile, progress)
        if x.device.type == "cpu":
            return cpu.run(network, x, pixels)
        return network(x) if self._replays is None else self._replays(network, x, pixels)

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        *,
        groups: int | Tensor | Callable[[Tensor], Tensor] | None = None,
        tile: int | None = None,
        progress: tiled.Progress | None = None,
        check: bool = True,
    ) -> Tensor:
        """Images to tokens.

        Args:
            images: (B, 3, H, W) floating point in [-1, 1].
            groups: of nested groups how many to keep, the first of each position; None is all. One number for each
                position, (B, h, w) integers, leaves -1 in the place of the others; so does a function that is given the
                latents (B, D, h, w) and returns them, such as a `GroupAllocator`.
            tile: for images that do not fit the device: positions a side, of any layer, that are on it at a time
                (even, such as 512); feature maps are kept where ``images`` are, which may be another device. Latents
                are those of the whole image up to rounding (`gsqtok.acceleration.tiled`). None takes the whole at once.
            progress: with ``tile``, called after each with the number that is done and that of all; what it raises
                ends the call.
            check: look at values, for which the host waits for the device. False leaves the device to run behind, for
                images known to lie in [-1, 1]; where the encoder produces NaN or infinity tokens are then -1.

        Returns:
            (B, ceil(H / f), ceil(W / f), G) int64, each in [0, V); on the device of ``images``. With ``groups`` a
            number k: (..., k).

        Raises:
            ValueError: wrong rank or channels, an empty image, values outside [-1, 1] or not finite; an odd tile;
                fewer groups than 1 or more than G, or not G where they are not nested.
            TypeError: not floating point, or ``groups`` of another kind.
        """
        _check_images(images, check)
        grid = self.grid(images.shape[2], images.shape[3])
        if not len(images):
            none = torch.empty(0, *grid, dtype=torch.int64)
            tokens = self._tokens_kept(none if callable(groups) else groups, (0, *grid))
            return torch.empty(0, *grid, tokens, dtype=torch.int64, device=images.device)
        if not callable(groups):
            tokens = self._tokens_kept(groups, (len(images), *grid))
        latent = self.latent(images, tile=tile, progress=progress, check=False)
        if callable(groups):
            groups = groups(latent)
            tokens = self._tokens_kept(groups, (len(images), *grid))
        latent = latent.movedim(1, -1)
        indices = self._in_rows(lambda rows: self.quantizer(rows, check=check).indices, latent, tile)
        if check and (indices < 0).any():
            raise ValueError("the encoder produced NaN or infinity: its weights or the precision are not fit for use")
        if isinstance(groups, Tensor):
            left_out = torch.arange(tokens, device=indices.device) >= groups.to(indices.device).unsqueeze(-1)
            return indices.masked_fill(left_out, -1)
        return indices[..., :tokens]

    @torch.no_grad()
    def latent(
        self,
        images: Tensor,
        *,
        tile: int | None = None,
        progress: tiled.Progress | None = None,
        check: bool = True,
    ) -> Tensor:
        """Images to latents (B, D, ceil(H / f), ceil(W / f)), before quantization; arguments as for ``encode``."""
        _check_images(images, check)
        images = self._pad(images)
        return self._run(self.encoder, images, images[:, 0].numel(), tile, progress)

    def _tokens_kept(self, groups: int | Tensor | None, shape: tuple[int, ...]) -> int:
        """How many tokens of a position are handed over; refuses groups that there are not."""
        if not isinstance(groups, Tensor):
            try:
                return self.quantizer.tokens_of(groups)
            except TypeError as error:
                raise TypeError(
                    f"{error}; or (B, h, w) such numbers, or a function of the latents that gives them"
                ) from None
        if groups.shape != shape or groups.is_floating_point() or groups.dtype == torch.bool:
            raise ValueError(f"groups must be integers of shape {shape}, got {groups.dtype} {tuple(groups.shape)}")
        if groups.numel():
            for bound in torch.aminmax(groups):
                self.quantizer.tokens_of(int(bound))
        return self.quantizer.tokens_per_position

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor | NDArray[np.integer],
        *,
        size: tuple[int, int] | None = None,
        tile: int | None = None,
        progress: tiled.Progress | None = None,
    ) -> Tensor:
        """Tokens to images.

        Args:
            tokens: (B, h, w, G) integers in [0, V), of any integer type; an array of numpy, which is moved to where it
                is decoded, too. Of nested groups the first will do, (B, h, w, k), and -1 stands for one that is left
                out: the decoder gets what took its place in training.
            size: height and width in pixels to crop to; None keeps h * f and w * f.
            tile: as for ``encode``; feature maps are kept where ``tokens`` are.
            progress: as for ``encode``.

        Returns:
            (B, 3, H, W) in [-1, 1], on the device of ``tokens``.

        Raises:
            ValueError: wrong rank or G, a token out of range, a size that the grid does not have, an odd tile.
            TypeError: tokens that are not integers.
        """
        if isinstance(tokens, np.ndarray):
            tokens = torch.from_numpy(tokens).to(self.input_device(tile))
        if tokens.ndim != 4 or 0 in tokens.shape[1:3]:
            raise ValueError(f"tokens must have shape (B, h, w, G) with a position at least, got {tuple(tokens.shape)}")
        grid = (tokens.shape[1], tokens.shape[2])
        height, width = self.image_size(*grid)
        if size is not None and (len(size) != 2 or self.grid(*size) != grid):
            raise ValueError(f"a grid of {grid} tokens makes {height}x{width} pixels, not {tuple(size)}")
        quantized = self._in_rows(self.quantizer.decode, tokens, tile).movedim(-1, 1)
        quantized = self._told(quantized, lambda: (tokens.long() >= 0).sum(-1)).to(_dtype(self.decoder))
        if not len(tokens):
            tile = None  # nothing to cut
        images = self._run(self.decoder, quantized, len(tokens) * height * width, tile, progress).clamp(-1, 1)
        return images if size is None else images[:, :, : size[0], : size[1]]

    def _in_rows(self, function: Callable[[Tensor], Tensor], x: Tensor, tile: int | None) -> Tensor:
        """``function(x)`` of x (B, h, w, ...); with a tile, rows of no more positions go through it at a time."""
        if tile is None:
            return function(x)
        rows = x.split(max(1, tile**2 // x.shape[2]), 1)
        return torch.cat([function(part.to(self.device)).to(x.device) for part in rows], 1)

    def decode_latent(self, quantized: Tensor, counts: Tensor | None = None) -> Tensor:
        """Quantized latents (B, D, h, w) to images (B, 3, h * f, w * f), not clamped, with gradient.

        Args:
            quantized: what the decoder gets.
            counts: (B, h, w), how many nested groups it holds of each position, for a decoder that is told; None: all.
        """
        images: Tensor = self.decoder(self._told(quantized, lambda: counts).to(_dtype(self.decoder)))
        return images

    def _told(self, quantized: Tensor, counts: Callable[[], Tensor | None]) -> Tensor:
        """Quantized latents (B, D, h, w), and behind them the channels of the counts for a decoder that is told."""
        if not getattr(self.config, "decoder_counts", False):
            return quantized
        groups, known = self.quantizer.tokens_per_position, counts()
        if known is None:
            known = torch.full((len(quantized), *quantized.shape[2:]), groups, device=quantized.device)
        return torch.cat([quantized, count_channels(known, groups)], 1)

    def forward(self, images: Tensor, *, check: bool = True) -> TokenizerOutput:
        """Reconstruct images, with everything that training needs.

        Args:
            images: (B, 3, H, W) floating point in [-1, 1].
            check: as for ``encode``; a training loop that knows its images need not wait for the device.

        Raises:
            ValueError, TypeError: as ``encode``.
        """
        _check_images(images, check)
        latent = self.encoder(self._pad(images))
        out = self.quantizer(latent.movedim(1, -1), check=check)
        quantized = out.quantized.movedim(-1, 1)
        reconstruction = self.decode_latent(quantized, out.counts)[:, :, : images.shape[2], : images.shape[3]]
        return TokenizerOutput(reconstruction, out.indices, latent, quantized, out.loss, out.losses)

    def _pad(self, images: Tensor) -> Tensor:
        height, width = self.image_size(*self.grid(*images.shape[2:]))
        bottom, right = height - images.shape[2], width - images.shape[3]
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        return images.to(_dtype(self.encoder))

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights (as float32)."""
        return self._digest(lambda name: True)

    def tokens_fingerprint(self) -> str:
        """SHA-256 of all but the decoder: two tokenizers that agree make the same tokens, and read each other's.

        A decoder that was trained on a frozen encoder and quantizer has another `fingerprint`, and this one in common.
        """
        return self._digest(lambda name: not name.startswith("decoder"))

    def _digest(self, counts: Callable[[str], bool]) -> str:
        plain = self.plain()
        config = {name: value for name, value in plain.config.to_dict().items() if counts(name)}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, value in sorted(plain.weights().items()):
            if counts(name):
                digest.update(name.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _dtype(network: nn.Module) -> torch.dtype:
    """The type in which a network takes its input: that of its first weight."""
    return next(network.parameters()).dtype


def _check_images(images: Tensor, check: bool) -> None:
    """Refuse what are no images in [-1, 1]; their values are looked at only with ``check``."""
    scale = "8-bit images become so by images.float() / 127.5 - 1"
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}; torch.from_numpy makes one of an array")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [-1, 1], got {images.dtype}; {scale}")
    if 0 in images.shape[2:]:
        raise ValueError(f"images must hold at least one pixel, got {tuple(images.shape)}")
    if check and images.numel() and not images.is_meta and not torch.compiler.is_compiling():
        low, high = (float(x) for x in torch.aminmax(images))
        if not (low >= -1.001 and high <= 1.001):  # also refuses NaN
            raise ValueError(f"images must lie in [-1, 1], got [{low:g}, {high:g}]; {scale}")
        if 0 <= low < high and images[:, 0].numel() >= MANY_PIXELS:
            _warn_of_other_range()


@cache
def _warn_of_other_range() -> None:
    log.warning(
        "no image of the batch has a value below 0: images are expected in [-1, 1]; if yours lie in [0, 1], "
        "pass images * 2 - 1 (said once)"
    )
