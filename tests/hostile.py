"""Files that nobody would write by chance: seeded generators, and the rule that every command must keep with them.

Each generator takes a ``random.Random`` and writes one input below a folder. The rule: a command ends with one clear
line, or handles what it is given; it never ends in a traceback, hangs, takes memory without bound, runs code from a
file, or writes outside of its output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import resource
import signal
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gsqtok.cli import main

MEMORY = 3 << 30  # bytes that a command may take more than there are
SECONDS = 300  # after which a command is said to hang; none takes more than a few
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "PCX", "QOI", "MPO")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "LAB", "YCbCr")
NAMES = (
    *(
        "a.png",
        "-o.png",
        "--help.png",
        " .png",
        "..png",
        "a b\n.png",
        "\x1b[31mred.png",
        "*.png",
        "{1..3}.png",
        "~.png",
    ),
    *(
        "名前.png",
        "\u202egnp.exe.png",
        "a" * 240 + ".png",
        "%s%n.png",
        "<b>.png",
        "[bold].png",
        "a\\b.png",
    ),
    *("con.png", "\udcff.png", "é.png", "e\u0301.png", "A.PNG", "a.jpg", "a.png.png", "$(touch x).png", "a;b.png"),
)
MEMBERS = (
    *NAMES,
    "../out.png",
    "C:\\a.png",
    "/etc/out.png",
    "a/../../out.png",
    "./a.png",
    "a//b.png",
    "a/",
    "",
    ".",
    "..",
    "\0.png",
)
NUMBERS = (
    *("0", "-1", "1e400", "-0.0", "NaN", "Infinity", "1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 5000, "2147483648"),
    *("9223372036854775808", "1e-320", "0.5", "1e308"),
)
VALUES = (*NUMBERS, "null", "true", '""', "[]", "{}", "[[]]", '"a"', r'"\ud800"', r'"\u0000"', '"../../out"', '"a\\nb"')


class Canary:
    """A pickle that would leave a file behind if anybody ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Rule:
    """Runs commands below a folder and notes each that breaks the rule.

    Args:
        folder: all inputs lie in it; commands may write to ``folder / "out"`` alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.broken: list[str] = []
        self.statuses: list[int] = []
        self.errors: list[str] = []

    def run(self, *arguments: Any) -> None:
        """Run a command in this process."""
        words = list(map(str, arguments))
        before = self._files()
        printed, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said), _limits():
            try:
                status = main(words)
            except BaseException as error:
                self._note(words, f"{type(error).__name__}: {error}", error)
                return
        self.statuses.append(status)
        lines = said.getvalue().splitlines()
        errors = [line for line in lines if line.startswith("gsqtok ") and "error: " in line]
        self.errors += errors
        explained = errors or (status == 1 and printed.getvalue().strip())  # verify and validate list the problems
        if status not in (0, 1, 2):
            self._note(words, f"status {status}")
        elif status and (not explained or len(errors) > 1 or (errors and lines[-1] != errors[0])):
            self._note(words, f"status {status} without one line: {said.getvalue()[-500:]!r}")
        if any(len(line) > 1500 for line in errors):
            self._note(words, f"a line of {len(errors[0])} characters: {errors[0][:300]!r}")
        text = printed.getvalue() + said.getvalue()
        if "Traceback" in text or "\x1b" in text:
            self._note(words, f"it prints a traceback or a terminal's commands: {text[-800:]!r}")
        if changed := before ^ self._files():
            self._note(words, f"files outside: {sorted(changed)[:3]}")

    def _files(self) -> set[tuple[str, int]]:
        found = set()
        for root, folders, files in os.walk(self.folder):
            if Path(root) == self.folder:
                folders[:] = [name for name in folders if name != "out"]
            for name in [*folders, *files]:
                path = os.path.join(root, name)
                found.add((path, -1 if os.path.isdir(path) else os.lstat(path).st_size))
        return found

    def _note(self, words: list[str], problem: str, error: BaseException | None = None) -> None:
        where = ""
        if error is not None:
            trace = error.__traceback__
            while trace is not None:
                code = trace.tb_frame.f_code
                if "gsqtok" in code.co_filename:
                    where = f" at {Path(code.co_filename).name}:{trace.tb_lineno}"
                trace = trace.tb_next
        self.broken.append(f"{' '.join(words)!a}: {problem[:800]}{where}")


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """End what hangs, and what takes far more memory than there is need for."""

    def hangs(number: int, frame: Any) -> None:
        raise TimeoutError(f"still running after {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Bytes with a few faults."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not changed:
            break
        place = int(len(changed) * rng.random() ** rng.choice((1, 1, 3)))  # headers are worth more
        kind = rng.randrange(7)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)))
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            del changed[place : place + rng.randrange(1, 64)]
        elif kind == 4:
            changed[place:place] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 5:
            changed[place:place] = changed[place : place + rng.randrange(1, 256)]
        else:
            changed[place] = rng.randrange(256)
    return bytes(changed)


def image(rng: random.Random) -> bytes:
    """An image file of some format and mode, whole or damaged, or something else."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(
            (b"", b"\0", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"II*\0", b"P6 1 1 255 ")
        )
    if kind == 1:  # a header that promises more than there is
        big = rng.choice(
            (b"99999 99999 255\n", b"2147483647 1 255\n", b"1 -1 255\n", b"0 0 255\n", b"7 7 0\n", b"1e9 1\n")
        )
        return rng.choice((b"P6 ", b"P5 ", b"P4 ", b"Pf ", b"P7 ")) + big + rng.randbytes(64)
    size = rng.choice(((1, 1), (8, 8), (17, 3), (1, 300), (64, 40)))
    mode = rng.choice(MODES)
    pixels = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    buffer = io.BytesIO()
    for tried in (mode, "RGB"):
        with contextlib.suppress(Exception):  # not every format takes every mode
            options = rng.choice(({}, {"exif": rng.randbytes(40)}, {"icc_profile": rng.randbytes(200)}, {"quality": 5}))
            _converted(pixels, tried).save(buffer, rng.choice(FORMATS), **options)
            break
    data = buffer.getvalue()
    return data if kind == 2 else mutated(rng, data)


