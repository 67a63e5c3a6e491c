"""Cosmos' discrete image tokenizers (NVIDIA 2024, arXiv 2501.03575), which are published as TorchScript.

A folder holds ``encoder.jit`` and ``decoder.jit``. TorchScript is a program: what is in the files runs, so they are
opened only where the caller allows that. The programs are taken as they are: the first gives (indices, codewords, ...)
of images, the second makes images of indices. Codewords are of finite scalar quantization (FSQ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gsqtok.io import one_line, sha256_of
from gsqtok.published.registry import Family, register
from gsqtok.published.source import Source
from gsqtok.quantizers.fsq import FSQ
from gsqtok.tokenizer import CheckpointError, ImageTokenizer, Parts

if TYPE_CHECKING:
    from typing_extensions import Self

FAMILY = "cosmos_di"
ENCODER, DECODER = "encoder.jit", "decoder.jit"
PROBE = 64  # pixels a side of the image that tells the factor: a multiple of all that are published


class Script(nn.Module):
    """A program of TorchScript. It keeps its types, which its code may name; only its device changes."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.script.to(fn(torch.empty(0, device=next(self.parameters()).device)).device)
        return self


class Encoder(Script):
    """Images (B, 3, H, W) in [-1, 1] to codewords (B, D, h, w)."""

    def forward(self, images: Tensor) -> Tensor:
        """The second of what the program returns: each channel of a codeword is a level, from -1 to 1."""
        codewords: Tensor = self.script(images)[1]
        return codewords.float()


class Decoder(Script):
    """Codewords (B, D, h, w) to images (B, 3, H, W), about [-1, 1], not clamped.

    Args:
        script: the program, on int32 indices (B, h, w).
        quantizer: whose indices these are.
    """

    def __init__(self, script: Any, quantizer: FSQ) -> None:
        super().__init__(script)
        self.indices = quantizer.quantize

    def forward(self, quantized: Tensor) -> Tensor:
        """The images."""
        images: Tensor = self.script(self.indices(quantized.float().movedim(1, -1)).indices[..., 0].int())
        return images.float()


@dataclass(eq=False, repr=False, kw_only=True)
class Levels(FSQ):
    """FSQ whose latents are codewords already: the level of each channel is only read off."""

    name = "levels"

    def bound(self, latent: Tensor) -> Tensor:
        """See ``FSQ.bound``."""
        counts, _ = self._grid(latent)
        return latent * (counts // 2)


@dataclass(frozen=True)
class ScriptConfig:
    """The programs, and what they do not say of themselves."""

    folder: Path
    levels: tuple[int, ...]
    factor: int

    def build(self) -> Parts:
        """Load the programs, which runs code from their files."""
        quantizer = Levels(len(self.levels), levels=self.levels)
        decoder = Decoder(_load(self.folder / DECODER), quantizer)
        return Parts(Encoder(_load(self.folder / ENCODER)), quantizer, decoder, self.factor)

    def to_dict(self) -> dict[str, Any]:
        """As the tokenizer's fingerprint counts it."""
        digests = {Path(name).stem: sha256_of(self.folder / name) for name in (ENCODER, DECODER)}
        return {"family": FAMILY, "options": {"levels": list(self.levels), "factor": self.factor}, **digests}

    def summary(self) -> str:
        """The networks in a few words."""
        return f"Cosmos DI {self.factor}x{self.factor}, TorchScript"


def is_script(path: Path) -> bool:
    """Whether these are programs of TorchScript: a file of that suffix, or a folder with an encoder's."""
    return path.suffix == ".jit" or (path / ENCODER).is_file()


def open_scripts(path: Path, options: Mapping[str, Any], allow_code: bool) -> ImageTokenizer:
    """Open a folder with the two programs, or one of its files.

    Args:
        path: the folder or a file in it.
        options: ``levels`` of each channel, where the program does not hold them.
        allow_code: run what is in the files.

    Raises:
        CheckpointError: not allowed, a file is missing or no such program, nothing tells the levels.
        ValueError: no such option.
    """
    folder = path if path.is_dir() else path.parent
    if unknown := sorted(options.keys() - {"levels"}):
        raise ValueError(f"{FAMILY} takes no option '{unknown[0]}' for {path}; it takes levels")
    if not allow_code:
        raise CheckpointError(
            f"{path} is TorchScript, a program that runs when it is opened: if you trust who made it, pass "
            "allow_code=True (--allow-code on the command line)"
        )
    for name in (ENCODER, DECODER):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} holds no {name}: the encoder and the decoder of one tokenizer belong there"
            )
    encoder = _load(folder / ENCODER)
    levels = options.get("levels", encoder.state_dict().get("quantizer._levels"))
    if levels is None:
        raise CheckpointError(
            f"{folder / ENCODER}: it does not hold the levels of its channels (quantizer._levels): add them, as in "
            "?levels=8,8,8,5,5,5"
        )
    weight = next(encoder.parameters())
    try:
        with torch.no_grad():
            indices, codewords, *_ = encoder(torch.zeros(1, 3, PROBE, PROBE, dtype=weight.dtype))
        tokenizer = ImageTokenizer(ScriptConfig(folder, tuple(int(n) for n in levels), PROBE // indices.shape[-1]))
        fits = codewords.shape[1] == len(tokenizer.config.levels)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = one_line(error)[-300:]
        raise CheckpointError(f"{folder / ENCODER} gives no (indices, codewords, ...) of images: {reason}") from error
    if not fits:
        raise CheckpointError(f"{folder / ENCODER}: its codewords have {codewords.shape[1]} channels, levels {levels}")
    return tokenizer.eval()


def _load(file: Path) -> Any:
    try:
        return torch.jit.load(file, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} is no TorchScript: {one_line(error)[:200]}") from error


def _options(source: Source, *, levels: Sequence[int] | None = None) -> dict[str, Any]:
    raise CheckpointError(f"{source.path} holds weights, and {FAMILY} is a folder with {ENCODER} and {DECODER}")


register(
    Family(
        name=FAMILY,
        title="Cosmos' discrete tokenizer",
        matches=lambda source: False,
        configure=_options,
        names=lambda options: lambda name: [name],
    )
)
