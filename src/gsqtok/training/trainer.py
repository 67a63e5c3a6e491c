"""The training loop, from top to bottom."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor
from torch.optim import AdamW

from gsqtok.data import ImageTransform, RejectLog, train_loader
from gsqtok.evaluation import evaluate
from gsqtok.evaluation.metrics import usage_of
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training.config import OptimizerConfig, TrainConfig
from gsqtok.training.ema import averaged
from gsqtok.training.guards import FiniteGuard
from gsqtok.training.logs import RunLog
from gsqtok.training.objective import Objective
from gsqtok.training.pictures import fixed_pictures, training_pictures, validation_pictures
from gsqtok.training.run_folder import RunFolder, step_of

log = logging.getLogger("gsqtok.training")
# In a checkpoint, what accelerate's own files do not hold:
EXTRA = "extra.pt"
USAGE = "usage-{}.pt"  # of each rank


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train a tokenizer; returns the run's folder, which ``ImageTokenizer.from_pretrained`` loads.

    Works in one process or in many (``torchrun``, ``accelerate launch``): the same seed gives the same pictures to the
    same global batch whatever the number of ranks.

    Args:
        config: the run.
        resume: go on from the newest checkpoint of ``config.output``; starts anew where there is none.

    Raises:
        RunFolderError: the output folder holds something else, or a checkpoint could not be written.
        TrainingDivergedError: many steps in a row were not finite.
        ValueError, FileNotFoundError: a source, or the weights of the perceptual term, cannot be read.
    """
    return Trainer(config, resume).run()


