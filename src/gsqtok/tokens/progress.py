"""How far a run is: a bar for a person, metrics.jsonl for a machine."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gsqtok.tokens.chunk import Chunk

_EVERY = 10.0  # seconds between lines


class RunProgress:
    """Counts what one process has done, and says so.

    Args:
        folder: of the data set; lines are appended to its metrics.jsonl (of rank r: metrics-r.jsonl).
        images: that this process has still to do.
        rank: of this process; only rank 0 shows a bar.
    """

    def __init__(self, folder: Path, images: int, rank: int = 0) -> None:
        self.path = folder / (f"metrics-{rank}.jsonl" if rank else "metrics.jsonl")
        self.rank = rank
        self.total = images
        self.images = self.skipped = self.bytes_read = 0
        self.decode_seconds = 0.0
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("tokenizing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            speed_estimate_period=120,
            disable=rank > 0 or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=images, rates="")
        self.start = self.said = self.last = time.perf_counter()
        self.first: tuple[float, int] | None = None  # when the first chunk was finished, and its images

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.stop()
        self.write(finished=error is None)

    def add(self, chunk: Chunk) -> None:
        """A chunk is encoded."""
        self.images += len(chunk.images) + len(chunk.skipped)
        self.skipped += len(chunk.skipped)
        self.bytes_read += chunk.bytes_read
        self.decode_seconds += chunk.seconds
        self.last = time.perf_counter()
        self.first = self.first or (self.last, self.images)
        metrics = self.metrics()
        self.bar.update(self.task, completed=self.images, rates=_line(metrics))
        if time.perf_counter() - self.said > _EVERY:
            self.said = time.perf_counter()
            self.write()
            if self.rank == 0 and not self.console.is_terminal:
                left = metrics["seconds_left"]
                self.console.print(f"{self.images:,} of {self.total:,} images, {_line(metrics)}, {left:,.0f} s left")

    def metrics(self) -> dict[str, Any]:
        """What this process has done since it began; rates are per second.

        ``steady_images_per_second``: from the first finished chunk to the last, without starting and the last
        shard's writing. ``decoded_per_core_second``: of processor time.
        """
        elapsed = max(time.perf_counter() - self.start, 1e-9)
        rate = self.images / elapsed
        since, already = self.first or (self.last, 0)
        steady = (self.images - already) / (self.last - since) if self.last > since else None
        return {
            "images": self.images,
            "of": self.total,
            "skipped": self.skipped,
            "seconds": round(elapsed, 3),
            "images_per_second": round(rate, 3),
            "steady_images_per_second": steady and round(steady, 3),
            "bytes_per_second": round(self.bytes_read / elapsed),
            "seconds_left": round((self.total - self.images) / rate, 1) if rate else None,
            "decoded_per_core_second": round(self.images / self.decode_seconds, 1) if self.decode_seconds else None,
        }

    def write(self, **more: Any) -> None:
        """Append a line to metrics.jsonl."""
        with suppress(OSError), self.path.open("a") as file:  # of a full disk the shards' writer tells better
            file.write(json.dumps({"time": round(time.time(), 3), "rank": self.rank} | self.metrics() | more) + "\n")


def rate(per_second: float | None) -> str:
    """Write a rate so that a slow one is not 0: three digits, such as 12,300 or 0.0417."""
    digits = f"{per_second or 0:.3g}"
    return f"{float(digits):,.0f}" if float(digits) >= 100 else digits


def _line(metrics: dict[str, Any]) -> str:
    images, megabytes = rate(metrics["images_per_second"]), rate(metrics["bytes_per_second"] / 1e6)
    return f"{images} images/s  {megabytes} MB/s  {metrics['skipped']:,} skipped"
