"""Open-MAGVIT2 (Luo et al. 2024, arXiv 2409.04410), WeTok (arXiv 2508.05599) and BitDance, whose networks are ours.

They differ in how many tokens the bits of a position are cut into. Convolutions before a group norm have no bias there;
here it is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import CheckpointError, TokenizerConfig

_UNBIASED = r"encoder\.conv_in\.bias|(encoder|decoder)\.blocks\.\d+\.(conv1|conv2|skip)\.bias"


def _has_layout(source: Source) -> bool:
    return {"encoder.mid_block.0.norm1.weight", "decoder.adaptive.0.gamma.weight"} <= source.weights.keys()


def _is(name: str) -> Callable[[Source], bool]:
    """Whether a file is a project's: its configuration says so; where there is none, what each has published.

    Open-MAGVIT2's have 14 or 18 bits a position, the others' whole bytes; BitDance's lack the average of the weights.
    """

    def matches(source: Source) -> bool:
        if not _has_layout(source):
            return False
        if target := str(source.setting("class_path", "")).lower():
            return name in target
        if source.shape("encoder.conv_out.weight")[0] % 8:
            return name == "open_magvit2"
        return name == ("wetok" if source.has_average else "bitdance")

    return matches


def _config(source: Source, groups: int) -> TokenizerConfig:
    levels = source.count("encoder.down.{}.block.0.norm1.weight")
    blocks = source.count("encoder.down.0.block.{}.norm1.weight")
    middle = source.count("encoder.mid_block.{}.norm1.weight")
    channels, dim = source.shape("encoder.conv_in.weight")[0], source.shape("encoder.conv_out.weight")[0]
    widths = [source.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    if source.shape("decoder.conv_in.weight")[1] == 2 * dim:
        raise CheckpointError(
            f"{source.path}: its decoder draws noise (gan_decoder), so that its tokens make another image each time; "
            "that is not supported"
        )
    if not isinstance(groups, int) or groups < 1 or dim % groups:
        raise CheckpointError(f"{source.path}: groups={groups} does not divide its {dim} bits a position")
    if any(width % channels for width in widths):
        raise CheckpointError(f"{source.path}: its levels' channels {widths} are no multiples of {channels}")
    into, out = [channels, *widths[:-1]], [*widths[1:], widths[-1]]  # the levels before, as both networks run
    return TokenizerConfig(
        latent_dim=dim,
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        # Where channels change, our networks count the block that changes them apart.
        encoder_blocks=tuple(blocks - (a != b) for a, b in zip(into, widths, strict=True)),
        decoder_blocks=tuple(blocks - (a != b) for a, b in zip(out, widths, strict=True)),
        encoder_middle_blocks=middle,
        decoder_middle_blocks=middle,
        adaptive_norm=True,
        depth_to_space=True,
        norm_eps=1e-6,
        quantizer=quantizer_options("lfq", groups=groups),
    )


def _names(config: TokenizerConfig) -> Callable[[str], Sequence[str]]:
    levels = len(config.multipliers)
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    before = {"encoder": [config.channels, *widths[:-1]], "decoder": [*widths[1:], widths[-1]]}
    layers: dict[str, list[str]] = {"encoder": [], "decoder": []}
    middle = [f"mid_block.{i}" for i in range(config.encoder_middle_blocks)]
    for part, down in (("encoder", "down"), ("decoder", "up")):
        counts = config.blocks_per_level(f"{part}_blocks")
        blocks = [counts[i] + (before[part][i] != widths[i]) for i in range(levels)]
        if part == "decoder":
            layers[part] += [*middle, f"adaptive.{levels - 1}"]
        for i in range(levels) if part == "encoder" else reversed(range(levels)):
            layers[part] += [f"{down}.{i}.block.{j}" for j in range(blocks[i])]
            if part == "encoder" and i < levels - 1:
                layers[part].append(f"down.{i}.downsample")
            if part == "decoder" and i > 0:
                layers[part] += [f"up.{i}.upsample.conv1", f"adaptive.{i - 1}"]
    layers["encoder"] += middle

    def name_in_file(name: str) -> Sequence[str]:
        found = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)", name)
        if found is None:
            return [name]
        layer, weight = layers[found[1]][int(found[2])], found[3].replace("skip.", "nin_shortcut.")
        if layer.endswith(("downsample", "upsample.conv1")):
            weight = weight.removeprefix("conv.")
        return [f"{found[1]}.{layer}.{weight}"]

    return name_in_file


def _open_magvit2(source: Source) -> TokenizerConfig:
    return _config(source, 1)


def _wetok(source: Source, *, groups: int | None = None) -> TokenizerConfig:
    groups = groups or source.setting("num_codebooks")
    if groups is None:
        raise CheckpointError(
            f"{source.path}: its weights do not say how many tokens a position has (num_codebooks): put its "
            "config.yaml beside it, or add ?groups=NUMBER"
        )
    return _config(source, groups)


def _bitdance(source: Source, *, groups: int | None = None) -> TokenizerConfig:
    # Its generators take bits. Where it has tokens, in its ImageNet code, they are of 8 bits.
    return _config(source, groups or max(1, source.shape("encoder.conv_out.weight")[0] // 8))


for name, title, configure in (
    ("open_magvit2", "Open-MAGVIT2", _open_magvit2),
    ("wetok", "WeTok", _wetok),
    ("bitdance", "BitDance's tokenizer", _bitdance),
):
    register(
        Family(
            name=name,
            title=title,
            matches=_is(name),
            configure=configure,
            names=_names,
            filled=_UNBIASED,
        )
    )