class Trainer:
    """One run: what it is made of (``__init__``), what happens in order (``run``), and each of its parts."""

    def __init__(self, config: TrainConfig, resume: bool = False) -> None:
        set_seed(config.seed)
        tokenizer = ImageTokenizer(config.model)
        self.config = config = dataclasses.replace(config, model=tokenizer.config)  # every option resolved
        self.folder = RunFolder(config.output)
        self.folder.check(config, resume)
        AcceleratorState._reset_state()  # else a process could train in one precision only
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            log_with="tensorboard",
            project_config=ProjectConfiguration(
                project_dir=str(self.folder.path), logging_dir=str(self.folder.tensorboard)
            ),
        )
        device, ranks = self.accelerator.device, self.accelerator.num_processes
        if config.batch_size % (config.gradient_accumulation * ranks):
            raise ValueError(
                f"batch_size {config.batch_size} is no multiple of gradient_accumulation "
                f"{config.gradient_accumulation} times {ranks} ranks"
            )
        self.objective = Objective(config.loss).to(device)
        self.pictures, self.transform = training_pictures(config.data)
        self.validation = validation_pictures(config.data)
        self.fixed = fixed_pictures(config.data, self.pictures if self.validation is None else self.validation)

        self.ema = averaged(tokenizer.to(device), config.ema_decay)
        if config.compile:  # in place, so that the weights keep their names; after the copy, which stays eager
            tokenizer.encoder.compile()
            tokenizer.decoder.compile()
        self.tokenizer = tokenizer
        self.model, self.optimizer = self.accelerator.prepare(
            tokenizer,
            AdamW(
                tokenizer.parameters(),
                lr=config.optimizer.learning_rate,
                betas=config.optimizer.betas,
                eps=config.optimizer.eps,
                weight_decay=config.optimizer.weight_decay,
                fused=device.type == "cuda",
            ),
        )
        self.usage = usage_of(tokenizer.quantizer)
        if self.usage is not None:
            self.usage.persistent(True)  # part of a checkpoint: figures over an epoch outlive a restart
            self.usage.to(device)
        self.guard, self.rejects = FiniteGuard(), RejectLog()
        self.start = 0
        if resume and (checkpoint := self.folder.latest()):
            self.load(checkpoint)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.write_config(config)

    def run(self) -> Path:
        """Train from the start, or from the checkpoint, to the last step."""
        config, accelerator = self.config, self.accelerator
        usage_every = self.steps_of_usage()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        summed = 0
        with RunLog(self.folder, accelerator, self.start, config.steps) as run_log:
            run_log.line(self.describe())
            batches = self.batches()
            self.model.train()
            for step in range(self.start + 1, config.steps + 1):
                for name, value in self.step(step, batches).items():
                    sums[name] += value
                summed += 1
                run_log.advance(step, config.batch_size)

                last = step == config.steps
                if step % config.log_every == 0 or last:
                    means = self.mean_over_ranks({f"loss/{name}": value / summed for name, value in sums.items()})
                    rate = learning_rate(config.optimizer, step, config.steps)
                    run_log.scalars(step, means | {"learning_rate": rate, "skipped_steps": self.guard.skipped})
                    sums.clear()
                    summed = 0
                paused = run_log.pause()
                if self.usage is not None and (step % usage_every == 0 or last):
                    if int(self.usage.positions):
                        figures = self.usage.compute()
                        shown = ("usage", "perplexity")
                        run_log.measured(step, {f"codebook/{name}": float(figures[name]) for name in shown})
                    self.usage.reset()
                if step % config.validate_every == 0 or last:
                    self.validate(step, run_log)
                if step % config.save_every == 0 or last:
                    self.save(step)
                run_log.go_on(paused)
            run_log.line(f"done: {self.folder.path}; {self.rejects.summary()}")
        return self.folder.path

    def step(self, step: int, batches: Any) -> dict[str, Tensor]:
        """One optimiser step; returns the mean of each term of the loss."""
        config, accelerator = self.config, self.accelerator
        parts = config.gradient_accumulation
        means: dict[str, Tensor] = {}
        tokens: list[Tensor] = []
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, config.steps)
        for part, batch in enumerate(islice(batches, parts), 1):
            self.rejects.add(batch["rejected"])
            images = batch["image"].to(accelerator.device, non_blocking=True)
            with accelerator.no_sync(self.model) if part < parts else nullcontext():
                with accelerator.autocast():
                    out = self.model(images)
                    loss, terms = self.objective(out, images)
                accelerator.backward(loss / parts)
            tokens.append(out.tokens)
            for name, term in terms.items():
                means[name] = means.get(name, 0) + term / parts
        norm = accelerator.clip_grad_norm_(self.tokenizer.parameters(), config.optimizer.clip)
        if self.guard.allows(step, norm, means):
            self.optimizer.step()
            self.ema.update_parameters(self.tokenizer)
            if self.usage is not None:
                self.usage.update(torch.cat(tokens))
        self.optimizer.zero_grad(set_to_none=True)
        return means | {"gradient_norm": norm}

    def batches(self) -> Any:
        """This rank's share of each global batch, from the first step that is not done yet, without end."""
        parts = self.config.gradient_accumulation
        return iter(
            train_loader(
                self.pictures,
                self.transform,
                batch_size=self.config.batch_size // parts,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                seed=self.config.seed,
                start_step=self.start * parts,
                workers=self.config.data.workers,
            )
        )

    def validate(self, step: int, run_log: RunLog) -> None:
        """Measure the averaged weights on the validation source, and draw the grid of fixed pictures."""
        model = self.ema.module.eval()
        if self.validation is not None:
            figures = evaluate(
                model,
                self.validation,
                transform=ImageTransform(self.config.data.size),
                workers=self.config.data.workers,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )
            shown = ("psnr", "ssim", "usage", "perplexity", "bits_per_pixel")
            run_log.measured(step, {f"validation/{name}": float(figures[name]) for name in shown if name in figures})
        if self.accelerator.is_main_process:
            images = self.fixed.to(self.accelerator.device)
            run_log.grid(step, images.cpu(), model.decode(model.encode(images), tuple(images.shape[2:])).cpu())

    def save(self, step: int) -> None:
        """Write a checkpoint and the averaged tokenizer."""
        rank = self.accelerator.process_index

        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            if self.usage is not None:
                torch.save(self.usage.state_dict(), folder / USAGE.format(rank))
            if self.accelerator.is_main_process:
                torch.save({"ema": self.ema.state_dict(), "skipped": self.guard.skipped}, folder / EXTRA)

        main = self.accelerator.is_main_process
        self.folder.save(step, write, self.accelerator.wait_for_everyone, main, self.config.keep_checkpoints)
        if main:
            self.ema.module.save_pretrained(self.folder.tokenizer)

    def load(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint."""
        self.accelerator.load_state(str(checkpoint))
        extra = torch.load(checkpoint / EXTRA, map_location=self.accelerator.device, weights_only=True)
        self.ema.load_state_dict(extra["ema"])
        self.guard.skipped = extra["skipped"]
        usage = checkpoint / USAGE.format(self.accelerator.process_index)
        if (
            self.usage is not None and usage.exists()
        ):  # not for a rank that an earlier start with fewer ranks did not have
            self.usage.load_state_dict(torch.load(usage, map_location=self.accelerator.device, weights_only=True))
        self.start = step_of(checkpoint)

    def steps_of_usage(self) -> int:
        """Steps over which codebook usage is counted: an epoch or more, since a batch's perplexity says little.

        A streaming source has no length; there it is 1,000 steps.
        """
        try:
            epoch = math.ceil(len(self.pictures) / self.config.batch_size)
        except TypeError:
            epoch = 1000
        return math.ceil(epoch / self.config.log_every) * self.config.log_every

    def mean_over_ranks(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Mean of scalars over all ranks."""
        stacked = torch.stack([value.float() for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    def describe(self) -> str:
        """The run in one line."""
        millions = sum(p.numel() for p in self.tokenizer.parameters()) / 1e6
        quantizer = self.tokenizer.quantizer
        return (
            f"{self.folder.path}: {millions:.1f}M parameters, f{self.tokenizer.factor}, {quantizer.name}, "
            f"{quantizer.bits:g} bits a position, {self.tokenizer.bits_per_pixel:.3g} bits/px, on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type}, {self.config.precision}"
            + (f"; goes on after step {self.start}" if self.start else "")
        )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 1."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
