"""The adversarial losses as the paper's own code reduces them; those of `gsqtok.losses.adversarial` are the textbook's.

Both modules have the same names. Written from what was measured on the official code with equal logits
(docs/paper.md, "Where this differs from the official code"). The maps of a discriminator are one row of logits for
each image here, so that a larger map weighs more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.losses import adversarial
from gsqtok.losses.adversarial import Kind, check_maps


def generator_loss(fake_logits: list[Tensor], kind: Kind) -> Tensor:
    """What the tokenizer minimises.

    - ``"hinge"``: -D(y).
    - ``"non_saturating"`` and ``"vanilla"``: softplus(-m), m the mean of an image's logits; averaged over images.

    softplus(-m) is at most the mean of softplus(-D(y)), and its gradient is the same at all logits of an image, whether
    they were found out or not.

    Args:
        fake_logits: the discriminator's maps (B, ...) of reconstructions.
        kind: which.

    Raises:
        ValueError: an unknown kind, or no maps.
    """
    check_maps(kind, fake_logits)
    fake = _rows(fake_logits)
    return _mean(-fake) if kind == "hinge" else _mean(F.softplus(-fake.mean(1)))


def discriminator_loss(real_logits: list[Tensor], fake_logits: list[Tensor], kind: Kind) -> Tensor:
    """What the discriminator minimises.

    - ``"hinge"``: (relu(1 - D(x)) + relu(1 + D(y))) / 2, over all logits.
    - ``"non_saturating"`` and ``"vanilla"``: (softplus(-m(x)) + softplus(m(y))) / 2, m the mean of an image's logits.

    Args:
        real_logits: the discriminator's maps (B, ...) of images.
        fake_logits: its maps of reconstructions, detached from the tokenizer.
        kind: which.

    Raises:
        ValueError: an unknown kind, no maps, or not the same number of them.
    """
    check_maps(kind, real_logits, fake_logits)
    real, fake = _rows(real_logits), _rows(fake_logits)
    if kind == "hinge":
        return (_mean(F.relu(1 - real)) + _mean(F.relu(1 + fake))) / 2
    return (_mean(F.softplus(-real.mean(1))) + _mean(F.softplus(fake.mean(1)))) / 2


class LeCam(adversarial.LeCam):
    """LeCam regularisation of one side: relu(D(x) - a_fake)^2 + relu(a_real - D(y))^2.

    The averages start at 0 and have a decay of 0.999, so that for the first thousand steps they say little: the logits
    of images are held below about 0, and those of reconstructions above.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay)
        self.started = torch.tensor(True)

    def forward(self, real_logits: list[Tensor], fake_logits: list[Tensor]) -> Tensor:
        """The discriminator's maps (B, ...) of images and of reconstructions -> float32 scalar."""
        real, fake = _rows(real_logits), _rows(fake_logits)
        if self.training:
            self._update([real], [fake])
        return _mean(F.relu(real - self.fake).square()) + _mean(F.relu(self.real - fake).square())


def r1_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """`gsqtok.losses.r1_penalty` of the sum of an image's n logits in the place of their mean: n^2 times as much."""
    return adversarial.r1_penalty(discriminator, images, of_sum=True)


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer_weight: Tensor) -> Tensor:
    """`gsqtok.losses.adaptive_weight` with a limit of 1,000."""
    return adversarial.adaptive_weight(reconstruction_loss, adversarial_loss, last_layer_weight, limit=1e3)


def _rows(maps: list[Tensor]) -> Tensor:
    """Maps (B, ...) -> all logits of each image (B, n), float32."""
    return torch.cat([logits.float().flatten(1) for logits in maps], 1)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())
