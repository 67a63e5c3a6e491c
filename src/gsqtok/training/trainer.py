"""Training of a tokenizer: what a run is made of, and the parts of its loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gsqtok.data import ImageTransform, SkipLog, to_float, train_loader
from gsqtok.evaluation.usage import usage_of
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training.adversarial import Adversary
from gsqtok.training.config import TrainConfig
from gsqtok.training.ema import Average
from gsqtok.training.graphs import record, record_backbone
from gsqtok.training.guards import CollapseWatch, DominanceWatch
from gsqtok.training.images import decoded_images, fixed_images, training_images, validation_images
from gsqtok.training.initial import initial_tokenizer
from gsqtok.training.logs import RunLog
from gsqtok.training.objective import Objective
from gsqtok.training.optimizer import build_optimizer, update_where
from gsqtok.training.run import Run
from gsqtok.training.run_folder import RunFolder, together

log = logging.getLogger("gsqtok.training")
USAGE = "usage-{}.pt"  # of each rank, in a checkpoint


def train(config: TrainConfig, *, resume: bool = False, changed_data: bool = False) -> Path:
    """Train a tokenizer; returns the run's folder, which ``ImageTokenizer.from_pretrained`` loads.

    Works in one process or in many (``torchrun``, ``accelerate launch``): the same seed gives the same images to the
    same global batch whatever the number of ranks.

    Args:
        config: the run.
        resume: go on from the newest checkpoint of ``config.output``; starts anew where there is none.
        changed_data: go on although the images are others than the run was started with.

    Raises:
        InterruptedRunError: a signal asked the run to stop (SIGTERM, SIGUSR1, Ctrl-C), and it has saved.
        RunFolderError: the output folder holds something else, or a checkpoint could not be written.
        TrainingDivergedError: many steps in a row were not finite.
        ValueError, FileNotFoundError: a source, or the weights of the perceptual term, cannot be read.
    """
    with RunFolder(config.output).held("gsqtok train"):
        return Trainer(config, resume=resume, changed_data=changed_data).run()


class Trainer(Run):
    """One run: what it is made of (``__init__``), and each part of what happens in order (`Run.run`)."""

    config: TrainConfig
    ema: Average[ImageTokenizer]

    def __init__(self, config: TrainConfig, *, resume: bool = False, changed_data: bool = False) -> None:
        folder = RunFolder(config.output)
        folder.check_free(resume)
        # before any weights are looked for, which may be on the other side of a network
        self.images, self.transform = training_images(config.data)
        self.validation = validation_images(config.data)
        self.fixed = fixed_images(config.data, self.images if self.validation is None else self.validation)
        set_seed(config.seed)
        tokenizer = initial_tokenizer(config)
        self.config = config = dataclasses.replace(config, model=tokenizer.config)  # every option resolved
        folder.check(config, resume)
        super().__init__(folder, config.precision, config.trackers)
        device, ranks = self.accelerator.device, self.accelerator.num_processes
        if config.batch_size % (config.gradient_accumulation * ranks):
            raise ValueError(
                f"batch_size {config.batch_size} is no multiple of gradient_accumulation "
                f"{config.gradient_accumulation} times {ranks} ranks"
            )
        # with channels innermost, what stands between convolutions runs fused on a GPU
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.precision = torch.bfloat16 if config.precision == "bfloat16" else None
        self.objective = Objective(config.loss, "losses" in config.official).to(device).to(memory_format=self.layout)
        rising = "ema" not in config.official
        self.ema = Average(tokenizer.to(device).to(memory_format=self.layout), config.ema_decay, rising)
        if config.cuda_graphs and device.type == "cuda":  # after the copy, which stays eager
            self.record_graphs(tokenizer)
        self.tokenizer = tokenizer
        optimizer = build_optimizer(tokenizer, config.optimizer, device, config.cuda_graphs)
        self.model, self.optimizer = self.accelerator.prepare(tokenizer, optimizer)
        self.adversary = None
        if config.adversarial.discriminator != "none":
            self.adversary = Adversary(config.adversarial, self.accelerator, config.steps, config.official)
        if config.cuda_graphs and device.type == "cuda":
            self.record_backbones()
        for network in (self.model, self.adversary and self.adversary.objective):
            if isinstance(network, DistributedDataParallel):
                network.broadcast_buffers = False  # they change alike on all ranks
        self.usage = usage_of(tokenizer.quantizer)
        if self.usage is not None:  # part of a checkpoint: metrics over an epoch outlive a restart
            self.usage.to(device)
        self.collapse, self.dominance = CollapseWatch(), DominanceWatch()
        self.skipped = SkipLog()
        digests = {name: source.digest for name, source in self.sources().items()}
        if resume:
            self.folder.check_data(digests, changed_data)
            self.resume()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.write_config(config)
            self.folder.write_data(digests)

    def record_graphs(self, tokenizer: ImageTokenizer) -> None:
        """Record the passes of encoder and decoder on this rank's part of a batch, for each size of crops."""
        config = self.config
        if config.freeze != "none" or any(size % tokenizer.config.factor for size in self.crop_sizes()):
            return  # graphs need a gradient in both networks, and images that are not padded
        pool = torch.cuda.graph_pool_handle()  # they never run at once, so they may share their memory
        for images in self.sample_images():
            record(tokenizer.train(), images, self.precision, pool)
        if config.gradient_accumulation > 1:
            for parameter in tokenizer.parameters():
                parameter.grad = torch.zeros_like(parameter)

    def record_backbones(self) -> None:
        """Record the passes of the frozen networks that the losses look through."""
        backbones = [self.objective.perceptual and self.objective.perceptual.backbone]
        if self.adversary is not None and not self.config.adversarial.r1:  # a graph has no second derivative
            backbones.append(getattr(self.adversary.network, "backbone", None))
        for backbone in filter(None, backbones):
            for images in self.sample_images():
                record_backbone(backbone, images, self.precision)

    def crop_sizes(self) -> list[int]:
        """The sizes of crops, in pixels."""
        return sorted({crop.size for crop in self.config.data.crops} or {self.config.data.size})

    def sample_images(self) -> Iterator[Tensor]:
        """What this rank's part of a batch looks like, for each size of crops."""
        config = self.config
        images = config.batch_size // (config.gradient_accumulation * self.accelerator.num_processes)
        for size in self.crop_sizes():
            shape = (images * (config.data.size // size) ** 2, 3, size, size)
            yield torch.zeros(shape, device=self.accelerator.device).to(memory_format=self.layout)

    def measure(self, step: int, last: bool, run_log: RunLog) -> None:
        """Report how the codebook was used, and measure on the validation source, where they are due."""
        if self.usage is not None and (step % self.steps_of_usage == 0 or last):
            if int(self.usage.positions):
                found = self.usage.compute()
                metrics = {n: x for n in ("usage", "perplexity") if isinstance(x := found[n], float)}
                run_log.measured(step, {f"codebook/{name}": value for name, value in metrics.items()})
                if step % self.steps_of_usage == 0:  # counted over as many images as the others
                    self.warn(self.collapse.see(step, metrics))
            self.usage.reset()
        if step % self.config.validate_every == 0 or last:
            self.validate(step, run_log)

    def begin(self, run_log: RunLog) -> None:
        """Say what will not be measured, and draw the grid of what the first weights make of the fixed images."""
        if self.validation is None:
            run_log.line(
                "no validation images: the tokenizer is not measured during the run; --data.validation names some"
            )
        if self.start == 0:
            self.draw(0, run_log)

    def done(self) -> str:
        """Say that the run has ended, which images could not be read, and what to do next."""
        data, run = self.config.data, self.folder
        if self.validation is None:
            source, split, remark = data.train, data.train_split, "  # better: images that it has not seen"
        else:
            source, split, remark = data.validation, data.validation_split, ""
        evaluate = ["gsqtok", "evaluate", str(run.path), source if isinstance(source, str) else source[0]]
        evaluate += ["--split", split] if split else []
        return f"""{super().done()}; {self.skipped.summary()}
next:
  {shlex.join(evaluate)} --size {data.size} --crop center{remark}
  {shlex.join(["tensorboard", "--logdir", str(run.path)])}
  images and their reconstructions: {run.samples}
in Python:
  import gsqtok
  tokenizer = gsqtok.ImageTokenizer.from_pretrained({str(run.path)!r})
  tokens = tokenizer.encode(gsqtok.load_image("image.jpg"))"""

    def step(self, step: int, batches: Any) -> dict[str, Tensor]:
        """One optimiser step of the tokenizer, and of the discriminator once it has joined.

        Both learn from the same batch and the same reconstructions: first the gradients of both, then, if everything is
        finite, both updates. Returns the mean of each term of the losses, and the gradients' norms.
        """
        config, accelerator = self.config, self.accelerator
        adversary = self.adversary if self.adversary is not None and self.adversary.joins(step) else None
        parts = config.gradient_accumulation
        means: dict[str, Tensor] = {}
        tokens: list[Tensor] = []
        latents: list[Tensor] = []
        quantizer = self.tokenizer.quantizer
        for part, batch in enumerate(islice(batches, parts), 1):
            self.skipped.add(batch["skipped"])
            images = to_float(batch["image"].to(accelerator.device, non_blocking=True), self.layout)
            with accelerator.no_sync(self.model) if part < parts else nullcontext():
                with accelerator.autocast():
                    out = self.model(images, check=False)  # they come from our own transform
                    loss, terms = self.objective(out, images)
                    if adversary is not None:
                        criticism, more = adversary.criticise(
                            out.reconstruction, loss, self.tokenizer.decoder.last_layer
                        )
                        loss = loss + criticism
                        terms |= more | {"total": loss.detach()}
                accelerator.backward(loss / parts)
            if adversary is not None:
                terms |= adversary.learn(step, images, out.reconstruction.detach(), part, parts)
            tokens.append(out.tokens.flatten(0, 2))  # parts may differ in their crops' size
            if quantizer.follows:  # a copy: the next part's pass through a recorded graph overwrites the latent
                latents.append(out.latent.detach().movedim(1, -1).to(torch.float32, copy=True).flatten(0, 2))
            for name, term in terms.items():
                share = term / parts if parts > 1 else term
                means[name] = means[name] + share if name in means else share

        if adversary is not None:
            means["discriminator/gradient_norm"] = adversary.clip(step)
        finite = self.take_step(step, self.tokenizer, means)
        if adversary is not None:
            update_where(finite, adversary.optimizer)
        counted = torch.where(finite.to(accelerator.device), torch.cat(tokens), -1)
        if latents:
            quantizer.update(torch.cat(latents), counted)
        self.average(finite, self.tokenizer)
        if self.usage is not None:
            self.usage.update(counted)
        # a recorded graph hands over gradients in its own memory: to add up several, there must be some to add to
        self.optimizer.zero_grad(set_to_none=parts == 1)
        if adversary is not None:
            adversary.optimizer.zero_grad(set_to_none=True)
        return means

    def summary(self, step: int, window: dict[str, list[Tensor]]) -> dict[str, float]:
        """Give the metrics of a log line, and look whether the discriminator wins."""
        metrics = super().summary(step, window)
        if judged := window.get("discriminator/accuracy"):
            self.warn(self.dominance.see(step, metrics["discriminator/accuracy"], len(judged)))
        metrics["loss/gradient_norm_max"] = torch.stack(window["gradient_norm"]).max().item()
        if self.adversary is not None and self.adversary.joins(step):
            metrics["discriminator/learning_rate"] = self.adversary.learning_rate(step)
        return metrics

    def batches(self) -> Any:
        """This rank's share of each global batch, from the first step that is not done yet, without end."""
        parts, workers = self.config.gradient_accumulation, self.config.data.workers
        images: Any = self.images
        if self.config.data.cache:
            # one process of a machine decodes, with the workers of all, and the others read its files
            local = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * workers
            decode = partial(decoded_images, self.config.data, self.images, local)
            first = self.accelerator.is_local_main_process
            together(decode if first else lambda: None, self.reports, "the images could not be decoded")
            images = decode()
        return iter(
            train_loader(
                images,
                self.transform,
                batch_size=self.config.batch_size // parts,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                seed=self.config.seed,
                start_step=self.start * parts,
                workers=workers,
                streaming=self.config.data.streaming,
            )
        )

    def validate(self, step: int, run_log: RunLog) -> None:
        """Measure the averaged weights on the validation source, and draw the grid of fixed images."""
        model = self.ema.module.eval()
        if self.validation is not None:
            from gsqtok.evaluation import evaluate  # with torchmetrics, which takes seconds to import

            result = evaluate(
                model,
                self.validation,
                transform=ImageTransform(self.config.data.size),
                workers=self.config.data.workers,
            )
            shown = ("psnr", "ssim", "usage", "perplexity", "bits_per_pixel")
            run_log.measured(step, {f"validation/{name}": float(result[name]) for name in shown if name in result})
        self.draw(step, run_log)

    def draw(self, step: int, run_log: RunLog) -> None:
        """Draw the grid of fixed images and what the averaged weights make of them."""
        if self.accelerator.is_main_process:
            model, images = self.ema.module.eval(), self.fixed.to(self.accelerator.device)
            height, width = images.shape[2:]
            run_log.grid(step, images.cpu(), model.decode(model.encode(images), size=(height, width)).cpu())

    def publish(self) -> None:
        """Write the averaged tokenizer."""
        self.ema.module.save_pretrained(self.folder.tokenizer)

    def write(self, folder: Path) -> None:
        """Write a checkpoint; every rank does."""
        super().write(folder)
        if self.usage is not None:
            torch.save(self.usage.state_dict(), folder / USAGE.format(self.accelerator.process_index))

    def sources(self) -> dict[str, Any]:
        """The sources of images by their names in the configuration."""
        named = {"data.train": self.images, "data.validation": self.validation}
        return {name: source for name, source in named.items() if source is not None}

    def load(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint."""
        super().load(checkpoint)
        usage = checkpoint / USAGE.format(self.accelerator.process_index)
        if self.usage is not None and usage.exists():  # not for a rank that an earlier start did not have
            self.usage.load_state_dict(torch.load(usage, map_location="cpu", weights_only=True))
            self.usage.to(self.accelerator.device)

    @cached_property
    def steps_of_usage(self) -> int:
        """Steps over which codebook usage is counted: an epoch or more, since a batch's perplexity says little.

        While streaming the number of images need not be known; there it is 1,000 steps.
        """
        streaming = self.config.data.streaming
        epoch = 1000 if streaming else math.ceil(len(self.images) / self.config.batch_size)
        return math.ceil(epoch / self.config.log_every) * self.config.log_every

    @property
    def guards(self) -> dict[str, Any]:
        """What watches over the run, by the names under which a checkpoint keeps it."""
        return super().guards | {"collapse": self.collapse, "dominance": self.dominance}

    def warn(self, message: str | None) -> None:
        """Log a warning once, not once a rank."""
        if message is not None and self.accelerator.is_main_process:
            log.warning(message)

    def describe(self) -> str:
        """The run in one line."""
        millions = sum(p.numel() for p in self.tokenizer.parameters()) / 1e6
        against = f" against {self.config.adversarial.discriminator}" if self.adversary is not None else ""
        quantizer = self.tokenizer.quantizer
        return (
            f"{self.folder.path}: {millions:.1f}M parameters{against}, f{self.tokenizer.factor}, {quantizer.name}, "
            f"{quantizer.bits:g} bits a position, {self.tokenizer.bits_per_pixel:.3g} bits/px, on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type}, {self.config.precision}"
            + (f"; goes on after step {self.start}" if self.start else "")
        )
