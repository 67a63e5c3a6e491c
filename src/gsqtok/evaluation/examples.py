"""The images that a result shows: the best, the median and the worst by PSNR."""

from __future__ import annotations

from collections import Counter
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
    if like is None:
        chosen, ranked_by = choose(result.per_image["key"], result.per_image["psnr"]), result.model["name"]
    else:
        chosen, ranked_by = shown_by(like, result.per_image["key"]), like.model["name"]
    found = {}
    for batch in eval_loader(dataset, prepared, batch_size=1, keys=chosen):
        (key,) = batch["keys"]
        rank, number = chosen[key]
        out = reconstruct(batch["image"].to(device))
        names = {part: f"{rank}-{number}-{part}.png" for part in ("original", "reconstruction")}
        save_image(to_pil(batch["image"][0]), folder / names["original"])
        save_image(to_pil(out.images[0]), folder / names["reconstruction"])
        if out.tokens is not None:
            names["tokens"] = f"{rank}-{number}-tokens.npz"
            with atomic_write(folder / names["tokens"]) as aside, aside.open("wb") as file:
                np.savez_compressed(file, tokens=out.tokens[0].cpu().numpy())
        paths = {part: f"{folder.name}/{name}" for part, name in names.items()}
        found[key] = {"key": key, "rank": rank, "ranked_by": ranked_by, **paths}
    result.images = [found[key] for key in chosen if key in found]


def shown_by(result: Result, keys: list[str]) -> dict[str, tuple[str, int]]:
    """The images that a result shows, as `choose` gives them; raises ValueError if none is among ``keys``."""
    measured, numbers = set(keys), Counter[str]()
    chosen: dict[str, tuple[str, int]] = {}
    for image in result.images:
        numbers[image["rank"]] += 1
        if image["key"] in measured:
            chosen[image["key"]] = (image["rank"], numbers[image["rank"]])
    if not chosen:
        raise ValueError(f"none of the {len(result.images)} images that the other result shows were measured")
    return chosen


def choose(keys: list[str], psnr: list[float]) -> dict[str, tuple[str, int]]:
    """Key -> ("best", "median" or "worst", number from 1 on): `EACH` of them, fewer of fewer than 12 images.

    No image is chosen twice.
    """
    order = sorted(range(len(keys)), key=lambda i: (-psnr[i], keys[i]))
    each = min(EACH, max(1, len(order) // 3))
    middle = (len(order) - each) // 2
    ranks = {"best": order[:each], "median": order[middle : middle + each], "worst": order[::-1][:each]}
    chosen: dict[str, tuple[str, int]] = {}
    for rank in ("best", "worst", "median"):
        for number, i in enumerate(ranks[rank], 1):
            chosen.setdefault(keys[i], (rank, number))
    return dict(sorted(chosen.items(), key=lambda item: (list(ranks).index(item[1][0]), item[1][1])))
