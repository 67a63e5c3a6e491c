"""The networks on images that do not fit the device: layer by layer, every layer tile by tile.

Tiles that each went through a whole network would not give its result: GroupNorm's statistics are of the whole
image, and a network's field of view is hundreds of pixels wide. Here a layer is finished for the whole image before
the next begins. Its feature map is kept where the image is (in host memory, for an image on the CPU); only a tile of
it, with one row and column more on each side, is on the device of the weights. Statistics are gathered while a map is
written. So the result is the network's own up to rounding, with nothing to blend, and the device's memory depends on
the tile alone.

Convolutions are called, so that what has been put around them (an adapter, `weight_norm`, a hook) has its effect, a
tile at a time. Norms are not: one that is hooked or unknown is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.acceleration.backend import unchanged
from gsqtok.acceleration.recompute import RecomputedBlock
from gsqtok.networks import AnyDecoder, AnyEncoder
from gsqtok.networks.blocks import (
    NORM_GROUPS,
    AdaptiveGroupNorm,
    Attention,
    DepthToSpaceUpsample,
    Downsample,
    GroupNorm,
    NearestUpsample,
    ResidualBlock,
)
from gsqtok.networks.compact import FOLD, CompactBlock, CompactDecoder, CompactEncoder, Merge, RMSNorm, Split

Window = tuple[int, ...]  # first and last + 1 row, first and last + 1 column
Network = AnyEncoder | AnyDecoder
Layer = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # gets the number of tiles that are done, and of all
_CALLED = (Downsample, Merge, NearestUpsample, DepthToSpaceUpsample, Split, RMSNorm)
_TAKEN_APART = (ResidualBlock, RecomputedBlock, CompactBlock, Attention, AdaptiveGroupNorm, GroupNorm, nn.GroupNorm)


class FeatureMap:
    """A feature map (B, C, H, W) that is written by windows, and the statistics that a norm of it needs."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.count = 0
        self.mean = self.squares = torch.zeros(len(values), NORM_GROUPS, dtype=torch.float64)

    def write(self, window: Window, tile: Tensor, normed: bool) -> None:
        """Store a tile; where a norm will follow, merge its mean and squared distances from it into the map's."""
        top, bottom, left, right = window
        tile = tile.to(self.values.dtype)
        self.values[:, :, top:bottom, left:right] = tile
        if not normed:
            return
        groups = tile.to(torch.promote_types(tile.dtype, torch.float32)).reshape(len(tile), NORM_GROUPS, -1)
        variance, mean = (x.cpu().double() for x in torch.var_mean(groups, 2, correction=0))
        new, old = groups.shape[2], self.count
        self.count = old + new
        distance = mean - self.mean
        self.mean = self.mean + distance * (new / self.count)
        self.squares = self.squares + variance * new + distance.square() * (old * new / self.count)

    def factors(self, eps: float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied by and gets added by a norm with weight and bias (C,) or (B, C): (B, C)."""
        inverse = (self.squares / self.count + eps).rsqrt()
        width = self.values.shape[1] // NORM_GROUPS
        inverse, mean = (x.repeat_interleave(width, 1) for x in (inverse, self.mean))
        scale = weight.detach().cpu().double() * inverse
        offset = bias.detach().cpu().double() - mean * scale
        return scale.to(weight.device, weight.dtype), offset.to(weight.device, weight.dtype)


def check_tile(tile: int) -> None:
    """Raises ValueError for a tile that is not a positive even number."""
    if tile < 2 or tile % 2:
        raise ValueError(f"tile must be an even number of pixels, got {tile}")


class Tiled:
    """Runs blocks on feature maps.

    Args:
        tile: positions a side of what is computed at a time, even.
        device: where it is computed.

    Attributes:
        done: called after each tile.
    """

    def __init__(self, tile: int, device: torch.device) -> None:
        check_tile(tile)
        self.tile = tile
        self.device = device
        self.done: Callable[[], None] = lambda: None

    def windows(self, x: Tensor, scale: int = 1) -> Iterator[Window]:
        """Windows of x of at most ``tile / scale`` positions a side."""
        step = self.tile // scale
        height, width = x.shape[2:]
        for top in range(0, height, step):
            for left in range(0, width, step):
                yield top, min(top + step, height), left, min(left + step, width)
                self.done()

    def convolve(
        self,
        source: FeatureMap,
        conv: nn.Module,
        before: Layer | None = None,
        after: Callable[[Tensor, Window], Tensor] | None = None,
        into: Tensor | None = None,
        *,
        scale: float = 1,
        normed: bool = True,
    ) -> FeatureMap:
        """A convolution of at most 3x3 with its padding, or an up-sampling by one.

        Args:
            source: its input.
            conv: called with tiles that are larger by what it pads: the border of its result is dropped.
            before: what is computed from the source, value by value, on the way to the convolution.
            after: gets the result and its window.
            into: what the result is written to, as soon as it is known; None makes a new map.
            scale: of height and width, 1/2, 1 or 2.
            normed: whether a norm of the result follows.
        """
        x, out = source.values, None if into is None else FeatureMap(into)
        halo, border = max(1, int(1 / scale)), max(1, int(scale))
        for window in self.windows(x, border):
            tile = conv(self._read(x, window, halo, before).to(_dtype(conv)))[:, :, border:-border, border:-border]
            if after is not None:
                tile = after(tile, window)
            if out is None:  # kept where x is
                height, width = (int(n * scale) for n in x.shape[2:])
                out = FeatureMap(x.new_empty(len(x), tile.shape[1], height, width, dtype=tile.dtype))
            out.write(tuple(int(n * scale) for n in window), tile, normed)
        assert out is not None  # no map is empty
        return out

    def residual(self, block: ResidualBlock | CompactBlock, source: FeatureMap) -> FeatureMap:
        """The block's result takes the place of its input where it has no more channels."""
        x = source.values
        h = self.convolve(source, block.conv1, _norm(block.norm1, source))
        skip = block.skip if isinstance(block, ResidualBlock) else nn.Identity()

        def add(tile: Tensor, window: Window) -> Tensor:
            return skip(self._read(x, window, 0)) + tile

        channels = h.values.shape[1]
        into = x[:, :channels] if channels <= x.shape[1] else None
        return self.convolve(h, block.conv2, _norm(block.norm2, h), add, into)

    def adapt(self, block: AdaptiveGroupNorm, source: FeatureMap, quantized: Tensor) -> FeatureMap:
        """Normalised in place; the latent's statistics are computed where the latent is."""
        out = FeatureMap(source.values)
        layer = _affine(*source.factors(block.norm.eps, *block.factors(quantized)))
        for window in self.windows(source.values):
            out.write(window, layer(self._read(source.values, window, 0)), True)
        return out

    def attend(self, block: Attention, source: FeatureMap) -> FeatureMap:
        """Queries by tiles; keys and values of all positions are on the device."""
        x, channels = source.values, source.values.shape[1]
        norm, dtype = _norm(block.norm, source), _dtype(block.qkv)
        keys_values = torch.empty(len(x), 2 * channels, *x.shape[2:], dtype=dtype, device=self.device)
        for window in self.windows(x):
            top, bottom, left, right = window
            tile = block.qkv(self._read(x, window, 0, norm).to(dtype))
            keys_values[:, :, top:bottom, left:right] = tile[:, channels:]
        keys, values = keys_values.flatten(2).transpose(1, 2).unsqueeze(1).chunk(2, dim=-1)
        # A backend that writes the scores down holds no more of them than a tile has values.
        rows = max(1, self.tile**2 * channels // keys.shape[2])
        out = FeatureMap(x)
        for window in self.windows(x):
            q = block.qkv(self._read(x, window, 0, norm).to(dtype))[:, :channels].to(dtype)
            shape = q.shape[2:]
            q = q.flatten(2).transpose(1, 2).unsqueeze(1)
            h = torch.cat([F.scaled_dot_product_attention(part, keys, values) for part in q.split(rows, 2)], 2)
            h = block.proj(h.squeeze(1).transpose(1, 2).unflatten(2, shape))
            out.write(window, self._read(x, window, 0) + h, True)
        return out

    def _read(self, x: Tensor, window: Window, halo: int, before: Layer | None = None) -> Tensor:
        """A window and its surroundings, zeros outside the map: those are not normalised, as in a convolution."""
        height, width = x.shape[2:]
        top, bottom, left, right = window
        above, below = min(halo, top), min(halo, height - bottom)
        west, east = min(halo, left), min(halo, width - right)
        tile = x[:, :, top - above : bottom + below, left - west : right + east].to(self.device)
        if before is not None:
            tile = before(tile)
        missing = (halo - west, halo - east, halo - above, halo - below)
        return F.pad(tile, missing) if any(missing) else tile


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _affine(scale: Tensor, offset: Tensor, silu: bool = False) -> Layer:
    def layer(x: Tensor) -> Tensor:
        y = torch.addcmul(offset[:, :, None, None], x.to(scale.dtype), scale[:, :, None, None])
        return F.silu(y, inplace=True) if silu else y

    return layer


def _norm(norm: GroupNorm | RMSNorm, source: FeatureMap) -> Layer:
    if isinstance(norm, RMSNorm):  # which sees one position alone
        return norm
    return _affine(*source.factors(norm.eps, norm.weight, norm.bias), norm.silu)


def count(network: Network, size: tuple[int, int], tile: int) -> int:
    """How many tiles ``run`` computes, over all layers, for an input of height and width ``size``."""
    total, (height, width) = 0, size
    if isinstance(network, CompactEncoder):
        height, width = height // FOLD, width // FOLD
    for block in (network.conv_in, *network.blocks, network.conv_out):
        scale = _scale(block)
        step = tile // max(1, int(scale))
        passes = 2 if isinstance(block, ResidualBlock | CompactBlock | Attention) else 1
        total += passes * math.ceil(height / step) * math.ceil(width / step)
        height, width = int(height * scale), int(width * scale)
    return total


def _scale(block: nn.Module) -> float:
    if isinstance(block, NearestUpsample | DepthToSpaceUpsample | Split):
        return 2
    return 0.5 if isinstance(block, Downsample | Merge) else 1


def _check(network: Network) -> None:
    """Raises TypeError for what cannot run in tiles."""
    for name, module in network.named_modules():
        place, kind = name.split("."), type(module)
        fits = unchanged(module) if kind in _TAKEN_APART else isinstance(module, _CALLED)
        if (place[-1].startswith("norm") or (place[0] == "blocks" and len(place) == 2)) and not fits:
            raise TypeError(f"{kind.__name__} ({name}) cannot run in tiles: it has hooks, or is not of gsqtok.networks")
        if isinstance(module, nn.Conv2d) and (max(module.kernel_size) > 3 or module.padding_mode != "zeros"):
            raise TypeError(f"{module} ({name}) cannot run in tiles: it looks further than a tile's border")


@torch.no_grad()
def run(network: Network, x: Tensor, tile: int, progress: Progress | None = None) -> Tensor:
    """``network(x)`` without gradient, in tiles.

    Two feature maps at a time are kept where x is, three where a block has fewer channels than its input.

    Args:
        network: an encoder or a decoder.
        x: its input, on any device: there its feature maps and the result are kept.
        tile: positions a side of what is on the network's device at a time, even.
        progress: called after each tile of each layer.

    Returns:
        What the network returns, up to rounding, on x's device.

    Raises:
        ValueError: ``tile`` is not a positive even number; a network of another project.
        TypeError: a block or a norm that is not known here, or has hooks.
    """
    if not isinstance(network, Network):
        raise ValueError("tiles are for the networks of this package; this tokenizer has others: leave out tile")
    _check(network)
    tiled = Tiled(tile, next(network.parameters()).device)
    if progress is not None:
        done, total = itertools.count(1), count(network, (x.shape[2], x.shape[3]), tile)
        tiled.done = lambda: progress(next(done), total)
    folded = F.pixel_unshuffle(x, FOLD) if isinstance(network, CompactEncoder) else x
    current = tiled.convolve(FeatureMap(folded), network.conv_in)
    for block in network.blocks:
        match block:
            case ResidualBlock() | CompactBlock():
                current = tiled.residual(block, current)
            case AdaptiveGroupNorm():
                current = tiled.adapt(block, current, x)
            case Attention():
                current = tiled.attend(block, current)
            case _:
                current = tiled.convolve(current, block, scale=_scale(block))
    out = tiled.convolve(current, network.conv_out, _norm(network.norm_out, current), normed=False).values
    return F.pixel_shuffle(out, FOLD) if isinstance(network, CompactDecoder) else out
