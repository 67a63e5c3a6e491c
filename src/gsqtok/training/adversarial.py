"""The discriminator's side of the GAN stage: its network, its loss and its optimiser."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gsqtok.discriminators import DiffAugment, build_discriminator
from gsqtok.losses import adversarial, official
from gsqtok.networks.backbone import Backbone
from gsqtok.networks.initialization import initialize_kaiming
from gsqtok.training.config import AdversarialConfig, Component
from gsqtok.training.optimizer import build_optimizer, learning_rate


class DiscriminatorObjective(nn.Module):
    """A discriminator and its loss in one module, which data parallelism sees as one forward pass a step.

    Args:
        config: which discriminator, and the terms of its loss.
        backbone: for projected: the frozen network, where it is loaded already.
        components: what is as in the paper's own code.
    """

    def __init__(
        self, config: AdversarialConfig, backbone: Backbone | None = None, components: Collection[Component] = ()
    ) -> None:
        super().__init__()
        self.config = config
        self.as_official = "losses" in components
        options = dict(config.options)
        if backbone is not None:
            options["backbone"] = backbone
        elif config.discriminator == "projected":
            options |= {"backbone": config.backbone, "weights": config.backbone_file}
        try:
            self.discriminator = build_discriminator(
                config.discriminator,
                augment=DiffAugment(config.augment, "augment" in components),
                official="discriminator" in components,
                **options,
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} (--adversarial.backbone_file names the file)") from error
        if config.discriminator == "patch" and "initialization" in components:
            initialize_kaiming(self.discriminator)
        self.lecam = self.losses.LeCam() if config.lecam else None

    @property
    def losses(self) -> ModuleType:
        """Where the losses are defined: the two modules have the same names."""
        return official if self.as_official else adversarial

    def forward(self, images: Tensor, reconstruction: Tensor, penalise: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on images and (detached) reconstructions, and its terms (detached), for the log.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            reconstruction: the same of their reconstructions.
            penalise: whether this step takes the R1 penalty.
        """
        config = self.config
        real, fake = self.discriminator(images), self.discriminator(reconstruction)
        total: Tensor = self.losses.discriminator_loss(real, fake, config.discriminator_loss)
        terms = {"loss": total, "real_logits": _mean(real), "fake_logits": _mean(fake)}
        terms["accuracy"] = (_mean([x > 0 for x in real]) + _mean([x < 0 for x in fake])) / 2
        if self.lecam is not None:
            terms["lecam"] = self.lecam(real, fake)
            total = total + config.lecam * terms["lecam"]
        if penalise:
            terms["r1"] = self.losses.r1_penalty(self.discriminator, images)
            total = total + config.r1 / 2 * config.r1_every * terms["r1"]
        return total, {f"discriminator/{name}": term.detach() for name, term in terms.items()}


class Adversary:
    """The tokenizer's opponent in a run: what it says of reconstructions, and how it learns.

    Attributes:
        network: the discriminator, bare.
    """

    def __init__(
        self, config: AdversarialConfig, accelerator: Accelerator, steps: int, components: Collection[Component] = ()
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.steps = steps
        objective = DiscriminatorObjective(config, components=components).to(accelerator.device)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            # normalise over the whole batch, as one rank would; torch has this for CUDA alone
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        self.network, self.losses = objective.discriminator, objective.losses
        self.objective, self.optimizer = accelerator.prepare(
            objective, build_optimizer(self.network, config.optimizer, accelerator.device)
        )

    def joins(self, step: int) -> bool:
        """Whether the discriminator takes part in a step."""
        return step > self.config.start_step

    def criticise(self, reconstruction: Tensor, loss: Tensor, last_layer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokenizer's weighted adversarial term, which leaves no gradient in the discriminator.

        Args:
            reconstruction: (B, 3, H, W), with its graph.
            loss: the rest of the tokenizer's loss, for the adaptive weight.
            last_layer: the weight of the decoder's last layer, likewise.
        """
        with _without_gradient(self.network):
            term: Tensor = self.losses.generator_loss(self.network(reconstruction), self.config.generator_loss)
        terms = {"adversarial": term.detach()}
        weight: Tensor | float = self.config.weight
        if self.config.adaptive_weight:
            terms["adaptive_weight"] = self.losses.adaptive_weight(loss, term, last_layer)
            weight = weight * terms["adaptive_weight"]
        return weight * term, terms

    def learn(self, step: int, images: Tensor, reconstruction: Tensor, part: int, parts: int) -> dict[str, Tensor]:
        """Add the gradient of one part of a step's batch; the reconstructions come detached from the tokenizer."""
        penalise = self.config.r1 > 0 and (step - self.config.start_step - 1) % self.config.r1_every == 0
        with self.accelerator.no_sync(self.objective) if part < parts else nullcontext():
            with self.accelerator.autocast():
                loss, terms = self.objective(images, reconstruction, penalise)
            self.accelerator.backward(loss / parts)
        return terms

    def learning_rate(self, step: int) -> float:
        """The discriminator's, whose schedule begins when it joins."""
        start = self.config.start_step
        return learning_rate(self.config.optimizer, step - start, self.steps - start)

    def clip(self, step: int) -> Tensor:
        """Set the step's learning rate and clip the gradient; its norm before that."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        return self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.optimizer.clip)


@contextmanager
def _without_gradient(network: nn.Module) -> Iterator[None]:
    """What is computed inside takes the network's parameters for constants."""
    trained = [p for p in network.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _mean(maps: list[Tensor]) -> Tensor:
    return torch.stack([values.float().mean() for values in maps]).mean()
