"""A small autoregressive transformer over token grids: trains on the CPU for a minute, then samples an image.

python examples/autoregressive.py sample.png
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from gsqtok import ImageTokenizer
from gsqtok.data import ImageTransform, eval_loader, open_source, to_pil


class Transformer(nn.Module):
    """Predicts all tokens of a position from the positions before; each group has a table and a head of its own."""

    def __init__(self, codebook_size: int, groups: int, positions: int, width: int = 192, layers: int = 3) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(codebook_size, width) for _ in range(groups))
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, positions, width))
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.heads = nn.Linear(width, groups * codebook_size)

    def forward(self, tokens):
        """Tokens (B, n, G) of the first n positions -> logits (B, n + 1, G, V) of these and the next."""
        x = sum(table(tokens[..., g]) for g, table in enumerate(self.tables))
        x = torch.cat([self.start.expand(len(tokens), -1, -1), x], 1)
        x = x + self.place[:, : x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.heads(self.body(x, mask, is_causal=True)).unflatten(-1, (len(self.tables), -1))


def grids(tokenizer, images, size: int):
    """Tokens (N, h, w, G) of the central squares of a source's images."""
    loader = eval_loader(open_source(images), ImageTransform(size, crop="center"), batch_size=8)
    return torch.cat([tokenizer.encode(batch["image"]) for batch in loader])


def main(images="src/gsqtok/demo_images", size: int = 64, steps: int = 150):
    """Train on a source of images and sample one: (losses in nats per token, image (3, size, size))."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_pretrained()
    tokens = grids(tokenizer, images, size)
    _, h, w, groups = tokens.shape
    flat, losses = tokens.flatten(1, 2), []
    model = Transformer(tokenizer.quantizer.codebook_size, groups, h * w)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = flat[torch.randint(len(flat), (8,))]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 2), batch.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    sample = flat[:1, :0]
    with torch.no_grad():
        for _ in range(h * w):
            probabilities = model(sample)[0, -1].softmax(-1)  # (G, V)
            sample = torch.cat([sample, torch.multinomial(probabilities, 1).view(1, 1, groups)], 1)
        return losses, tokenizer.decode(sample.view(1, h, w, groups))[0]


if __name__ == "__main__":
    losses, image = main()
    print(f"nats per token: first {losses[0]:.2f}, last {losses[-1]:.2f}")
    to_pil(image).save(sys.argv[1] if len(sys.argv) > 1 else "sample.png")
