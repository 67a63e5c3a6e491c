"""Training of a prior: what a run is made of, and the parts of its loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from gsqtok.data import EpochSampler
from gsqtok.data.sampling import epoch_seed
from gsqtok.data.workers import START_METHOD, end_with_parent
from gsqtok.generation.config import PriorConfig, TokenDataConfig
from gsqtok.generation.evaluate import predictability
from gsqtok.generation.prior import Prior, Vocabulary, codewords_of
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens import TokenDataset
from gsqtok.tokens.dataset import allocated, require
from gsqtok.training.config import RUNS_RESUMABLE
from gsqtok.training.ema import Average
from gsqtok.training.logs import RunLog
from gsqtok.training.optimizer import build_optimizer
from gsqtok.training.run import Run
from gsqtok.training.run_folder import RunFolder


def train(config: PriorConfig, *, resume: bool = False) -> Path:
    """Train a prior over tokens; returns the run's folder, which ``Prior.from_pretrained`` loads.

    Args:
        config: the run.
        resume: go on from the newest checkpoint of ``config.output``; starts anew where there is none.

    Raises:
        InterruptedRunError: a signal asked the run to stop, and it has saved.
        RunFolderError: the output folder holds something else, or a checkpoint could not be written.
        TrainingDivergedError: many steps in a row were not finite.
        ValueError, FileNotFoundError: the tokens cannot be read, are of grids of several sizes, or of another
            tokenizer than the validation tokens.
    """
    with RunFolder(config.output).held("gsqtok prior train"):
        return PriorTrainer(config, resume=resume).run()


class PriorTrainer(Run):
    """One run: what it is made of (``__init__``), and each part of what happens in order (`Run.run`)."""

    config: PriorConfig

    def __init__(self, config: PriorConfig, *, resume: bool = False) -> None:
        set_seed(config.seed)
        self.config = config
        folder = RunFolder(config.output)
        folder.check(config, resume, RUNS_RESUMABLE)
        super().__init__(folder, config.precision, config.trackers)
        if config.batch_size % self.accelerator.num_processes:
            raise ValueError(f"batch_size {config.batch_size} is no multiple of {self.accelerator.num_processes} ranks")
        self.tokens, self.validation = token_datasets(config.data)
        prior = initial_prior(config, self.tokens)
        self.prior = prior.to(self.accelerator.device)
        self.ema = Average(self.prior, config.ema_decay)
        optimizer = build_optimizer(self.prior, config.optimizer, self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(self.prior, optimizer)
        if isinstance(self.model, DistributedDataParallel):
            self.model.broadcast_buffers = False  # codewords, which never change
        digests = {"data.train": self.tokens.manifest["fingerprint"]}
        if resume:
            self.folder.check_data(digests, changed_data=False)
            self.resume()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.write_config(config)
            self.folder.write_data(digests)

    def measure(self, step: int, last: bool, run_log: RunLog) -> None:
        """Measure on the held-out tokens, where it is due."""
        if self.validation is not None and (step % self.config.validate_every == 0 or last):
            run_log.measured(step, self.validate(self.validation))

    def step(self, step: int, batches: Iterator[dict[str, Any]]) -> dict[str, Tensor]:
        """One optimiser step; the mean loss in nats a token, and the gradient's norm."""
        config, accelerator, batch = self.config, self.accelerator, next(batches)
        tokens = batch["tokens"].to(accelerator.device, non_blocking=True)
        draw = torch.Generator(accelerator.device)  # of the step alone, so that a resumed run draws the same
        draw.manual_seed(epoch_seed(config.seed + 1, step))
        labels = self.labels(batch, draw)
        # of all ranks' images, however many ranks there are: each takes its own
        every, own = tokens.new_empty(config.batch_size, *tokens.shape[1:]), self.own_part()
        hidden = hide(every, draw) if self.prior.masked else None
        chosen = choose(every, config.loss_share, draw)
        number = _predicted(every, hidden, chosen)
        with accelerator.autocast():
            parts = (None if part is None else part[own] for part in (hidden, chosen))
            losses = self.model(tokens, labels, *parts)
        loss = losses.sum() / number * accelerator.num_processes  # whose mean over the ranks is that of all tokens
        accelerator.backward(loss)
        means = {"total": loss.detach()}
        self.average(self.take_step(step, self.prior, means), self.prior)
        self.optimizer.zero_grad(set_to_none=True)
        return means

    def labels(self, batch: dict[str, Any], draw: torch.Generator) -> Tensor | None:
        """Classes of a batch, some of them hidden."""
        if self.config.data.label is None:
            return None
        any_class = self.prior.vocabulary.classes
        labels = torch.as_tensor(batch[self.config.data.label]).to(self.accelerator.device)
        dropped = torch.rand(self.config.batch_size, device=labels.device, generator=draw) < self.config.label_dropout
        return labels.masked_fill(dropped[self.own_part()] | (labels < 0), any_class)

    def own_part(self) -> slice:
        """This rank's images among those of a global batch."""
        size = self.config.batch_size // self.accelerator.num_processes
        return slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)

    def summary(self, step: int, window: dict[str, list[Tensor]]) -> dict[str, float]:
        """Give the metrics of a log line, with the loss in bits."""
        metrics = super().summary(step, window)
        return metrics | {"bits_per_token": metrics["loss/total"] / math.log(2)}

    def batches(self) -> Iterator[dict[str, Any]]:
        """This rank's share of each global batch, from the first step that is not done yet to the last."""
        config, accelerator = self.config, self.accelerator
        sampler = EpochSampler(
            len(self.tokens),
            config.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            seed=config.seed,
            start_step=self.start,
        )
        workers = config.data.workers
        loader = DataLoader(
            self.tokens,
            batch_sampler=sampler,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=end_with_parent if workers else None,
            multiprocessing_context=START_METHOD if workers else None,
            generator=torch.Generator(),  # else the loader would draw from the state that a checkpoint keeps
        )
        return islice(loader, config.steps - self.start)

    def validate(self, tokens: TokenDataset) -> dict[str, float]:
        """Measure the averaged weights on held-out tokens."""
        found = predictability(self.averaged, tokens, label=self.config.data.label)
        shown = ("bits_per_token", "bits_per_position", "bits_per_pixel", "entropy_bits_per_token")
        return {f"validation/{name}": found[name] for name in shown if name in found}

    def publish(self) -> None:
        """Write the averaged prior."""
        self.averaged.save_pretrained(self.folder.prior)

    @property
    def averaged(self) -> Prior:
        """The prior with averaged weights."""
        averaged = self.ema.module.eval()
        assert isinstance(averaged, Prior)
        return averaged

    def describe(self) -> str:
        """The run in one line."""
        vocabulary, model = self.prior.vocabulary, self.config.model
        millions = sum(p.numel() for p in self.prior.parameters()) / 1e6
        classes = f", {vocabulary.classes} classes" if vocabulary.classes else ""
        return (
            f"{self.folder.path}: {millions:.1f}M parameters, head {model.head}, grids of {vocabulary.grid[0]} x "
            f"{vocabulary.grid[1]} x {vocabulary.groups} tokens of {vocabulary.codebook_size:,}{classes}, on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type}, {self.config.precision}"
            + (f"; goes on after step {self.start}" if self.start else "")
        )


