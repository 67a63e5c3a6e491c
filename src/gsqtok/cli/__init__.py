"""The command line: one verb, one file. Nothing heavy is imported before a verb is known."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from importlib import import_module

from gsqtok import __version__

VERBS = {
    "demo": "tokenize and reconstruct the images that come with the package",
    "info": "what a tokenizer, or a file of tokens, is",
    "reconstruct": "images through the tokenizer and back, with PSNR and SSIM",
    "encode": "a few images to one file of tokens",
    "decode": "a file of tokens to images",
    "tokenize": "images to a token data set: resumable shards for generative models",
    "tokens": "look at, verify, merge and split token data sets",
    "evaluate": "measure a tokenizer on a set of images",
    "compare": "results of evaluations beside each other, as a table and a report",
    "train": "train a tokenizer on images",
    "study": "the paper's experiments and its open questions, with results, plots and a page",
    "plan": "the quantizers' settings that spend the same bits a pixel",
    "convert": "a checkpoint of the official GSQ implementation to a tokenizer of this package",
    "export": "a tokenizer to ONNX or torch.export, verified",
    "app": "a page in the browser to look at images and their tokens",
    "recipes": "list and copy the training recipes",
}


def main(argv: list[str] | None = None) -> int:
    """Run ``gsqtok VERB ...``; returns the exit status: 0, 1 for an error that a user can mend, 2 for wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"gsqtok {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        from difflib import get_close_matches

        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "see gsqtok --help"
        print(f"gsqtok: no command '{verb}'; {hint}", file=sys.stderr)
        return 2
    atexit.register(gc.freeze)  # else the interpreter goes through all of PyTorch's objects before it ends
    try:
        return import_module(f"gsqtok.cli.{verb}").main(argv[1:]) or 0
    except KeyboardInterrupt:
        print(f"gsqtok {verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stdout = None
        return 0
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("GSQTOK_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"gsqtok {verb}: error: {message}", file=sys.stderr)
        if isinstance(error, RuntimeError):  # the others explain themselves
            print("GSQTOK_TRACEBACK=1 shows where it happened", file=sys.stderr)
        return 1


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return f"""usage: gsqtok COMMAND ...

Image tokenizers with Grouped Spherical Quantization.

commands:
{verbs}

gsqtok COMMAND --help explains one; gsqtok --version. Start with:
  gsqtok demo
  gsqtok encode images/ -o tokens.npz
  gsqtok train small --data.train images/ --output runs/mine"""
