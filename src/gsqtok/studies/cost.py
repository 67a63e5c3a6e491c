"""What a tokenizer's tokens cost under one small prior, the same for all tokenizers of a study."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gsqtok.generation.config import PriorConfig, TokenDataConfig
from gsqtok.generation.prior import PriorModelConfig
from gsqtok.io import atomic_write, read_json
from gsqtok.training import recipes
from gsqtok.training.config import DataConfig
from gsqtok.training.run_folder import as_plain


def prior_config(scale: str, size: int, steps: int) -> PriorConfig:
    """The yardstick: the recipe prior-64 (10M parameters) up to 64 pixels, prior-256 above; tiny at the smoke scale.

    Args:
        scale: name of the study's scale.
        size: of the images, in pixels a side.
        steps: of its training.
    """
    values, plain = recipes.load("prior-64" if size <= 64 else "prior-256"), PriorConfig()
    model, optimizer = replace(plain.model, **values.pop("model")), replace(plain.optimizer, **values.pop("optimizer"))
    config = replace(plain, **values, model=model, optimizer=optimizer)
    if scale == "smoke":
        tiny = PriorModelConfig(width=64, layers=1, head_layers=1)
        config = replace(config, model=tiny, batch_size=4, precision="float32", ema_decay=0.5)
    return replace(config, steps=steps, validate_every=10**9, trackers=())


@dataclass(frozen=True)
class TokenCost:
    """A prior's training on the tokens of one run's tokenizer, and what it says of held-out tokens.

    Attributes:
        folder: of the run; ``prior-DIGEST.json`` is left there, all else is removed at the end.
        data: images of the run.
        config: of the prior; see `prior_config`.
    """

    folder: Path
    data: DataConfig
    config: PriorConfig

    @property
    def file(self) -> Path:
        """Where the result is, by what the prior is."""
        plain = {name: value for name, value in as_plain(self.config).items() if name not in ("output", "data")}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"prior-{digest}.json"

    def read(self) -> dict[str, float] | None:
        """The metrics; None while there are none, or where the file is damaged."""
        try:
            return {str(name): float(value) for name, value in read_json(self.file)["metrics"].items()}
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def measure(self) -> dict[str, float]:
        """Tokenize, train the prior and measure; goes on where an earlier attempt stopped.

        Returns:
            ``bits_per_pixel_prior``, ``bits_per_token_prior``, ``prior_seconds`` and ``prior_steps``; nothing for a
            prior that diverged.
        """
        work = self.folder / "prior"
        with _cache(work / "cache"):
            metrics = self._measured(work)
        with atomic_write(self.file) as temporary:
            content = {"metrics": metrics, "prior": as_plain(self.config.model), "steps": self.config.steps}
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        shutil.rmtree(work, ignore_errors=True)
        return metrics

    def _measured(self, work: Path) -> dict[str, float]:
        import torch

        from gsqtok.generation.evaluate import predictability
        from gsqtok.generation.prior import Prior
        from gsqtok.generation.train import train
        from gsqtok.tokens import TokenDataset
        from gsqtok.training.guards import TrainingDivergedError

        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = self.folder / "training"
        train_tokens, held_out = (self._tokenized(part, work, device) for part in ("train", "validation"))
        data = TokenDataConfig(str(train_tokens), str(held_out), None, str(tokenizer), self.data.workers)
        config = replace(self.config, output=str(work / "run"), data=data)
        began = time.perf_counter()
        try:
            train(config, resume=(work / "run" / "config.yaml").exists())
        except TrainingDivergedError:
            return {}
        seconds = time.perf_counter() - began
        prior = Prior.from_pretrained(work / "run").to(device)
        found = predictability(prior, TokenDataset(held_out), batch_size=100, autocast=device == "cuda")
        bits = {f"{name}_prior": found[name] for name in ("bits_per_pixel", "bits_per_token")}
        return bits | {"prior_seconds": seconds, "prior_steps": float(self.config.steps)}

    def _tokenized(self, part: str, work: Path, device: str) -> Path:
        """The token data set of the training images, each mirrored, too, or of the validation images."""
        from gsqtok.tokenizer import ImageTokenizer
        from gsqtok.tokens.crops import Crops
        from gsqtok.tokens.run import RunOptions, tokenize

        crops = Crops(self.data.size, "center", None, part == "train")
        split, sources = getattr(self.data, f"{part}_split"), getattr(self.data, part)
        options = RunOptions(crops=crops, split=split, columns=(), workers=self.data.workers)
        tokenizer = ImageTokenizer.from_pretrained(self.folder / "training").to(device)
        tokenize(tokenizer, sources, work / part, options)
        return work / part


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Inside, token data sets are unpacked there, and not where those of the user are."""
    before = os.environ.get("GSQTOK_CACHE")
    os.environ["GSQTOK_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GSQTOK_CACHE"]
        else:
            os.environ["GSQTOK_CACHE"] = before
