"""GSQ inside an autoencoder of your own: the quantizer takes and gives (B, channels, ...) or (..., channels).

python examples/own_autoencoder.py
"""

import torch
from torch import nn

from gsqtok import build_quantizer


class Autoencoder(nn.Module):
    """Any encoder, any decoder, and a quantizer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.SiLU(), nn.Conv2d(64, 16, 1))
        self.quantizer = build_quantizer("gsq", dim=16, groups=4, codebook_size=1024)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(16, 64, 4, 4), nn.SiLU(), nn.Conv2d(64, 3, 1))

    def forward(self, images):
        """Images (B, 3, H, W) -> their reconstruction, tokens (B, H/4, W/4, 4), the quantizer's loss."""
        quantized, tokens, loss = self.quantizer(self.encoder(images), channel_first=True)
        return self.decoder(quantized), tokens, loss


def main(steps: int = 200) -> list[float]:
    """Train on smooth random images; returns the mean square error of each step."""
    torch.manual_seed(0)
    model, errors = Autoencoder(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        images = nn.functional.interpolate(torch.rand(16, 3, 4, 4) * 2 - 1, size=32, mode="bilinear")
        reconstruction, _, quantizer_loss = model(images)
        error = nn.functional.mse_loss(reconstruction, images)
        optimizer.zero_grad()
        (error + quantizer_loss).backward()
        optimizer.step()
        errors.append(error.item())
    return errors


if __name__ == "__main__":
    errors = main()
    print(f"mean square error: first {errors[0]:.3f}, last {errors[-1]:.3f}")
