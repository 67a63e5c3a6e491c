"""What every training run has, whatever it trains: the loop, devices and ranks, checkpoints, and the way it stops."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
    synchronize_rng_states,
)
from torch import Tensor, nn

from gsqtok.training.ema import Average
from gsqtok.training.guards import FiniteGuard
from gsqtok.training.interruption import InterruptedRunError, Interruption
from gsqtok.training.logs import RunLog, checked_trackers
from gsqtok.training.optimizer import learning_rate, update_where
from gsqtok.training.run_folder import RunFolder, step_of, together

log = logging.getLogger("gsqtok.training")
# In a checkpoint, what accelerate's own files do not hold:
EXTRA = "extra.pt"
STEPS_BETWEEN_QUESTIONS = 10  # by which many ranks ask each other whether to stop, and wait for the answer
# Ways of Accelerate that would round the codebook to the precision of the networks.
UNSUPPORTED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class Run:
    """The loop of a run, and its devices, ranks and checkpoints.

    A subclass sets ``config`` before it runs and ``ema`` before anything is saved or loaded, says with ``publish`` what
    users load, and adds to ``guards``, ``write`` and ``load`` what else must outlive a restart. It gives the loop its
    parts: ``describe``, ``batches``, ``begin``, ``step``, ``measure`` and ``done``.

    Args:
        folder: of the run.
        precision: "bfloat16" for autocast, or "float32".
        trackers: where curves go.

    Attributes:
        config: of the run: ``steps``, ``batch_size``, and every how many steps what is done.
        start: the steps that are done when the run begins.
    """

    config: Any
    ema: Average[Any]
    optimizer: Any

    def __init__(self, folder: RunFolder, precision: str, trackers: Sequence[str]) -> None:
        self.folder = folder
        AcceleratorState._reset_state()  # else a process could train in one precision only
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else ranks without a GPU would not know of each other
            mixed_precision="bf16" if precision == "bfloat16" else "no",
            log_with=checked_trackers(trackers) or None,
            project_config=ProjectConfiguration(project_dir=str(folder.path)),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # a copy less of each
        )
        if self.accelerator.distributed_type in UNSUPPORTED:
            raise ValueError(
                f"{self.accelerator.distributed_type.value} is not supported: launch without --use_fsdp and "
                "--use_deepspeed; gradient_accumulation saves memory"
            )
        self.guard = FiniteGuard(agreed=self.on_every_rank, last_checkpoint=folder.latest)
        self.start = 0

    def run(self) -> Path:
        """Train from the start, or from the checkpoint, to the last step."""
        config = self.config
        window: dict[str, list[Tensor]] = defaultdict(list)
        with (
            Interruption() as interruption,
            RunLog(self.folder, self.accelerator, self.start, config.steps) as run_log,
        ):
            run_log.line(self.describe())
            paused = run_log.pause()  # decoding all images may take a while
            batches = self.batches()
            self.begin(run_log)
            run_log.go_on(paused)
            for step in range(self.start + 1, config.steps + 1):
                for name, value in self.step(step, batches).items():
                    window[name].append(value)
                run_log.advance(step, config.batch_size)

                last = step == config.steps
                if step % config.log_every == 0 or last:
                    run_log.scalars(step, self.summary(step, window))
                    window.clear()
                paused = run_log.pause()
                self.measure(step, last, run_log)
                stopped = not last and self.asked_to_stop(step, interruption)
                if step % config.save_every == 0 or last or stopped:
                    self.save(step, config.keep_checkpoints)
                if stopped:
                    self.stop(step, interruption)
                run_log.go_on(paused)
            run_log.line(self.done())
        return self.folder.path

    def describe(self) -> str:
        """Say in one line what is trained, and on what."""
        raise NotImplementedError

    def batches(self) -> Any:
        """Give this rank's share of each global batch, from the first step that is not done yet."""
        raise NotImplementedError

    def begin(self, run_log: RunLog) -> None:
        """Do what comes before the first step."""

    def step(self, step: int, batches: Any) -> dict[str, Tensor]:
        """Take one step; the terms of its losses, and the gradients' norms."""
        raise NotImplementedError

    def take_step(self, step: int, network: nn.Module, means: dict[str, Tensor]) -> Tensor:
        """Clip the gradients, and update the network unless something is not finite.

        Args:
            step: the step.
            network: what the optimiser trains, bare.
            means: losses and other gradients' norms by name; the norm of this gradient is added.

        Returns:
            Whether everything was finite on every rank, a bool scalar on the device; see ``FiniteGuard``.
        """
        options = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(options, step, self.config.steps)
        means["gradient_norm"] = self.accelerator.clip_grad_norm_(network.parameters(), options.clip)
        finite = self.guard.allows(step, means)
        update_where(finite, self.optimizer)
        return finite

    def average(self, finite: Tensor, network: nn.Module) -> None:
        """Take the updated network into the average."""
        if finite.is_cuda or finite:  # nobody waits for a GPU's answer: an average of unchanged weights does no harm
            self.ema.update_parameters(network)

    def summary(self, step: int, window: dict[str, list[Tensor]]) -> dict[str, float]:
        """Give the metrics of a log line: means over the steps since the last one and over all ranks."""
        means = {
            name if "/" in name else f"loss/{name}": torch.stack(values).float().mean()
            for name, values in window.items()
        }
        metrics = self.mean_over_ranks(means)
        self.guard.settle()
        metrics["learning_rate"] = learning_rate(self.config.optimizer, step, self.config.steps)
        return metrics | {"skipped_steps": self.guard.skipped}

    def measure(self, step: int, last: bool, run_log: RunLog) -> None:
        """Measure what is due after a step; everything is after the last one."""
        raise NotImplementedError

    def done(self) -> str:
        """Say in one line that the run has ended."""
        return f"done: {self.folder.path}"

    def resume(self) -> None:
        """Take everything from the newest checkpoint, if there is one."""
        if checkpoint := self.newest_checkpoint():
            self.load(checkpoint)

    def save(self, step: int, keep: int) -> None:
        """Write a checkpoint, and what users load; the newest ``keep`` checkpoints stay."""

        def publish() -> None:
            if self.accelerator.is_main_process:
                self.folder.clear_leftovers()
                self.publish()

        self.folder.save(step, self.write, self.reports, self.accelerator.is_main_process, keep)
        together(publish, self.reports, f"the weights of step {step} could not be written")

    def publish(self) -> None:
        """Write the averaged weights where users load them."""
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Write into the folder of a checkpoint; every rank does."""
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            guards = {name: guard.state_dict() for name, guard in self.guards.items()}
            torch.save({"ema": self.ema.state_dict(), "guards": guards}, folder / EXTRA)

    def load(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint."""
        self.accelerator.load_state(str(checkpoint))
        if len(list(checkpoint.glob("random_states_*.pkl"))) != self.accelerator.num_processes:
            synchronize_rng_states(["torch", "cuda"] if torch.cuda.is_available() else ["torch"])  # new ranks have none
        extra = torch.load(checkpoint / EXTRA, map_location="cpu", weights_only=True)
        self.ema.load_state_dict(extra["ema"])
        for name, guard in self.guards.items():
            guard.load_state_dict(extra["guards"][name])
        self.start = step_of(checkpoint)

    def asked_to_stop(self, step: int, interruption: Interruption) -> bool:
        """Whether a signal asked this rank, or any other, to stop; ranks ask each other every few steps."""
        if self.accelerator.num_processes == 1:
            return interruption.name is not None
        if step % STEPS_BETWEEN_QUESTIONS:
            return False
        asked = torch.tensor(float(interruption.name is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum"))

    def stop(self, step: int, interruption: Interruption) -> NoReturn:
        """End the run, which has been saved."""
        cause = interruption.name or "a signal to another rank"
        raise InterruptedRunError(
            f"stopped by {cause} after step {step}, which is saved in {self.folder.path}; go on with --resume"
        )

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, the same on all ranks; the first rank reads them all."""
        found: list[Path | None] = [None]

        def look() -> None:
            if self.accelerator.is_main_process:
                found[0] = self.folder.newest_whole(log.warning)

        together(look, self.reports, "no checkpoint to go on from")
        return broadcast_object_list(found)[0]

    def mean_over_ranks(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Mean of scalars over all ranks."""
        stacked = torch.stack([value.float() for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    @property
    def guards(self) -> dict[str, Any]:
        """What watches over the run, by the names under which a checkpoint keeps it."""
        return {"finite": self.guard}

    def on_every_rank(self, holds: Tensor) -> Tensor:
        """Whether something, a bool scalar, holds on every rank."""
        return self.accelerator.reduce(holds.float(), "mean") == 1

    def reports(self, report: str | None) -> list[str | None]:
        """What every rank has to say; waits for all of them."""
        return gather_object([report])