def hide(tokens: Tensor, draw: torch.Generator) -> Tensor:
    """Which tokens (B, h, w, G) of each image the masked head must predict: a share by MaskGIT's cosine schedule."""
    share = (torch.rand(len(tokens), 1, 1, 1, device=tokens.device, generator=draw) * (math.pi / 2)).cos()
    order = torch.rand(tokens.shape, device=tokens.device, generator=draw)
    return (order < share) | (order == order.amin((1, 2, 3), keepdim=True))  # one at least


def choose(tokens: Tensor, share: float, draw: torch.Generator) -> Tensor | None:
    """The positions (B, n) of tokens (B, h, w, G) whose losses are computed; None: all."""
    if share == 1:
        return None
    number = tokens[0, ..., 0].numel()
    order = torch.rand(len(tokens), number, device=tokens.device, generator=draw).argsort(1)
    return order[:, : max(1, round(share * number))]


def _predicted(tokens: Tensor, hidden: Tensor | None, chosen: Tensor | None) -> Tensor | int:
    """How many of the tokens (B, h, w, G) are in the loss: those that are hidden, at chosen positions."""
    if hidden is None:
        return tokens.numel() if chosen is None else chosen.numel() * tokens.shape[-1]
    of_positions = hidden.flatten(1, 2).sum(-1)
    return (of_positions if chosen is None else of_positions.gather(1, chosen)).sum().clamp_min(1)


def token_datasets(config: TokenDataConfig) -> tuple[TokenDataset, TokenDataset | None]:
    """The training tokens, and the validation tokens if there are any.

    Raises:
        ValueError: no training tokens are named, the two are of different tokenizers, or a column is missing.
        FileNotFoundError: no such folder.
    """
    if not config.train:
        raise ValueError("no tokens to train on: name the folder of a token data set with --data.train")
    columns = () if config.label is None else (config.label,)
    tokens = TokenDataset(config.train, columns=columns)
    if not config.validation:
        return tokens, None
    validation = TokenDataset(config.validation, columns=columns)
    if validation.manifest["tokenizer"] != tokens.manifest["tokenizer"]:
        raise ValueError(f"{config.validation} and {config.train} are tokens of different tokenizers")
    return tokens, validation


def vocabulary_of(tokens: TokenDataset, label: str | None) -> Vocabulary:
    """What a prior must know of its tokens.

    Raises:
        ValueError: no tokens, grids of several sizes, or classes that are no numbers.
    """
    manifest = tokens.manifest
    if allocated(manifest):
        raise ValueError(
            f"{tokens.folder} keeps another number of groups at each position, which a prior does not know: tokenize "
            "with --groups instead of --mean-groups"
        )
    if not len(tokens):
        raise ValueError(f"{tokens.folder} holds no tokens")
    grids = {(int(grid[0]), int(grid[1])) for grid in tokens.values("grid")}
    if len(grids) > 1:
        raise ValueError(
            f"{tokens.folder} has grids of {len(grids)} sizes: tokenize with --size and --crop center, which makes "
            "them alike"
        )
    classes = 0
    if label is not None:
        named = tokens.values(label)
        if not all(isinstance(value, int) for value in named):
            raise ValueError(f"{tokens.folder}: the column '{label}' does not hold whole numbers")
        classes = max(named) + 1
        if classes < 1:
            raise ValueError(f"{tokens.folder}: the column '{label}' names no class; leave data.label out")
    return Vocabulary(manifest["tokenizer"], manifest["groups"], manifest["codebook_size"], grids.pop(), classes)


def initial_prior(config: PriorConfig, tokens: TokenDataset) -> Prior:
    """The prior with random weights.

    Raises:
        ValueError: see `vocabulary_of` and `codewords_of`; or another tokenizer than that of the tokens.
    """
    codewords = None
    if config.model.embedding == "codewords":
        named = config.data.tokenizer
        tokenizer = tokens.tokenizer() if named is None else ImageTokenizer.from_pretrained(named)
        require(tokens.manifest, tokenizer)
        codewords = codewords_of(tokenizer)
    return Prior(config.model, vocabulary_of(tokens, config.data.label), codewords)
