"""TokBench for images: how well text can be read, and faces be recognised, after a tokenizer (arXiv 2505.18142).

The rules are those of its code (wjf5203/TokBench: resize_rec.py, eval_text.py, eval_face.py, compute_all_metrics.py):

- an image is scaled with Pillow's Lanczos filter until it fits into a square of ``size`` pixels, sides rounded up, and
  lies in its middle on black; what the tokenizer makes of it is cut out, scaled back by the same filter, and stored in
  the file format of the original with Pillow's defaults: JPEG files lose some more;
- text: words are cut out by their boxes and read by docTR's PARSeq. T-ACC is the share of the words that are read
  exactly, T-NED 1 minus the edit distance over the longer word's length;
- faces: F-Sim is the cosine between embeddings of the original and of the restored image (InsightFace's antelopev2),
  aligned by the original's key points;
- words and faces are sorted by their size relative to the image into three bins, which depend on ``size``; each result
  is a mean over a bin, and the whole is the mean of the three.

Its code skips a batch of words if one has a letter that the reader does not know. The words were chosen as those that
the reader reads in the originals, so that this should not happen, and here nothing is skipped.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsqtok.data import to_pil, to_tensor
from gsqtok.evaluation.environment import environment
from gsqtok.evaluation.result import Result
from gsqtok.evaluation.run import Reconstruction

TEXT_SETS = ("ic13", "ic15", "tt", "textocr", "sroie", "cord", "infograph", "docvqa")
FACE_SET = "wflw"
# Sizes relative to the image from which a word or a face is small, of middle size, large; and the end of the last bin.
TEXT_BINS = {256: (0.02, 0.03, 0.04, 1), 512: (0.01, 0.02, 0.03, 1), 1024: (0.005, 0.01, 0.02, 1)}
FACE_BINS = {256: (0.1, 0.2, 0.3, 1), 512: (0.05, 0.1, 0.2, 1), 1024: (0.02, 0.05, 0.1, 1)}
_BINS = ("small", "medium", "large")


class Reader(Protocol):
    """Reads words."""

    def __call__(self, words: list[np.ndarray]) -> list[str]:
        """uint8 RGB images (H, W, 3), of a word each -> the words."""


class FaceNetwork(Protocol):
    """Embeds faces."""

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """uint8 RGB image (H, W, 3) and the five key points (x, y) of a face in it -> embedding (D,)."""


@dataclass
class AnnotatedImage:
    """An image with its annotations.

    Attributes:
        file: where it is.
        key: what it is called in the result.
        words: box (x0, y0, x1, y1), text and relative size of each word.
        faces: key points (5, 2) and relative size of each face.
    """

    file: Path
    key: str
    words: list[tuple[np.ndarray, str, float]] = field(default_factory=list)
    faces: list[tuple[np.ndarray, float]] = field(default_factory=list)


def read_annotations(folder: str | Path) -> list[AnnotatedImage]:
    """Read what TokBench's folder holds: ``annotations/`` and ``images/``; sets that are not there are left out.

    Raises:
        FileNotFoundError: there is none of its annotations.
        ValueError: a file of another form.
    """
    folder, found = Path(folder), []
    files = {name: folder / "annotations" / f"text_{name}.json" for name in TEXT_SETS}
    files[FACE_SET] = folder / "annotations" / "face_meta.json"
    for name, file in files.items():
        if not file.is_file():
            continue
        try:
            for entry in json.loads(file.read_text("utf-8")):
                found.append(_faces(folder, entry) if name == FACE_SET else _words(folder, name, entry))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} holds no annotations of TokBench: {error!r}") from error
    if not found:
        raise FileNotFoundError(f"{folder} holds no annotations of TokBench, such as annotations/text_ic13.json")
    return found


def _words(folder: Path, name: str, entry: dict[str, Any]) -> AnnotatedImage:
    words = [(np.array(word["bbox"]).astype(int), word["rec"], word["ratio"]) for word in entry["annotations"]]
    file = entry["file_name"]
    return AnnotatedImage(folder / "images" / "text_data" / name / file, f"{name}/{file}", words)


def _faces(folder: Path, entry: dict[str, Any]) -> AnnotatedImage:
    faces = [(np.array(face["kps"], dtype=np.float32), face["ratio"]) for face in entry["faces"]]
    file = entry["image_name"]
    return AnnotatedImage(folder / "images" / "face_data" / FACE_SET / file, f"{FACE_SET}/{file}", faces=faces)


def padded(image: Image.Image, size: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Fit an image into a black square of ``size``; where it lies there: left, top, right, bottom."""
    ratio = min(size / image.width, size / image.height)
    width, height = math.ceil(image.width * ratio), math.ceil(image.height * ratio)
    left, top = (size - width) // 2, (size - height) // 2
    square = Image.new("RGB", (size, size))
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return square, (left, top, left + width, top + height)


