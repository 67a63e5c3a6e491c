"""Adversarial losses: what the tokenizer and its discriminator each minimise, and what keeps the two in balance.

Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, arXiv 1406.2661; Lim and Ye, "Geometric GAN", 2017,
arXiv 1705.02894 (hinge); Esser, Rombach, Ommer, "Taming Transformers", CVPR 2021, arXiv 2012.09841 (VQGAN).

Every loss takes the list of maps that a discriminator returns, averages each map, then the maps: neither the size of an
image nor the number of heads changes the scale. All are float32 scalars, whatever the logits' type and autocast.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gsqtok.distributed import mean_over_ranks

Kind = Literal["hinge", "vanilla", "non_saturating"]


def generator_loss(fake_logits: list[Tensor], kind: Kind) -> Tensor:
    """What the tokenizer minimises: how far the discriminator is from taking its reconstructions for real.

    With D(y) the logit of a reconstruction y and p = sigmoid(D(y)) the probability of being real:

    - ``"hinge"``: -D(y). It has no floor: a reconstruction that the discriminator takes for real makes it negative,
      and so can the total loss be. That is no fault; what counts is its gradient, which is constant.
    - ``"non_saturating"``: -log p = softplus(-D(y)) (Goodfellow, section 3; StyleGAN's). Never negative; its gradient
      is strongest for reconstructions that are found out. The paper's choice, whose code takes it of each image's mean
      logit (`gsqtok.losses.official`).
    - ``"vanilla"``: log(1 - p) = -softplus(D(y)), the minimax game (Goodfellow, equation 1). Never positive; its
      gradient vanishes for reconstructions that are found out ("saturates"). VQGAN's code has no such generator:
      beside its vanilla discriminator it trains the generator with the hinge form.

    Args:
        fake_logits: the discriminator's maps (B, ...) of reconstructions.
        kind: which; it need not be the discriminator's.

    Raises:
        ValueError: an unknown kind, or no maps.
    """
    check_maps(kind, fake_logits)
    if kind == "hinge":
        return _mean([-fake.float() for fake in fake_logits])
    if kind == "non_saturating":
        return _mean([F.softplus(-fake.float()) for fake in fake_logits])
    return _mean([-F.softplus(fake.float()) for fake in fake_logits])


def discriminator_loss(real_logits: list[Tensor], fake_logits: list[Tensor], kind: Kind) -> Tensor:
    """What the discriminator minimises: its error in telling images x from reconstructions y.

    - ``"hinge"``: (relu(1 - D(x)) + relu(1 + D(y))) / 2. Logits beyond +-1 on the right side cost nothing and get no
      gradient. 1 where D is 0 throughout, 0 where it is sure.
    - ``"non_saturating"``: softplus(-D(x)) + softplus(D(y)), the sum of the two cross entropies: -log D - log(1 - D)
      of Goodfellow, equation 1, as in StyleGAN. 2 log 2 = 1.386 where D is 0 throughout.
    - ``"vanilla"``: half of that, the mean of the two: VQGAN's code calls it so. log 2 = 0.693 where D is 0 throughout.

    The last two differ in scale alone, by which an added penalty (R1, LeCam) and Adam's epsilon count for more or less.
    The half in "hinge" is VQGAN's as well.

    Args:
        real_logits: the discriminator's maps (B, ...) of images.
        fake_logits: its maps of reconstructions, which should be detached from the tokenizer.
        kind: which; it need not be the generator's.

    Raises:
        ValueError: an unknown kind, no maps, or not the same number of them.
    """
    check_maps(kind, real_logits, fake_logits)
    margin = {"hinge": lambda logits: F.relu(1 + logits)}.get(kind, F.softplus)
    real = _mean([margin(-logits.float()) for logits in real_logits])
    fake = _mean([margin(logits.float()) for logits in fake_logits])
    return real + fake if kind == "non_saturating" else (real + fake) / 2


class LeCam(nn.Module):
    """LeCam regularisation: each side's logits are held near a moving average of the other side's.

    Tseng, Jiang, Liu, Yang, Yang, "Regularizing Generative Adversarial Networks under Limited Data", CVPR 2021,
    arXiv 2104.03310, section 3.2: E |D(x) - a_fake|^2 + E |D(y) - a_real|^2, to be added to the discriminator's loss.
    The authors' code also cuts off differences of the other sign (D(x) below a_fake); their equation does not.

    The averages are over all logits of all ranks, start at the first batch's means, and are buffers: part of a
    checkpoint. They move in training mode only, before the penalty is taken; a batch that is not finite leaves them.

    Args:
        decay: of the averages, for each call.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    real: Tensor
    fake: Tensor
    started: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, real_logits: list[Tensor], fake_logits: list[Tensor]) -> Tensor:
        """The discriminator's maps (B, ...) of images and of reconstructions -> float32 scalar."""
        if self.training:
            self._update(real_logits, fake_logits)
        real = _mean([(logits.float() - self.fake).square() for logits in real_logits])
        fake = _mean([(logits.float() - self.real).square() for logits in fake_logits])
        return real + fake

    @torch.no_grad()
    def _update(self, real_logits: list[Tensor], fake_logits: list[Tensor]) -> None:
        sides = [torch.stack([logits.float().mean() for logits in side]) for side in (real_logits, fake_logits)]
        means = mean_over_ranks(torch.stack(sides).mean(1))  # NaN for an empty batch, which leaves the averages, too
        averages = torch.stack([self.real, self.fake])
        moved = torch.where(self.started, averages.lerp(means, 1 - self.decay), means)
        finite = means.isfinite().all()
        # new tensors, since the graph of an earlier penalty may still hold the old ones
        self.real, self.fake = (average.clone() for average in torch.where(finite, moved, averages))
        self.started = self.started | finite


