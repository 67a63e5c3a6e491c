"""What several commands share: the help of their common options, and what these turn into."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, ConsoleRenderable
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gsqtok.io import printable

if TYPE_CHECKING:
    import torch

    from gsqtok.data import ImageTransform
    from gsqtok.tokenizer import ImageTokenizer


class _Console(Console):
    """Prints texts without what a terminal would obey: names may come from anybody's file."""

    def print(self, *objects: Any, **options: Any) -> None:
        texts = ("\n".join(map(printable, o.split("\n"))) if isinstance(o, str) else o for o in objects)
        super().print(*texts, **options)


class _LogHandler(RichHandler):
    def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
        return super().render_message(record, printable(message))


# File names may look like rich's markup; and a line that another program reads must not be wrapped.
console = _Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
messages = _Console(stderr=True, highlight=False, markup=False, emoji=False)

command = "gsqtok"  # the whole command line, for what goes on record

Precision = Literal["float32", "bfloat16", "float16"]

# Help of the parameters that mean the same in every command; a command's docstring may say more.
SHARED = {
    "model": "a tokenizer's folder, a training run's folder, a checkpoint of another project (FAMILY:FILE names its "
    "family, see docs/published.md) or a hub name (default: the tokenizer inside the package)",
    "source": "a folder of images (with its subfolders), an image, parquet files, tar shards, a quoted glob, or a hub "
    "name",
    "split": "split of the source, where it has several",
    "size": "resize the short side to this many pixels (default: as they are)",
    "crop": "center: with --size, cut out the central square",
    "batch_size": "images of equal size that are processed together",
    "workers": "processes that read images",
    "tile": "for images too large for the device: compute N x N positions of a layer at a time (even, such as 512) and "
    "keep the rest in host memory; the result is that of the whole image (default: whole images)",
    "prior": "a prior's folder, or that of the run of gsqtok prior train",
    "allow_code": "run the program in a checkpoint of TorchScript (Cosmos DI): only if you trust who made it",
    "device": "cpu, cuda, cuda:1, mps (default: a GPU if there is one)",
    "precision": "of the tokenizer's weights",
    "recipe": "a YAML file, or the name of a recipe that comes with the package (gsqtok recipes ls)",
}


def show_warnings() -> None:
    """Send the library's warnings to the terminal."""
    logging.basicConfig(
        level="WARNING", format="%(message)s", handlers=[_LogHandler(console=messages, show_path=False)]
    )


def resolve_device(name: str | None) -> torch.device:
    """The device of this name; without one a GPU if there is one.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device '{name}': {str(error).splitlines()[0]}") from error
    return device


def load_model(model: str | None, device: str | None, *, allow_code: bool = False) -> ImageTokenizer:
    """The tokenizer that ``model`` names, on its device; with ``allow_code`` it may be a program."""
    from gsqtok.tokenizer import ImageTokenizer

    where = resolve_device(device)
    return ImageTokenizer.from_pretrained(model, allow_code=allow_code).to(where)


def describe_tokens(tokenizer: ImageTokenizer) -> str:
    """How many tokens there are and where, in a few words."""
    quantizer = tokenizer.quantizer
    if tokenizer.layout == "sequence":
        size = tokenizer.size
        return f"{tokenizer.length} tokens of {quantizer.codebook_size:,} codewords for {size} x {size} pixels"
    return f"f{tokenizer.factor}, {quantizer.tokens_per_position} x {quantizer.codebook_size:,} codewords a position"


def make_transform(size: int | None, crop: Literal["none", "center"]) -> ImageTransform:
    """The transform that --size and --crop name."""
    from gsqtok.data import ImageTransform

    if crop != "none" and size is None:
        raise ValueError("--crop needs --size")
    return ImageTransform(size, crop=crop)


def check_output_file(path: str, *, suffix: str = "", source: str | None = None) -> None:
    """Refuse, before any work, a file that cannot be written or that would replace the source.

    Raises:
        ValueError: it has another suffix, is a folder, or is the source itself.
        OSError: its folder cannot be made or written to.
    """
    target = Path(path)
    if suffix and target.suffix != suffix:
        raise ValueError(f"--output must end in {suffix}, got {path}")
    if target.is_dir():
        raise ValueError(f"--output must be a file, but {path} is a folder")
    if source is not None and target.exists() and Path(source).exists() and target.samefile(source):
        raise ValueError(f"--output is the source itself: {path}; choose another file")
    _check_writable(target.parent)


def check_output_folder(path: str, *, source: str | None = None) -> None:
    """Refuse, before any work, a folder that cannot be written, or the folder that the images come from.

    Raises:
        ValueError: it is a file, or it is the source or lies inside it.
        OSError: it cannot be made or written to.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ValueError(f"--output must be a folder, but {path} is a file")
    if source is not None:
        from gsqtok.data import check_outside

        check_outside(source, path)
    _check_writable(target)


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to; choose another --output")


def progress(what: str) -> Progress:
    """A progress bar on standard error, gone when done."""
    return Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
    )


def count(dataset: object) -> int | None:
    """How many images a source holds; None where only reading would tell."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return None


def print_rows(rows: list[tuple[str, Any]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}")
