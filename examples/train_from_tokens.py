"""Train a small masked transformer on a token data set, and draw images from it (MaskGIT, Chang et al. 2022).

    gsqtok tokenize images/ -o tokens/ --size 64
    python examples/train_from_tokens.py tokens/ --steps 2000 --output samples.png

All groups share a position: their embeddings are added up, and the network predicts each group by a head of its own.
"""

import argparse
import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gsqtok import TokenDataset
from gsqtok.data import EpochSampler, to_pil


class MaskedTransformer(nn.Module):
    """Tokens (B, L, G) with an offset for each group, some masked, to logits (B, L, G, V)."""

    def __init__(self, length: int, groups: int, codebook_size: int, width: int, depth: int) -> None:
        super().__init__()
        self.groups, self.mask = groups, groups * codebook_size  # special tokens begin where the vocabulary ends
        self.tokens = nn.Embedding(groups * codebook_size + 1, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, groups * codebook_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, G), masked places hold ``mask`` -> logits (B, L, G, V)."""
        hidden = self.layers(self.tokens(tokens).sum(-2) + self.positions)
        return self.head(hidden).unflatten(-1, (self.groups, -1))

    @torch.no_grad()
    def sample(self, number: int, steps: int = 12) -> torch.Tensor:
        """Fill in all positions, the surest first, on the cosine schedule."""
        length, device = len(self.positions), self.positions.device
        tokens = torch.full((number, length, self.groups), self.mask, device=device)
        for step in range(1, steps + 1):
            probabilities = self(tokens).softmax(-1)
            drawn = torch.distributions.Categorical(probabilities).sample()
            sure = probabilities.gather(-1, drawn[..., None]).log().sum((-1, -2))
            known = tokens[..., 0] != self.mask
            keep = length - int(length * math.cos(step / steps * math.pi / 2))
            best = sure.masked_fill(known, torch.inf).topk(max(1, keep), 1).indices
            known = torch.zeros_like(known).scatter(1, best, True)
            offset = torch.arange(self.groups, device=device) * probabilities.shape[-1]
            filled = torch.where(tokens == self.mask, drawn + offset, tokens)
            tokens = torch.where(known[..., None], filled, self.mask)
        return tokens


def main(argv: list[str] | None = None) -> float:
    """Train, and return the last loss in bits a token."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tokens", help="a token data set of one image size")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--learning-rate", type=float, default=5e-4)
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--depth", type=int, default=6)
    p.add_argument("--output", help="draw 16 images into this file")
    args = p.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset = TokenDataset(args.tokens, vocabulary="offset")
    height, width, groups = dataset[0]["tokens"].shape
    codebook_size = dataset.layout.codebook_size
    model = MaskedTransformer(height * width, groups, codebook_size, args.width, args.depth).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, betas=(0.9, 0.95))
    loader = DataLoader(dataset, batch_sampler=EpochSampler(len(dataset), args.batch_size), num_workers=0)
    bits = float("nan")
    for step, batch in enumerate(itertools.islice(loader, args.steps), 1):
        tokens = batch["tokens"].flatten(1, 2).to(device)
        share = torch.cos(torch.rand(len(tokens), 1, device=device) * torch.pi / 2)
        masked = torch.rand(tokens.shape[:2], device=device) < share
        masked[:, 0] |= ~masked.any(1)
        logits = model(tokens.masked_fill(masked[..., None], model.mask))
        targets = tokens - torch.arange(groups, device=device) * codebook_size
        loss = F.cross_entropy(logits[masked].flatten(0, 1), targets[masked].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits = loss.item() / math.log(2)
        if step % 100 == 0 or step == args.steps:
            print(f"step {step}: {bits:.3f} bits a token")
    if args.output:
        from torchvision.utils import make_grid

        drawn = model.eval().sample(16).unflatten(1, (height, width))
        to_pil(make_grid(dataset.decode(drawn), 4, pad_value=1.0)).save(args.output)
    return bits


if __name__ == "__main__":
    main()