def restored(square: Image.Image, box: tuple[int, int, int, int], like: Image.Image, name: str) -> np.ndarray:
    """What `padded` did undone, after a file of the original's format: uint8 (H, W, 3)."""
    image = square.crop(box).resize(like.size, Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    image.save(stored, Image.registered_extensions().get(Path(name).suffix.lower(), "PNG"))
    return np.asarray(Image.open(stored).convert("RGB"))


def text_scores(words: Sequence[str], read: Sequence[str]) -> tuple[list[float], list[float]]:
    """Whether each word was read exactly, and 1 minus the edit distance over the longer one's length."""
    from torchmetrics.functional.text import edit_distance

    accuracy = [float(word == other) for word, other in zip(words, read, strict=True)]
    if not words:
        return accuracy, []
    distances = edit_distance(list(read), list(words), reduction="none").tolist()
    longest = (max(len(word), len(other), 1) for word, other in zip(words, read, strict=True))
    return accuracy, [1 - distance / length for distance, length in zip(distances, longest, strict=True)]


def binned(ratios: Sequence[float], values: Sequence[float], edges: Sequence[float]) -> dict[str, float]:
    """Means by size, and under ``""`` the mean of these means; nan for a bin without an instance."""
    by_size = np.digitize(ratios, edges) - 1
    means = {
        name: float(np.mean(inside)) if len(inside := np.asarray(values)[by_size == number]) else math.nan
        for number, name in enumerate(_BINS)
    }
    return means | {"": float(np.mean(list(means.values())))}


@torch.no_grad()
def evaluate_tokbench(
    reconstruct: Callable[[Tensor], Reconstruction],
    folder: str | Path,
    *,
    model: dict[str, Any],
    size: int = 256,
    reader: Reader | None = None,
    faces: FaceNetwork | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], Any] | None = None,
) -> Result:
    """Measure text and faces as TokBench does.

    Args:
        reconstruct: as `gsqtok.evaluation.measure` takes it, on one image at a time.
        folder: TokBench's data, the dataset Junfeng5/TokBench of the hub.
        model: goes on record; see `gsqtok.evaluation.result`.
        size: pixels a side of what the tokenizer gets: 256, 512 or 1024.
        reader: reads the words; None leaves text out.
        faces: embeds the faces; None leaves them out.
        device: where images are handed to ``reconstruct``.
        on_progress: called with 1 after each image.

    Returns:
        A `Result` with t_acc, t_ned and f_sim, and each of them for small, medium and large words or faces.

    Raises:
        ValueError: another size, neither a reader nor a face network, or files of another form.
        FileNotFoundError: no annotations.
    """
    if size not in TEXT_BINS:
        raise ValueError(f"TokBench measures at 256, 512 or 1024 pixels, not {size}")
    if reader is None and faces is None:
        raise ValueError("TokBench needs a reader of words or a face network")
    began = time.perf_counter()
    images = [each for each in read_annotations(folder) if (reader and each.words) or (faces and each.faces)]
    if not images:
        raise ValueError(f"{folder} has no annotations of what is to be measured (words or faces)")
    text: dict[str, list[float]] = {"ratio": [], "t_acc": [], "t_ned": []}
    face: dict[str, list[float]] = {"ratio": [], "f_sim": []}
    keys, bits = [], 0.0
    for annotated in images:
        original = Image.open(annotated.file).convert("RGB")
        square, box = padded(original, size)
        out = reconstruct(to_tensor(square)[None].to(device))
        image = restored(to_pil(out.images[0].cpu()), box, original, annotated.file.name)
        keys.append(annotated.key)
        bits += math.nan if out.bits is None else float(out.bits[0])
        if reader is not None and annotated.words:
            _read(reader, annotated, image, text)
        if faces is not None:
            _compare(faces, annotated, np.asarray(original), image, face)
        if on_progress is not None:
            on_progress(1)
    metrics = {} if reader is None else dict(_summary(text, TEXT_BINS[size]))
    metrics |= {} if faces is None else dict(_summary(face, FACE_BINS[size]))
    metrics["bits_per_pixel"] = bits / (len(keys) * size**2)
    data = {"source": str(folder), "split": None, "images": len(keys), "skipped": 0, "fingerprint": None}
    data |= {"words": len(text["ratio"]), "faces": len(face["ratio"])}
    protocol = {"name": "tokbench", "size": size, "crop": "none, padded with black", "resize_filter": "lanczos"}
    protocol |= {"antialias": True, "rounding": "8 bits, in the file format of the original"}
    protocol |= {"features": None, "reference": None}
    surroundings = environment(torch.device(device)) | {"processes": 1, "seconds": time.perf_counter() - began}
    return Result(model, data, protocol, metrics, {"key": keys}, environment=surroundings)


