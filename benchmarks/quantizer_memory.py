"""Extra memory of one GSQ lookup on the CPU, beside that of the full-matrix formula.

    python benchmarks/quantizer_memory.py                 # N = 16,384, V = 262,144, d = 8
    python benchmarks/quantizer_memory.py --matrix-n 1024 # how many rows the full matrix is really run with

Each measurement runs in a process of its own, as the growth of its peak resident memory over what it held before the
lookup. The full matrix does not fit an ordinary machine at the full N (17 GB for the scores alone), so it is run with
fewer rows, compared with its formula N x V x 4 bytes, and the formula gives the size at the full N.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

MEASURE = "--measure"


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(method: str, n: int, v: int, d: int) -> None:
    """Print the extra MiB and the seconds of one lookup."""
    import torch

    from gsqtok import GSQ

    torch.manual_seed(0)
    quantizer = GSQ(dim=d, codebook_size=v).eval()
    latents = torch.randn(n, d)
    quantizer(latents[:8])  # what libraries set aside on first use is not the lookup's
    before, start = peak_mib(), time.perf_counter()
    with torch.no_grad():
        if method == "gsqtok":
            quantizer(latents)
        else:
            unit = torch.nn.functional.normalize
            (unit(latents, dim=-1) @ unit(quantizer.codebook, dim=-1).T).argmax(-1)
    print(f"{peak_mib() - before:.1f} {time.perf_counter() - start:.2f}")


def run(method: str, n: int, v: int, d: int) -> tuple[float, float]:
    """Extra MiB and seconds, measured in a fresh process."""
    command = [sys.executable, __file__, MEASURE, method, str(n), str(v), str(d)]
    mib, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(mib), float(seconds)


def main() -> None:
    """Measure both and print the ratio."""
    if len(sys.argv) > 1 and sys.argv[1] == MEASURE:
        measure(sys.argv[2], *map(int, sys.argv[3:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16_384)
    parser.add_argument("--v", type=int, default=262_144)
    parser.add_argument("--d", type=int, default=8)
    parser.add_argument("--matrix-n", type=int, default=1024)
    from table import Table, add_json

    add_json(parser)
    args = parser.parse_args()
    ours, seconds = run("gsqtok", args.n, args.v, args.d)
    matrix, _ = run("matrix", args.matrix_n, args.v, args.d)
    formula, full = (n * args.v * 4 / 2**20 for n in (args.matrix_n, args.n))
    columns = {"way": ("way", ""), "n": ("N", ",d"), "v": ("V", ",d"), "d": ("d", "d"), "mib": ("extra, MiB", ",.1f")}
    table = Table(columns | {"formula_mib": ("by formula", ",.0f"), "ratio": ("ratio", ",.0f"), "s": ("s", ".1f")})
    shape = {"v": args.v, "d": args.d}
    table.add(shape | {"way": "gsqtok", "n": args.n, "mib": ours, "ratio": 1.0, "s": seconds})
    table.add(shape | {"way": "full matrix", "n": args.matrix_n, "mib": matrix, "formula_mib": formula})
    table.add(shape | {"way": "full matrix", "n": args.n, "formula_mib": full, "ratio": full / max(ours, 0.1)})
    table.write(args.json, "cpu")


if __name__ == "__main__":
    main()
