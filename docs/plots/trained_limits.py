"""Where trained codebooks lie: quantization error of GSQ models on real images beside a random code and the bound.

python docs/plots/trained_limits.py MODEL [MODEL ...] --data SOURCE [--images 500] [--size 64]
"""

from __future__ import annotations

import argparse

import torch

from gsqtok import ImageTokenizer
from gsqtok.data import ImageTransform, open_source
from gsqtok.quantizers import GSQ
from gsqtok.quantizers.sphere import random_code_error, random_sphere, sphere_bound
from gsqtok.studies.spherical_error import spherical_error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="folders of trained tokenizers with a gsq quantizer")
    parser.add_argument("--data", required=True, help="images to encode")
    parser.add_argument("--size", type=int, default=64, help="they are resized and cropped to size x size pixels")
    parser.add_argument("--images", type=int, default=500)
    arguments = parser.parse_args()
    print("| model | G | d | V | bound, uniform | random, uniform | random, these latents | trained, these latents |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        tokenizer = ImageTokenizer.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
        quantizer = tokenizer.quantizer
        if not isinstance(quantizer, GSQ) or quantizer.norm != "l2":
            raise SystemExit(f"{name} has no gsq quantizer on the sphere")
        d, v = quantizer.group_dim, quantizer.codebook_size
        measure = (tokenizer, open_source(arguments.data), ImageTransform(arguments.size), arguments.images)
        trained, random = spherical_error(*measure), spherical_error(*measure, codebook=random_sphere(d, v))
        errors = (sphere_bound(d, v), random_code_error(d, v), random, trained)
        print(f"| {name} | {quantizer.groups} | {d} | {v:,} | {' | '.join(f'{x:.3g}' for x in errors)} |")


if __name__ == "__main__":
    main()
