"""The tokenizer's loss, term by term."""

from __future__ import annotations

from torch import Tensor, nn

from gsqtok.losses import build_perceptual, reconstruction_loss
from gsqtok.tokenizer import TokenizerOutput
from gsqtok.training.config import LossConfig


class Objective(nn.Module):
    """Reconstruction + perceptual + quantizer loss (paper, section 3.3).

    Args:
        config: the terms.
        official: the perceptual network gets images in [0, 1] instead of the [-1, 1] that it was made for, as in the
            paper's own code: everything looks pale to it.
    """

    def __init__(self, config: LossConfig, official: bool = False) -> None:
        super().__init__()
        self.config = config
        self.official = official
        self.perceptual = None
        if config.perceptual_weight:
            try:
                self.perceptual = build_perceptual(config.perceptual, config.perceptual_file)
            except FileNotFoundError as error:
                hint = "--loss.perceptual_file names the file, --loss.perceptual_weight 0 does without"
                raise FileNotFoundError(f"{error} ({hint})") from error

    def forward(self, out: TokenizerOutput, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and each term before its weight (detached), for the log."""
        reconstruction = out.reconstruction.float()
        terms = {"reconstruction": reconstruction_loss(reconstruction, images, self.config.reconstruction)}
        total = self.config.reconstruction_weight * terms["reconstruction"]
        if self.perceptual is not None:
            pair = [(x + 1) / 2 if self.official else x for x in (reconstruction, images)]
            terms["perceptual"] = self.perceptual(*pair)
            total = total + self.config.perceptual_weight * terms["perceptual"]
        total = total + self.config.quantizer_weight * out.quantizer_loss
        terms |= out.quantizer_losses
        return total, {"total": total.detach()} | {name: term.detach() for name, term in terms.items()}
