"""The images that a result shows: the best, the median and the worst by PSNR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gsqtok.data import eval_loader, to_pil
from gsqtok.evaluation.protocol import EvaluationTransform
from gsqtok.evaluation.result import Result
from gsqtok.evaluation.run import Reconstruction
from gsqtok.io import atomic_write, save_image

EACH = 4


@torch.no_grad()
def save_examples(
    reconstruct: Callable[[torch.Tensor], Reconstruction],
    dataset: Any,
    transform: EvaluationTransform,
    result: Result,
    path: str | Path,
    device: torch.device | str = "cpu",
    like: Result | None = None,
) -> None:
    """Reconstruct a few images of a result again, write them beside its file, and name them in ``result.images``.

    For ``path`` ``a/NAME.json`` they go to ``a/NAME.images/``: originals and reconstructions as PNG, tokens (where
    there are any) as ``tokens`` of a numpy archive.

    Args:
        reconstruct: as `gsqtok.evaluation.measure` takes it.
        dataset: what was measured.
        transform: what prepared the images.
        result: ``images`` is set; `Result.save` comes after.
        path: where the result will be written.
        device: where images are handed to ``reconstruct``.
        like: show the images that this result shows, so that a report has them beside each other; ``ranked_by``
            then names whose best, median and worst they are.

    Raises:
        ValueError: none of the images that ``like`` shows were measured.
    """
    prepared: Any = transform
    path = Path(path)
    folder = path.with_name(f"{path.stem}.images")
    keys = result.per_image["key"]
    if like is None:
        chosen, ranked_by = choose(keys, result.per_image["psnr"]), result.model["name"]
    else:
        measured, ranked_by = set(keys), like.model["name"]
        chosen = {image["key"]: image["rank"] for image in like.images if image["key"] in measured}
        if not chosen:
            raise ValueError(f"none of the {len(like.images)} images that the other result shows were measured")
    numbers = {key: number for number, key in enumerate(chosen, 1)}
    found = {}
    for batch in eval_loader(dataset, prepared, batch_size=1, keys=chosen):
        (key,) = batch["keys"]
        rank, number = chosen[key], numbers[key]
        out = reconstruct(batch["image"].to(device))
        names = {part: f"{number:02}-{rank}-{part}.png" for part in ("original", "reconstruction")}
        save_image(to_pil(batch["image"][0]), folder / names["original"])
        save_image(to_pil(out.images[0]), folder / names["reconstruction"])
        if out.tokens is not None:
            names["tokens"] = f"{number:02}-{rank}-tokens.npz"
            with atomic_write(folder / names["tokens"]) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, tokens=out.tokens[0].cpu().numpy())
        paths = {part: f"{folder.name}/{name}" for part, name in names.items()}
        found[key] = {"key": key, "rank": rank, "ranked_by": ranked_by, **paths}
    result.images = [found[key] for key in chosen if key in found]


def choose(keys: list[str], psnr: list[float]) -> dict[str, str]:
    """Rank the best, the median and the worst images, `EACH` of them, or fewer of fewer than 12 images.

    Returns:
        Key -> "best", "median" or "worst", in this order, the most telling first; no image is ranked twice.
    """
    order = [key for _, key in sorted((-value, key) for value, key in zip(psnr, keys, strict=True))]
    each = min(EACH, max(1, len(order) // 3))
    middle = (len(order) - each) // 2
    chosen = dict.fromkeys(order[:each], "best")
    worst = {key: "worst" for key in order[::-1][:each] if key not in chosen}
    median = {key: "median" for key in order[middle : middle + each] if key not in chosen and key not in worst}
    return chosen | median | worst
