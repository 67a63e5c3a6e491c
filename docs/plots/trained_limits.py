"""Where trained codebooks lie: quantization error of GSQ models on real pictures beside a random code and the bound.

python docs/plots/trained_limits.py MODEL [MODEL ...] --data SOURCE [--pictures 500] [--size 64]
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F

from gsqtok import ImageTokenizer
from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.quantizers import GSQ
from gsqtok.quantizers.sphere import random_code_error, sphere_bound
from gsqtok.search import nearest


@torch.no_grad()
def error(tokenizer: ImageTokenizer, source: str, size: int, pictures: int) -> tuple[float, float]:
    """Mean squared chord from the latents' directions to their codewords', and to those of a random code."""
    quantizer = tokenizer.quantizer
    generator = torch.Generator().manual_seed(0)
    random = F.normalize(torch.randn(quantizer.codebook.shape, generator=generator), dim=-1).to(tokenizer.device)
    ours, others, count = 0.0, 0.0, 0
    for batch in eval_loader(open_source(source), ImageTransform(size), batch_size=50):
        images = batch["image"].to(tokenizer.device)
        latent = tokenizer.encoder(images).movedim(1, -1).unflatten(-1, (-1, quantizer.group_dim)).flatten(0, -2)
        latent = F.normalize(latent, dim=-1)
        for codebook in (F.normalize(quantizer.codebook, dim=-1), random):
            chord = (codebook[nearest(latent, codebook)] - latent).double().square().sum(-1).mean().item()
            if codebook is random:
                others += chord * len(images)
            else:
                ours += chord * len(images)
        count += len(images)
        if count >= pictures:
            break
    return ours / count, others / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="folders of trained tokenizers with a gsq quantizer")
    parser.add_argument("--data", required=True, help="pictures to encode")
    parser.add_argument("--size", type=int, default=64, help="they are resized and cropped to size x size pixels")
    parser.add_argument("--pictures", type=int, default=500)
    arguments = parser.parse_args()
    print("| model | G | d | V | bound, uniform | random, uniform | random, these latents | trained, these latents |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        tokenizer = ImageTokenizer.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
        quantizer = tokenizer.quantizer
        if not isinstance(quantizer, GSQ) or quantizer.norm != "l2":
            raise SystemExit(f"{name} has no gsq quantizer on the sphere")
        d, v = quantizer.group_dim, quantizer.codebook_size
        trained, random = error(tokenizer, arguments.data, arguments.size, arguments.pictures)
        figures = (sphere_bound(d, v), random_code_error(d, v), random, trained)
        print(f"| {name} | {quantizer.groups} | {d} | {v:,} | {' | '.join(f'{x:.3g}' for x in figures)} |")


if __name__ == "__main__":
    main()
