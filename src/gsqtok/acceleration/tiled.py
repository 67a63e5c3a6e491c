"""The networks on images that do not fit the device: layer by layer, every layer tile by tile.

Tiles that each went through a whole network would not give its result: GroupNorm's statistics are of the whole
image, and a network's field of view is hundreds of pixels wide. Here a layer is finished for the whole image before
the next begins. Its feature map is kept where the image is (in host memory, for an image on the CPU); only a tile of
it, with one row and column more on each side, is on the device of the weights. Statistics are gathered while a map is
written. So the result is the network's own up to rounding, with nothing to blend, and the device's memory depends on
the tile alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    interleaved,
)
from gsqtok.networks.compact import FOLD, CompactBlock, CompactDecoder, CompactEncoder, Merge, RMSNorm, Split

Window = tuple[int, int, int, int]  # first and last + 1 row, first and last + 1 column
Network = AnyEncoder | AnyDecoder
Layer = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # gets the number of tiles that are done, and of all


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
        conv: nn.Conv2d,
        before: Layer | None = None,
        after: Callable[[Tensor, Window], Tensor] | None = None,
        into: Tensor | None = None,
        normed: bool = True,
    ) -> FeatureMap:
        """A convolution that keeps the size or halves it.

        Args:
            source: its input.
            conv: 3x3 or 1x1.
            before: what is computed from the source, value by value, on the way to the convolution.
            after: gets the result and its window.
            into: what the result is written to, as soon as it is known; None makes a new map.
            normed: whether a norm of the result follows.
        """
        x, out = source.values, None if into is None else FeatureMap(into)
        halo, stride = conv.padding[0], conv.stride[0]
        for window in self.windows(x):
            tile = self._read(x, window, halo, before)
            tile = F.conv2d(tile.to(conv.weight.dtype), conv.weight, conv.bias, conv.stride)
            if after is not None:
                tile = after(tile, window)
            out = out or self._new(x, tile, 1 / stride)
            out.write(tuple(n // stride for n in window), tile, normed)
        return out

    def upsample(self, block: NearestUpsample | DepthToSpaceUpsample | Split, source: FeatureMap) -> FeatureMap:
        """Twice the height and width."""
        x, conv, out = source.values, block.conv, None
        for window in self.windows(x, 2):
            tile = self._read(x, window, conv.padding[0])
            if isinstance(block, Split):
                tile = block(tile)
            elif isinstance(block, NearestUpsample):
                tile = F.interpolate(tile, scale_factor=2, mode="nearest")[:, :, 1:-1, 1:-1]
                tile = F.conv2d(tile, conv.weight, conv.bias)
            else:
                tile = interleaved(F.conv2d(tile, conv.weight, conv.bias))
            out = out or self._new(x, tile, 2)
            out.write(tuple(2 * n for n in window), tile, True)
        return out

    def residual(self, block: ResidualBlock | CompactBlock, source: FeatureMap) -> FeatureMap:
        """The block's result takes the place of its input where it has no more channels."""
        x = source.values
        h = self.convolve(source, block.conv1, _norm(block.norm1, source))
        skip = block.skip if isinstance(block, ResidualBlock) else nn.Identity()

        def add(tile: Tensor, window: Window) -> Tensor:
            return skip(self._read(x, window, 0)) + tile

        channels = block.conv2.out_channels
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
        norm = _norm(block.norm, source)
        weights, biases = block.qkv.weight, block.qkv.bias
        keys_values: Tensor | None = None
        for window in self.windows(x):
            tile = self._read(x, window, 0, norm).to(weights.dtype)
            tile = F.conv2d(tile, weights[channels:], biases[channels:])
            if keys_values is None:
                keys_values = tile.new_empty(*tile.shape[:2], *x.shape[2:])
            top, bottom, left, right = window
            keys_values[:, :, top:bottom, left:right] = tile
        keys, values = keys_values.flatten(2).transpose(1, 2).unsqueeze(1).chunk(2, dim=-1)
        # A backend that writes the scores down holds no more of them than a tile has values.
        rows = max(1, self.tile**2 * channels // keys.shape[2])
        out = FeatureMap(x)
        for window in self.windows(x):
            q = self._read(x, window, 0, norm).to(weights.dtype)
            q = F.conv2d(q, weights[:channels], biases[:channels])
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

    def _new(self, x: Tensor, tile: Tensor, scale: float) -> FeatureMap:
        """A map for tiles like this one, kept where x is."""
        height, width = (int(n * scale) for n in x.shape[2:])
        return FeatureMap(x.new_empty(len(x), tile.shape[1], height, width, dtype=tile.dtype))


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
        upsamples = isinstance(block, NearestUpsample | DepthToSpaceUpsample | Split)
        step = tile // 2 if upsamples else tile
        passes = 2 if isinstance(block, ResidualBlock | CompactBlock | Attention) else 1
        total += passes * math.ceil(height / step) * math.ceil(width / step)
        scale = 2 if upsamples else 0.5 if isinstance(block, Downsample | Merge) else 1
        height, width = int(height * scale), int(width * scale)
    return total


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
    """
    if not isinstance(network, Network):
        raise ValueError("tiles are for the networks of this package; this tokenizer has others: leave out tile")
    tiled = Tiled(tile, network.conv_in.weight.device)
    if progress is not None:
        done, total = itertools.count(1), count(network, tuple(x.shape[2:]), tile)
        tiled.done = lambda: progress(next(done), total)
    folded = F.pixel_unshuffle(x, FOLD) if isinstance(network, CompactEncoder) else x
    current = tiled.convolve(FeatureMap(folded), network.conv_in)
    for block in network.blocks:
        match block:
            case ResidualBlock() | CompactBlock():
                current = tiled.residual(block, current)
            case Downsample():
                current = tiled.convolve(current, block.conv)
            case Merge():
                current = tiled.convolve(current, block)
            case NearestUpsample() | DepthToSpaceUpsample() | Split():
                current = tiled.upsample(block, current)
            case AdaptiveGroupNorm():
                current = tiled.adapt(block, current, x)
            case Attention():
                current = tiled.attend(block, current)
            case _:
                raise TypeError(f"{type(block).__name__} cannot run in tiles")
    out = tiled.convolve(current, network.conv_out, _norm(network.norm_out, current), normed=False).values
    return F.pixel_shuffle(out, FOLD) if isinstance(network, CompactDecoder) else out