def r1_penalty(discriminator: nn.Module, images: Tensor, of_sum: bool = False) -> Tensor:
    """Squared gradient of the verdict on real images, by the images.

    Mescheder, Geiger, Nowozin, "Which Training Methods for GANs do actually Converge?", ICML 2018, arXiv 1801.04406,
    equation 9, without its factor gamma / 2: the mean over images of |d D(x) / dx|^2, where D(x) is the mean over a
    image's logits, as in the losses. Float32, outside autocast; can be differentiated by the discriminator's weights.

    A discriminator that normalises over the batch mixes the images in these gradients; PatchGAN has norm="group".

    Args:
        discriminator: images -> list of maps (B, ...).
        images: real images (B, 3, H, W) in [-1, 1].
        of_sum: let D(x) be the sum of an image's logits, over all maps.
    """
    plain_attention = sdpa_kernel(SDPBackend.MATH)  # the fused kernels cannot be differentiated twice
    with torch.autocast(images.device.type, enabled=False), torch.enable_grad(), plain_attention:
        images = images.detach().float().requires_grad_()
        maps = discriminator(images)
        if of_sum:
            verdict = torch.stack([logits.sum() for logits in maps]).sum()
        else:
            verdict = torch.stack([logits.flatten(1).mean(1).sum() for logits in maps]).mean()
        (gradient,) = torch.autograd.grad(verdict, images, create_graph=True)
        return gradient.square().sum() / max(1, len(gradient))


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer_weight: Tensor, limit: float = 1e4
) -> Tensor:
    """The weight that makes both losses pull equally hard on the decoder's last layer (VQGAN, equation 7).

    |d reconstruction / dw| / (|d adversarial / dw| + 1e-6), at most ``limit``, detached. The equation has neither the
    limit nor anything to multiply it with; VQGAN's code adds the limit and a constant factor. (GSQ's paper, section 4:
    a constant weight did better.)

    Under torch.distributed the two gradients are first averaged over the ranks, which must all call this: every rank
    gets the same weight, that of the whole batch. The graph is kept for the backward pass; ``.grad`` is not touched.

    Args:
        reconstruction_loss: scalar with a graph to the weight (reconstruction and perceptual terms).
        adversarial_loss: ``generator_loss``, unweighted.
        last_layer_weight: the parameter; take it from the bare module, not from a DistributedDataParallel copy.
        limit: the largest weight, where the adversarial gradient is (almost) zero.

    Returns:
        A float32 scalar in [0, limit]; not finite only where a loss is not.
    """
    gradients = [
        torch.autograd.grad(loss, last_layer_weight, retain_graph=True, allow_unused=True)[0]
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    zero = torch.zeros_like(last_layer_weight)
    both = torch.stack([zero if gradient is None else gradient for gradient in gradients]).detach().float()
    reconstruction, adversarial = mean_over_ranks(both).flatten(1).norm(dim=1)
    return (reconstruction / (adversarial + 1e-6)).clamp(0, limit)


def check_maps(kind: str, *sides: list[Tensor]) -> None:
    """Refuse an unknown kind of loss, and sides that have no maps or not equally many."""
    if kind not in ("hinge", "vanilla", "non_saturating"):
        raise ValueError(f"kind must be 'hinge', 'vanilla' or 'non_saturating', got {kind!r}")
    if not all(len(side) == len(sides[0]) > 0 for side in sides):
        raise ValueError(f"expected the discriminator's maps of logits, got {[len(side) for side in sides]} of them")


def _mean(maps: list[Tensor]) -> Tensor:
    return torch.stack([values.sum() / max(1, values.numel()) for values in maps]).mean()