def _read(reader: Reader, annotated: AnnotatedImage, image: np.ndarray, text: dict[str, list[float]]) -> None:
    cuts = [image[y0:y1, x0:x1] for (x0, y0, x1, y1), _, _ in annotated.words]
    if any(cut.size == 0 for cut in cuts):
        raise ValueError(f"{annotated.key}: the box of a word lies outside the image")
    words = [word for _, word, _ in annotated.words]
    accuracy, similarity = text_scores(words, reader(cuts))
    text["ratio"] += [ratio for _, _, ratio in annotated.words]
    text["t_acc"] += accuracy
    text["t_ned"] += similarity


def _compare(
    faces: FaceNetwork, annotated: AnnotatedImage, original: np.ndarray, image: np.ndarray, face: dict[str, list[float]]
) -> None:
    for points, ratio in annotated.faces:
        a, b = (np.asarray(faces(each, points), np.float64).ravel() for each in (original, image))
        face["ratio"].append(ratio)
        face["f_sim"].append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))


def _summary(columns: dict[str, list[float]], edges: Sequence[float]) -> Iterator[tuple[str, float]]:
    for metric in sorted(columns.keys() - {"ratio"}):
        for name, value in binned(columns["ratio"], columns[metric], edges).items():
            yield f"{metric}_{name}".rstrip("_"), value


class DocTRReader:
    """docTR's PARSeq, on words of 32 x 128 pixels: scaled to fit, black at the right and the bottom.

    Args:
        device: where it runs.
        pretrained: with docTR's weights, which it fetches.
        batch_size: words at once.

    Raises:
        ImportError: docTR is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu", *, pretrained: bool = True, batch_size: int = 64) -> None:
        try:
            from doctr.models import recognition
        except ImportError as error:
            raise ImportError("TokBench's text needs docTR: pip install 'gsqtok[tokbench]'") from error
        self.network = recognition.parseq(pretrained=pretrained, input_shape=(3, 32, 128)).eval().to(device)
        self.device, self.batch_size = device, batch_size

    @torch.inference_mode()
    def __call__(self, words: list[np.ndarray]) -> list[str]:
        """See `Reader`."""
        mean, std = (torch.tensor(self.network.cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        read: list[str] = []
        for start in range(0, len(words), self.batch_size):
            batch = torch.stack([(fitted(word) - mean) / std for word in words[start : start + self.batch_size]])
            read += [word for word, _ in self.network(batch.to(self.device), return_preds=True)["preds"]]
        return read


def fitted(word: np.ndarray, height: int = 32, width: int = 128) -> Tensor:
    """uint8 (H, W, 3) -> float32 (3, height, width) in [0, 1], as docTR's Resize with preserve_aspect_ratio."""
    from torchvision.transforms.functional import resize

    values = torch.from_numpy(np.array(word)).permute(2, 0, 1).float() / 255
    ratio, wanted = values.shape[1] / values.shape[2], height / width
    size = [height, width]
    if ratio > wanted:
        size[1] = max(int(height / ratio), 1)
    elif ratio < wanted:
        size[0] = max(int(width * ratio), 1)
    values = resize(values, size, antialias=True)
    return torch.nn.functional.pad(values, (0, width - size[1], 0, height - size[0]))


class InsightFace:
    """InsightFace's recognition network of antelopev2, glintr100.onnx.

    Args:
        weights: the ONNX file; None: where InsightFace keeps it.

    Raises:
        ImportError: InsightFace is not installed.
        FileNotFoundError: no such file.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        try:
            from insightface.model_zoo import get_model
        except ImportError as error:
            raise ImportError("TokBench's faces need InsightFace: pip install 'gsqtok[tokbench]'") from error
        file = Path(weights or "~/.insightface/models/antelopev2/glintr100.onnx").expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"no weights at {file}: get antelopev2 (https://github.com/deepinsight/insightface/issues/251)"
            )
        self.network = get_model(str(file))

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """See `FaceNetwork`."""
        return np.asarray(self.network.get(np.ascontiguousarray(image[..., ::-1]), _Face(points)))


@dataclass
class _Face:
    """What InsightFace asks of a face: its key points; it adds the embedding."""

    kps: np.ndarray