def _converted(pixels: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(pixels.convert("L")).astype(np.uint16) * 257)
    return pixels.convert("L").convert(mode) if mode in ("I", "F") else pixels.convert(mode)


def tar(rng: random.Random, folder: Path) -> Path:
    """A tar file with members of every kind, whole or damaged."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=rng.choice(("w", "w", "w:gz", "w:xz", "w:bz2"))) as archive:
        archive.format = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        for _ in range(rng.randrange(1, 8)):
            info = tarfile.TarInfo(rng.choice(MEMBERS))
            info.type = rng.choice((tarfile.REGTYPE,) * 6 + (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"Z"))
            info.linkname = rng.choice(("a.png", "/etc/passwd", "../../x", "", "a" * 300))
            data = rng.choice((image(rng), b"", b"caption", b"7", b"x" * 5000))
            info.size = len(data) if info.isreg() else 0
            if rng.random() < 0.2:
                info.name = info.name.removesuffix(".png") + rng.choice((".cls", ".txt", ".json", ".exe"))
            with contextlib.suppress(ValueError, UnicodeError):
                archive.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    if rng.random() < 0.3:  # a size in the first header, with its checksum made right
        header = bytearray(data[:512])
        header[124:136] = rng.choice(
            (b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"\xff" * 12, b"zzzzzzzzzzz\0")
        )
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data = bytes(header) + data[512:]
    path = folder / rng.choice(("s.tar", "s.tar", "s.tgz", "s.tar.xz"))
    path.write_bytes(data if rng.random() < 0.4 else mutated(rng, data))
    return path


def parquet(rng: random.Random, folder: Path) -> Path:
    """A parquet file whose image column has some type, whole or damaged."""
    count = rng.randrange(0, 6)
    images = [rng.choice((image(rng), image(rng), None)) for _ in range(count)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = ("/etc/passwd", "../../x.png", "\0", None, "a" * 5000)
    columns = rng.choice(
        (
            {"image": pa.array(images, pa.binary())},
            {"image": pa.array([None if i is None else {"bytes": i, "path": "a"} for i in images], struct)},
            {"image": pa.array([{"bytes": None, "path": rng.choice(paths)} for _ in images], struct)},
            {"image": pa.array([rng.choice(("a.png", "/etc/passwd", None)) for _ in images], pa.string())},
            {"image": pa.array([[1, 2]] * count, pa.list_(pa.uint8()))},
            {"image": pa.array([None] * count, pa.null())},
            {"img": pa.array(images, pa.binary()), "image": pa.array([1] * count)},
            {"image": pa.array(images, pa.large_binary()), "label": pa.array([2**63 - 1] * count)},
            {"image": pa.array(images, pa.binary()), "key": pa.array(["x"] * count), "tokens": pa.array([1] * count)},
            {"image": pa.array(images, pa.binary()).dictionary_encode()},
        )
    )
    buffer = io.BytesIO()
    table = pa.table(columns)
    if rng.random() < 0.3:
        features = rng.choice((b"{}", b"[", b'{"info": {"features": {"image": 3}}}', b"\xff", b'{"info": null}'))
        table = table.replace_schema_metadata({b"huggingface": features})
    pq.write_table(
        table, buffer, row_group_size=rng.choice((1, 3, 100)), compression=rng.choice(("snappy", "zstd", "none"))
    )
    path = folder / "s.parquet"
    path.write_bytes(buffer.getvalue() if rng.random() < 0.4 else mutated(rng, buffer.getvalue()))
    return path


def json_text(rng: random.Random, values: Any) -> str | bytes:
    """JSON with some values, names or bytes that are others."""
    values = json.loads(json.dumps(values))
    marks = []
    for number in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(values))
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("x", "", "name", "é\u2028", "a" * 2000))] = holder.pop(key)
        else:
            marks.append(f"\ue000{number}\ue000")
            holder[key] = marks[-1]
    text = json.dumps(values)
    for mark in marks:
        text = text.replace(
            json.dumps(mark), rng.choice((*VALUES, *VALUES, "[" * 5000 + "]" * 5000, json.dumps("a" * 9000)))
        )
    if rng.random() < 0.15:
        return mutated(rng, text.encode())
    return rng.choice((text,) * 20 + (text + text, text.encode("utf-16"), "\ufeff" + text, "", "null", "[]", "3"))


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield values, key
        yield from _places(values[key])


def yaml_text(rng: random.Random, text: str, canary: Path) -> str | bytes:
    """A recipe with lines that are others."""
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(lines))
        key = lines[place].partition(":")[0]
        value = rng.choice(
            (
                *VALUES,
                *(
                    f"!!python/object/apply:os.mkdir ['{canary}']",
                    "&a [*a]",
                    "*a",
                    "\t3",
                    "0128",
                    "2:08",
                    "0x10",
                    "1_000",
                ),
                *(
                    "[1, ",
                    "{a: 1",
                    "!!binary aGk=",
                    "2026-01-01",
                    "~",
                    ".inf",
                    "| \n  a",
                    "> a",
                    "'",
                    '"',
                    "? a",
                    "- - -",
                ),
                *(
                    "yes",
                    "!!set {a}",
                    "!x y",
                    "%",
                    "@",
                    "`",
                    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
                ),
            )
        )
        kind = rng.randrange(6)
        if kind == 0:
            lines[place : place + 1] = []
        elif kind == 1:
            lines.insert(place, lines[place])
        elif kind == 2:
            lines.insert(place, f"{rng.choice(('x', 'base', 'model', 'data', '<<', '1', 'true', ''))}: {value}")
        elif kind == 3:
            lines[place] = " " * rng.randrange(6) + lines[place]
        else:
            lines[place] = f"{key}: {value}"
        lines = lines or ["a"]
    text = "\n".join(lines)
    if rng.random() < 0.1:
        return mutated(rng, text.encode())
    return rng.choice((text,) * 20 + (text.encode("utf-16"), "", "---\n---\n", "a: " + "[" * 3000, bomb()))


def bomb() -> str:
    """A few lines of YAML that stand for gigabytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


