"""What VTBench measures: Lin et al. 2025, arXiv 2505.13439, evaluate_images.py of its code (huawei-lin/VTBench).

Originals and reconstructions are stored with 8 bits, truncated instead of rounded, and both are resized to 256 x 256 by
Pillow's bilinear filter, whatever size they had. Then PSNR is that of all pixels together (``psnr_pooled``) and FID the
usual one; SSIM is torchmetrics' with the range of a batch's values (``ssim_vtbench``), and LPIPS, on AlexNet, gets
images in [0, 1] where it expects [-1, 1] (``lpips_vtbench``). Truncation makes 95 of the 256 values of an original one
smaller.

Its character and word error rates are those of a language model of 12 billion parameters (Gemma 3), and are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsqtok.data import to_tensor
from gsqtok.evaluation.similarity import to_8_bits

SIDE = 256


def as_measured(reconstruction: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstructions and originals, (B, 3, H, W) in [-1, 1], as they are compared: (B, 3, 256, 256) in [-1, 1]."""
    # What an 8-bit original becomes on its way: float64 until it is in [-1, 1], float32 from there on.
    originals = (to_8_bits(images).double() / 255 * 2 - 1).float()
    return _stored(reconstruction.float()), _stored(originals)


def vtbench_ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """SSIM (B,) of images as they are compared, (B, 3, 256, 256) in [-1, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    ours, theirs = (reconstruction + 1) / 2, (images + 1) / 2
    values: Any = structural_similarity_index_measure(ours, theirs, reduction="none")
    similarity: Tensor = values.reshape(len(images)).double()
    return similarity


def _stored(images: Tensor) -> Tensor:
    values = ((images.clamp(-1, 1) + 1) / 2).cpu().numpy() * np.float32(255)
    pixels = values.astype(np.uint8).transpose(0, 2, 3, 1)
    resized = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in pixels]
    return torch.stack([to_tensor(image) for image in resized]).to(images.device)
