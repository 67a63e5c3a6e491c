"""gsqtok tokens."""

from __future__ import annotations

import argparse

from gsqtok.cli.options import add_model, add_tile, console, load_model, progress, show_warnings

EXAMPLE = """example:
  gsqtok tokens info tokens/
  gsqtok tokens verify tokens/ --sample 16 -o decoded/
  gsqtok tokens merge part-a/ part-b/ -o all/
  gsqtok tokens split all/ 0.95 -o train/ validation/"""


def main(argv: list[str]) -> int | None:
    """Look at token data sets, prove that they are whole, put together and divide them."""
    show_warnings()
    p = argparse.ArgumentParser(
        prog="gsqtok tokens",
        description="Token data sets, written by gsqtok tokenize.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    a = actions.add_parser("info", help="say what it is")
    a.add_argument("folder", metavar="TOKENS")
    a = actions.add_parser("verify", help="prove that it is whole, and decode a sample")
    add_model(a)
    a.add_argument("folder", metavar="TOKENS")
    a.add_argument("--sample", type=int, default=4, metavar="N", help="rows to decode (default: 4)")
    a.add_argument("-o", "--output", metavar="FOLDER", help="write the decoded images there")
    add_tile(a)
    a = actions.add_parser("merge", help="put several together")
    a.add_argument("folders", nargs="+", metavar="TOKENS")
    a.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the new data set")
    a.add_argument("--prefix", action="store_true", help="put each folder's name before its keys")
    a = actions.add_parser("split", help="divide one in two at random, by images")
    a.add_argument("folder", metavar="TOKENS")
    a.add_argument("fraction", type=float, help="of the images, for the first")
    a.add_argument("-o", "--output", required=True, nargs=2, metavar=("FIRST", "SECOND"), help="the new data sets")
    a.add_argument("--seed", type=int, default=0, help="another seed, another division (default: 0)")
    args = p.parse_args(argv)
    return {"info": _info, "verify": _verify, "merge": _merge, "split": _split}[args.action](args)


def _info(args: argparse.Namespace) -> None:
    from gsqtok.tokens.dataset import describe

    rows = describe(args.folder)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}")


def _verify(args: argparse.Namespace) -> int:
    from gsqtok.data import to_pil
    from gsqtok.io import image_paths, save_image
    from gsqtok.tokens.manifest import read_manifest
    from gsqtok.tokens.verify import decode_sample, verify

    manifest = read_manifest(args.folder)
    with progress("verifying") as bar:
        task = bar.add_task("", total=len(manifest["units"]))
        problems = verify(args.folder, lambda units: bar.advance(task, units))
    for problem in problems:
        console.print(problem)
    if problems:
        console.print(f"{args.folder}: {len(problems)} problems")
        return 1
    console.print(
        f"{args.folder} is whole: {manifest['images']:,} images in {manifest['rows']:,} rows, "
        f"{manifest['skipped']['rows']:,} skipped, every hash as written"
    )
    if args.sample > 0 and manifest["rows"]:
        args.model = args.model or manifest["model"]
        sample = decode_sample(args.folder, load_model(args), args.sample, tile=args.tile)
        if args.output:
            paths = image_paths(
                args.output, [f"{i:04d}-{key.replace('/', '_')}" for i, (key, _, _) in enumerate(sample)]
            )
            for (_, _, image), path in zip(sample, paths.values(), strict=True):
                save_image(to_pil(image), path)
        where = f" -> {args.output}" if args.output else ""
        console.print(f"decoded {len(sample)} of them{where}")
    return 0


def _merge(args: argparse.Namespace) -> None:
    from gsqtok.tokens.edit import merge

    manifest = merge(args.folders, args.output, prefix=args.prefix)
    console.print(f"{manifest['images']:,} images, {manifest['rows']:,} rows -> {args.output}")


def _split(args: argparse.Namespace) -> None:
    from gsqtok.tokens.edit import split

    for manifest, output in zip(
        split(args.folder, tuple(args.output), args.fraction, args.seed), args.output, strict=True
    ):
        console.print(f"{manifest['images']:,} images, {manifest['rows']:,} rows -> {output}")
