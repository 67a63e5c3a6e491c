"""The tokenizer that a run starts with: random weights, or those of another one."""

from __future__ import annotations

import dataclasses

from gsqtok.networks.initialization import initialize_kaiming
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.training.config import TrainConfig


def initial_tokenizer(config: TrainConfig) -> ImageTokenizer:
    """Build or load the run's tokenizer, in training mode; what ``config.freeze`` names is in evaluation mode instead.

    A loaded tokenizer brings its own configuration. ``config.model`` is then left at its default, or says the same.

    Raises:
        ValueError: ``config.model`` describes another tokenizer; the first option that differs is named.
        FileNotFoundError, CheckpointError: see ``ImageTokenizer.from_pretrained``.
    """
    if config.initialize_from is None:
        tokenizer = ImageTokenizer(config.model)
        if "initialization" in config.official:
            initialize_kaiming(tokenizer)
        return tokenizer
    tokenizer = ImageTokenizer.from_pretrained(config.initialize_from).train()
    if not isinstance(tokenizer.config, TokenizerConfig):
        raise ValueError(
            f"{config.initialize_from} has the networks of {tokenizer.config.summary()}, which are not trained here"
        )
    if config.model != TokenizerConfig():
        wanted, loaded = ImageTokenizer(config.model).config, tokenizer.config  # both with every option resolved
        for field in dataclasses.fields(TokenizerConfig):
            ours, theirs = getattr(wanted, field.name), getattr(loaded, field.name)
            if ours != theirs:
                raise ValueError(
                    f"{config.initialize_from} has {field.name} = {theirs}, the recipe's model has {ours}: leave out "
                    "model, which is then the loaded one"
                )
    if config.freeze == "encoder":
        for part in (tokenizer.encoder, tokenizer.quantizer):
            part.requires_grad_(False).eval()
    return tokenizer
