"""Tiny checkpoints of every family, written in its official names from random weights."""

import re

import torch
from torch import nn

from gsqtok.published import PublishedConfig, get_family
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig

TAMING = {
    "channels": 32,
    "widths": [32, 64, 32],
    "blocks": 1,
    "attention": [2],
    "latent_channels": 12,
    "dim": 8,
    "kernel": 1,
    "codebook_size": 16,
}
MASKGIT = {"channels": 32, "widths": [32, 64], "blocks": 1, "middle": 1, "dim": 6}
PIXELS = {"codewords": 8, "networks": {"widths": [32, 64], "blocks": 1, "middle": 1, "dim": 5}}
VIT = {"width": 64, "layers": 1}
TITOK = {"encoder": VIT | {"side": 4}, "decoder": VIT | {"side": 4}, "length": 6, "dim": 5, "codebook_size": 16}
BSQ = {"encoder": VIT | {"hidden": 96}, "decoder": VIT | {"hidden": 96, "ffn": 80}, "heads": 2, "side": 4, "patch": 4}


def magvit2(dim, groups=1):
    return TokenizerConfig(
        latent_dim=dim,
        channels=32,
        multipliers=(1, 2, 1),
        encoder_blocks=(2, 1, 1),
        decoder_blocks=(1, 1, 2),
        adaptive_norm=True,
        depth_to_space=True,
        norm_eps=1e-6,
        quantizer={"name": "lfq", "groups": groups},
    )


# Family, what its file is to be read as, and what must be said with the file's name.
CONFIGURATIONS = {
    "taming": ("taming", TAMING, ""),
    "taming without attention": ("taming", TAMING | {"attention": []}, ""),
    "llamagen": ("llamagen", TAMING, ""),
    "ibq": ("ibq", TAMING, ""),
    "var": ("var", TAMING | {"kernel": 3, "scales": [1, 3, 4], "convolutions": 3}, "?scales=1,3,4"),
    "open_magvit2": ("open_magvit2", magvit2(10), ""),
    "wetok": ("wetok", magvit2(16, 4), "?groups=4"),
    "bitdance": ("bitdance", magvit2(16, 2), ""),
    "maskgit": ("maskgit", MASKGIT | {"codebook_size": 16}, ""),
    "maskbit": ("maskbit", MASKGIT | {"codebook_size": None, "legacy": False}, ""),
    "maskbit, older": ("maskbit", MASKGIT | {"codebook_size": None, "legacy": True}, ""),
    "titok": ("titok", TITOK | {"patch": 2, "l2_norm": True, "pixels": PIXELS}, "?l2_norm=true"),
    "titok, pixels": ("titok", TITOK | {"patch": 4, "l2_norm": False, "pixels": None}, "?l2_norm=false"),
    "bsq_vit": ("bsq_vit", BSQ | {"dim": 6, "unit": True}, "?heads=2&zero_mean=false"),
}


def tokenizer(name):
    """A random one, in evaluation mode."""
    family, options, _ = CONFIGURATIONS[name]
    config = options if isinstance(options, TokenizerConfig) else PublishedConfig(family, options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ImageTokenizer(config).eval()
        for weight in made.parameters():
            nn.init.normal_(weight, 0.05, 0.2)
        for name, weight in made.named_parameters():
            if get_family(family).filled and re.fullmatch(get_family(family).filled, name):
                nn.init.zeros_(weight)
    return made


def official(name):
    """Its weights under the official names."""
    made = tokenizer(name)
    family, options, _ = CONFIGURATIONS[name]
    names, filled = get_family(family).names(options), get_family(family).filled
    weights = {}
    for ours, value in made.state_dict().items():
        if filled and re.fullmatch(filled, ours):
            continue
        theirs = names(ours)
        weights |= dict(zip(theirs, value.clone().chunk(len(theirs)), strict=True))
    if family == "var":
        weights["quantize.ema_vocab_hit_SV"] = torch.zeros(len(options["scales"]), 16)
    return weights