def npz(rng: random.Random, whole: Path, path: Path, canary: Path) -> Path:
    """A file of tokens with entries, headers or bytes that are others."""
    with zipfile.ZipFile(whole) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(entries))
    kind = rng.randrange(8)
    if kind == 0:
        del entries[name]
    elif kind == 1:
        shape = rng.choice(
            ("(99999999, 99999999, 9)", "(-1, 2, 2)", "()", "(2**40,)", "(1,)*900", "(0, 4, 2)", "x", "(4, 4")
        )
        dtype = rng.choice(("'<u8'", "'|O'", "'<f4'", "'|S9'", "[('a', '<u2')]", "'<u2'", "'z'", "'<U999999999'"))
        header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
        header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
        entries[name] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + rng.randbytes(64)
    elif kind == 2:
        entries[name] = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        entries[name] = entries[name].ljust(127) + b"\n" + pickle.dumps(Canary(canary))
    elif kind == 3:
        buffer = io.BytesIO()
        values = rng.choice(
            (np.full((4, 4, 2), 2**63, np.uint64), np.full((4, 4, 2), -1), np.zeros((0, 0, 2), np.uint8))
        )
        np.save(buffer, rng.choice((values, np.zeros((4, 4, 999), np.uint8), np.ones((4, 4, 2)), np.array("{}"))))
        entries[name] = buffer.getvalue()
    elif kind in (4, 5):  # what the file says of itself
        meta = json.loads(str(np.load(whole)["__gsqtok__"]))
        text = json_text(rng, meta)
        buffer = io.BytesIO()
        np.save(buffer, np.array(text if isinstance(text, str) else text.decode("latin-1")))
        entries["__gsqtok__.npy"] = buffer.getvalue()
    elif kind == 6:
        entries[rng.choice((*MEMBERS, "../../x.npy", "/x.npy"))] = entries[name]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as archive:
        for entry, data in entries.items():
            with contextlib.suppress(UnicodeError, ValueError, IndexError):
                archive.writestr(entry, data)
    path.write_bytes(mutated(rng, buffer.getvalue()) if kind == 7 or rng.random() < 0.2 else buffer.getvalue())
    return path
