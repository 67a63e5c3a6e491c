"""Arguments that several verbs share, and what they turn into."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import torch

    from gsqtok.data import ImageTransform
    from gsqtok.tokenizer import ImageTokenizer

# File names may look like rich's markup; and a line that another program reads must not be wrapped.
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, markup=False, emoji=False)

SOURCE = "a folder of images (with its subfolders), an image, parquet files, tar shards, a quoted glob, or a hub name"
MODEL = (
    "a tokenizer's folder, a training run's folder, an official GSQ checkpoint.pt or a hub name "
    "(default: the tokenizer inside the package)"
)


def show_warnings() -> None:
    """The library's warnings go to the terminal."""
    logging.basicConfig(
        level="WARNING", format="%(message)s", handlers=[RichHandler(console=messages, show_path=False)]
    )


def parser(verb: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with an example; warnings of the library go to the terminal."""
    show_warnings()
    return argparse.ArgumentParser(
        prog=f"gsqtok {verb}",
        description=summary,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    """[MODEL], and where it runs; ``more`` says what else may be named."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL + more)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")


def add_source(parser: argparse.ArgumentParser) -> None:
    """SOURCE, and how its images are prepared."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--split", help="split of the source, where it has several")
    parser.add_argument("--size", type=int, help="resize the short side to so many pixels (default: as they are)")
    parser.add_argument("--crop", action="store_true", help="with --size: cut out the central square")
    parser.add_argument("--batch-size", type=int, default=8, help="images of equal size that go together (default: 8)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: 0)")


def add_tile(parser: argparse.ArgumentParser) -> None:
    """--tile."""
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="for images too large for the device: compute N x N positions of a layer at a time (even, such as 512), "
        "and keep the rest in host memory; the result is that of the whole (default: whole images)",
    )


def device(args: argparse.Namespace) -> torch.device:
    """The device that ``add_model`` names; by default a GPU if there is one."""
    import torch

    name = args.device
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{name}' is not there: {str(error).splitlines()[0]}") from error
    return device


def load_model(args: argparse.Namespace) -> ImageTokenizer:
    """The tokenizer that ``add_model`` names, on its device."""
    from gsqtok.tokenizer import ImageTokenizer

    where = device(args)
    return ImageTokenizer.from_pretrained(args.model).to(where)


def transform(args: argparse.Namespace) -> ImageTransform:
    """The transform that ``add_source`` names."""
    from gsqtok.data import ImageTransform

    if args.crop and args.size is None:
        raise ValueError("--crop needs --size")
    return ImageTransform(args.size, crop="center" if args.crop else "none")


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
