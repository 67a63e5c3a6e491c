"""A tokenizer as two graphs that run without this package: ONNX, and ``torch.export`` programs.

- ``encoder``: images (B, 3, H, W) float32 in [-1, 1] -> tokens (B, h, w, G) int64, and the latent (B, D, h, w) before
  quantization;
- ``decoder``: tokens (B, h, w, G) int64 -> images (B, 3, h f, w f) float32 in [-1, 1].

Batch, height and width are free (a .pt2 program wants more than f pixels a side); what is no multiple of f is padded
within the graph, as ``ImageTokenizer.encode`` does.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gsqtok.io import atomic_write, one_line
from gsqtok.quantizers.nesting import count_channels

if TYPE_CHECKING:
    from gsqtok.tokenizer import ImageTokenizer

Format = Literal["onnx", "pt2"]
IMAGE_TOLERANCE = 1e-3
LATENT_TOLERANCE = 1e-3
# Sizes in latent positions, and pixels missing of the last one: none of them is the size that is traced.
_CHECKED = [(1, (5, 4), (0, 0)), (3, (3, 6), (1, 0)), (1, (2, 3), (1, 1))]


class ExportError(ValueError):
    """A tokenizer that cannot be exported, or whose export computes something else; the message says what."""


@dataclass(frozen=True)
class Verification:
    """How an exported tokenizer compares with the original, over images of several sizes.

    Attributes:
        runtime: what ran it.
        tokens: tokens compared.
        tokens_differing: of those, tokens that differ.
        latent_error: largest absolute difference of latents.
        image_error: largest absolute difference of decoded images, in [-1, 1].
        sizes: of the images, (batch, height, width).
    """

    runtime: str
    tokens: int
    tokens_differing: int
    latent_error: float
    image_error: float
    sizes: list[tuple[int, int, int]]


class EncoderGraph(nn.Module):
    """``ImageTokenizer.encode`` as one graph without decisions that look at values."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.factor = tokenizer.encoder, tokenizer.quantizer, _factor(tokenizer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> tokens (B, h, w, G), latent (B, D, h, w)."""
        for dim in (2, 3):  # repeats the last row and column: where an index points past it, to it
            size = images.shape[dim]
            padded = (size + self.factor - 1) // self.factor * self.factor
            index = torch.arange(padded, device=images.device).clamp_max(size - 1)
            images = images.index_select(dim, index)
        latent = self.encoder(images)
        return self.quantizer(latent.movedim(1, -1)).indices, latent


class DecoderGraph(nn.Module):
    """``ImageTokenizer.decode`` as one graph."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.quantizer, self.decoder = tokenizer.quantizer, tokenizer.decoder
        self.counted = getattr(tokenizer.config, "decoder_counts", False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, G) -> (B, 3, h f, w f) in [-1, 1]."""
        quantized = self.quantizer.decode(tokens).movedim(-1, 1)
        if self.counted:
            counts = count_channels((tokens >= 0).sum(-1), self.quantizer.tokens_per_position)
            quantized = torch.cat([quantized, counts], 1)
        return self.decoder(quantized).clamp(-1, 1)


