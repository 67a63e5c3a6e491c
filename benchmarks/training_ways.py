"""A training step of the networks in each way of running, for throughput.py and kernels.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsqtok import ImageTokenizer
from gsqtok.acceleration import accelerate, recompute

if TYPE_CHECKING:
    from gsqtok.training.adversarial import DiscriminatorObjective

OPPONENTS = {"patch": None, "efficientnet": "tf_efficientnet_lite0", "dinov2": "vit_small_patch14_reg4_dinov2"}


class PerceptualLike(nn.Module):
    """A frozen VGG-like network: the load of a perceptual term without its weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers[:-1]).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def opponent(name: str) -> DiscriminatorObjective:
    from gsqtok.networks.backbone import random_backbone
    from gsqtok.training.adversarial import DiscriminatorObjective
    from gsqtok.training.config import AdversarialConfig

    backbone = None if OPPONENTS[name] is None else random_backbone(OPPONENTS[name], embedding=True)
    config = AdversarialConfig(discriminator="patch" if backbone is None else "projected")
    return DiscriminatorObjective(config, backbone)


def training(
    tokenizer: ImageTokenizer,
    way: str,
    images: Tensor,
    perceptual: PerceptualLike | None,
    device: str,
    adversary: DiscriminatorObjective | None = None,
) -> Callable[[], Any]:
    tokenizer = copy.deepcopy(tokenizer).to(device).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), fused=device == "cuda")
    judge = None if adversary is None else adversary.discriminator
    if judge is not None:
        from gsqtok.losses import generator_loss
    judges = None if judge is None else torch.optim.AdamW(judge.parameters(), fused=device == "cuda")
    shown = images if way in ("original", "published") else images.contiguous(memory_format=torch.channels_last)
    accelerate(tokenizer, enabled=way in ("fused", "graphs", "recompute"))
    if way not in ("original", "published"):
        tokenizer.to(memory_format=torch.channels_last)
        if perceptual is not None:
            perceptual.to(memory_format=torch.channels_last)
    if way == "recompute":
        recompute(tokenizer, levels=2)
    if way == "compiled":
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    if way in ("graphs", "recompute") and device == "cuda":
        from gsqtok.training.graphs import record, record_backbone

        record(tokenizer, images, torch.bfloat16)
        for backbone in (perceptual, getattr(judge, "backbone", None)):  # as the trainer does
            if backbone is not None:
                record_backbone(backbone, images, torch.bfloat16)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            out = tokenizer(images)
            loss = F.mse_loss(out.reconstruction.float(), images) + out.quantizer_loss
            if perceptual is not None:
                with torch.no_grad():
                    target = perceptual(images)
                loss = loss + F.mse_loss(perceptual(out.reconstruction.float()).float(), target.float())
            if judge is not None:
                judge.requires_grad_(False)
                loss = loss + adversary.config.weight * generator_loss(judge(out.reconstruction), "non_saturating")
                judge.requires_grad_(True)
        loss.backward()
        if judge is not None:
            with torch.autocast(device, torch.bfloat16):
                verdict, _ = adversary(shown, out.reconstruction.detach(), False)
            verdict.backward()
            nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
            judges.step()
            judges.zero_grad(set_to_none=True)
        nn.utils.clip_grad_norm_(tokenizer.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
