"""All images of a source to tokens, in batches of equal size, and back from the file.

python examples/batch_encode.py images/ tokens.npz
"""

import sys

import torch

from gsqtok import ImageTokenizer
from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.tokens import TokenArchive, TokenArchiveWriter


def main(images: str, path: str, model: str | None = None, size: int = 128) -> int:
    """Encode central squares of ``size`` pixels; returns how many images are in the file."""
    tokenizer = ImageTokenizer.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
    loader = eval_loader(open_source(images), ImageTransform(size, crop="center"), batch_size=32)
    with TokenArchiveWriter(path, tokenizer) as archive:
        for batch in loader:
            tokens = tokenizer.encode(batch["image"].to(tokenizer.device))
            for name, grid in zip(batch["keys"], tokens, strict=True):
                archive.add(name, grid, (size, size))
    return len(TokenArchive(path))


if __name__ == "__main__":
    print(f"{main(*sys.argv[1:])} images")