def export(tokenizer: ImageTokenizer, folder: str | Path, format: Format = "onnx") -> Verification:
    """Write ``encoder`` and ``decoder`` (.onnx or .pt2) and ``export.json``, and verify them.

    The search for the nearest codeword stays exact (see ``gsqtok.export.onnx_search``), and its memory bounded. In
    ONNX it is part of the graph; a .pt2 program names it, so ``import gsqtok.search`` must come before it is loaded.

    Args:
        tokenizer: on any device; a float32 copy on the CPU is exported.
        folder: where the files go; made if absent.
        format: ``"onnx"`` (opset 18, run by onnxruntime) or ``"pt2"`` (``torch.export.save``).

    Returns:
        How it compares with the original; also written to ``export.json``.

    Raises:
        ExportError: a quantizer that has no such graph, or a graph that computes something else.
        ImportError: ``format="onnx"`` without the packages of ``pip install 'gsqtok[onnx]'``.
    """
    if format == "onnx" and (missing := [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]):
        raise ImportError(f"exporting to ONNX needs {', '.join(missing)}: pip install 'gsqtok[onnx]'")
    folder = Path(folder)
    tokenizer = _float32_copy(tokenizer)
    factor = _factor(tokenizer)
    example = torch.zeros(2, 3, 3 * factor, 4 * factor)
    grid = torch.zeros(2, 3, 4, tokenizer.quantizer.tokens_per_position, dtype=torch.int64)
    write = _write_onnx if format == "onnx" else _write_pt2
    encoder, decoder = folder / f"encoder.{format}", folder / f"decoder.{format}"
    try:
        write(EncoderGraph(tokenizer), example, ["images"], ["tokens", "latent"], (2, 3), encoder)
        write(DecoderGraph(tokenizer), grid, ["tokens"], ["images"], (1, 2), decoder)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        reason = one_line(error.__cause__ or error)[:200]
        name = tokenizer.quantizer.name
        raise ExportError(f"a tokenizer with quantizer '{name}' cannot be exported to {format}: {reason}") from error
    load = _load_onnx if format == "onnx" else _load_pt2
    result = verify(tokenizer, load(encoder), load(decoder), "onnxruntime" if format == "onnx" else "torch.export")
    record = {
        "format": format,
        "fingerprint": tokenizer.fingerprint(),
        "factor": factor,
        "tokens_per_position": tokenizer.quantizer.tokens_per_position,
        "codebook_size": tokenizer.quantizer.codebook_size,
        "verification": asdict(result),
    }
    with atomic_write(folder / "export.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return result


@torch.no_grad()
def verify(
    tokenizer: ImageTokenizer,
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    decode: Callable[[Tensor], Tensor],
    runtime: str,
) -> Verification:
    """Compare exported graphs with the tokenizer on images of several sizes.

    Latents may differ by rounding, and where a latent lies that close to the border between two codewords, so may its
    token: allowed is only the token that the tokenizer itself gives the graph's latent.

    Raises:
        ExportError: tokens, latents (over 1e-3) or images (over 1e-3) that differ.
    """
    f, tokens, differing, latent_error, image_error, sizes = _factor(tokenizer), 0, 0, 0.0, 0.0, []
    generator = torch.Generator().manual_seed(0)
    for batch, (h, w), (bottom, right) in _CHECKED:
        # Coarse noise under fine noise: edges and plain areas.
        coarse = torch.rand(batch, 3, h, w, generator=generator).repeat_interleave(f, 2).repeat_interleave(f, 3)
        images = (coarse + 0.2 * torch.rand(batch, 3, h * f, w * f, generator=generator)).mul(5 / 3).sub(1)
        images = images[:, :, : h * f - min(bottom, f - 1), : w * f - min(right, f - 1)].contiguous()
        expected = tokenizer.encode(images)
        found, latent = encode(images)
        of_latent = tokenizer.quantizer(latent.movedim(1, -1)).indices
        if found.shape != expected.shape or not torch.equal(found, of_latent):
            raise ExportError(
                f"the exported encoder gives other tokens in {runtime} than quantizer '{tokenizer.quantizer.name}' for "
                "the same latent"
            )
        tokens, differing = tokens + found.numel(), differing + int((found != expected).sum())
        own = tokenizer.encoder(tokenizer._pad(images))
        latent_error = max(latent_error, float((latent - own).abs().max()))
        decoded = decode(expected)
        image_error = max(image_error, float((decoded - tokenizer.decode(expected)).abs().max()))
        sizes.append((batch, images.shape[2], images.shape[3]))
    if not latent_error <= LATENT_TOLERANCE:
        raise ExportError(f"the exported encoder's latents differ by {latent_error:.2g} in {runtime}")
    if not image_error <= IMAGE_TOLERANCE:
        raise ExportError(f"the exported decoder's images differ by {image_error:.2g} in {runtime}")
    return Verification(runtime, tokens, differing, latent_error, image_error, sizes)


def _factor(tokenizer: ImageTokenizer) -> int:
    if tokenizer.factor is None or tokenizer.size is not None:
        raise ExportError(
            f"this tokenizer takes images of {tokenizer.size} x {tokenizer.size} pixels only: exported graphs take any"
        )
    return tokenizer.factor


def _float32_copy(tokenizer: ImageTokenizer) -> ImageTokenizer:
    copy = type(tokenizer)(tokenizer.config)
    copy.load_state_dict(tokenizer.state_dict())
    return copy.eval().requires_grad_(False)


def _program(graph: nn.Module, example: Tensor, free: tuple[int, int]) -> torch.export.ExportedProgram:
    dynamic = dict.fromkeys((0, *free), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        return torch.export.export(graph.eval(), (example,), dynamic_shapes=(dynamic,))


def _write_onnx(
    graph: nn.Module, example: Tensor, inputs: list[str], outputs: list[str], free: tuple[int, int], path: Path
) -> None:
    from gsqtok.export.onnx_search import translate_nearest
    from gsqtok.export.onnx_sum import translate_sum

    translations: dict[Callable[..., Any], Callable[..., Any]] = {
        torch.ops.gsqtok.nearest.default: translate_nearest,
        torch.ops.aten.sum.dim_IntList: translate_sum,
    }
    with warnings.catch_warnings(), atomic_write(path) as temporary:
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            _program(graph, example, free),
            (),
            temporary,
            external_data=False,
            dynamo=True,
            verbose=False,
            input_names=inputs,
            output_names=outputs,
            opset_version=18,
            custom_translation_table=translations,
        )


def _write_pt2(
    graph: nn.Module, example: Tensor, inputs: list[str], outputs: list[str], free: tuple[int, int], path: Path
) -> None:
    program = _program(graph, example, free)
    with atomic_write(path) as temporary:
        whole = temporary.with_suffix(".pt2")  # torch.export.save looks at the suffix
        torch.export.save(program, whole)
        whole.replace(temporary)


def _load_onnx(path: Path) -> Callable[[Tensor], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())

    def run(x: Tensor) -> Any:  # a tensor or several, as the graph has it
        found = tuple(torch.from_numpy(np.asarray(value)) for value in session.run(None, {name: x.numpy()}))
        return found if len(found) > 1 else found[0]

    return run


def _load_pt2(path: Path) -> Callable[[Tensor], Any]:
    return torch.export.load(path).module()
