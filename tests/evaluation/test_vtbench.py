"""VTBench's preparation and metrics against its pipeline written out with PIL, torchvision and torchmetrics."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchvision import transforms

from gsqtok.evaluation import ImageDistance, measure
from gsqtok.evaluation.protocol import prepare
from gsqtok.evaluation.run import Reconstruction

SIZES = [(64, 64), (90, 60), (61, 87), (33, 140), (20, 25)]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        pixels[0, 0], pixels[-1, -1] = 0, 255
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        image.save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def darker(images):
    """A stand-in for a tokenizer, whose output is no multiple of 1/255."""
    return Reconstruction(0.9 * images.roll(1, 3) - 0.03)


def theirs(image, size, pad):
    """Original and reconstruction as two stored images, in VTBench's types."""
    scales = size / image.width, size / image.height
    scale = min(scales) if pad else max(scales)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    if pad:
        square = Image.new("RGB", (size, size))
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    else:
        left, top = (image.width - size) // 2, (image.height - size) // 2
        square = image.crop((left, top, left + size, top + size))
    values = torch.from_numpy(np.array(square) / 255.0 * 2 - 1).permute(2, 0, 1).float()

    def stored(tensor):
        unit = ((tensor.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
        return Image.fromarray((unit * 255).astype(np.uint8))

    exact = torch.from_numpy(np.array(square)).permute(2, 0, 1).float().div(127.5).sub(1)  # what a tokenizer gets here
    return square, stored(values), stored(darker(exact[None]).images[0])


@pytest.mark.parametrize("protocol", ["vtbench", "vtbench_padded"])
def test_metrics_are_those_of_its_pipeline(protocol, folder):
    result = measure(darker, str(folder), model={"bits_per_pixel": None}, protocol=protocol, size=48, batch_size=5)
    compared = transforms.Compose([transforms.Resize((256, 256)), transforms.ToTensor()])
    psnr, ssim = PeakSignalNoiseRatio(1.0), StructuralSimilarityIndexMeasure()
    transform, record = prepare(protocol, 48)
    pairs = []
    for file in sorted(folder.iterdir()):
        image = Image.open(file)
        square, original, reconstruction = theirs(image, 48, "padded" in protocol)
        assert np.array_equal(transform.pixels(image), square)
        pairs.append((compared(reconstruction), compared(original)))
    reconstructions, originals = (torch.stack(side) for side in zip(*pairs, strict=True))
    psnr.update(reconstructions, originals)
    ssim.update(reconstructions, originals)
    assert result["psnr_pooled"] == pytest.approx(psnr.compute().item(), abs=1e-4)
    assert result["ssim_vtbench"] == pytest.approx(ssim.compute().item(), abs=1e-5)
    assert result.protocol["name"] == protocol == record["name"]
    assert result.protocol["rounding"].startswith("8 bits, truncated")


def test_lpips_of_another_range(tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.alexnet().state_dict(), cache / "alexnet-owt-7be5be79.pth")
    a, b = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    plain, vtbench = (ImageDistance(name) for name in ("lpips_alex", "lpips_vtbench"))
    assert vtbench.metric.startswith("lpips_vtbench")
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="alex")
    units = [((x + 1) / 2 * 255).round() / 255 for x in (a, b)]
    expected = network(*units, normalize=False).squeeze()
    torch.testing.assert_close(vtbench(a, b).float(), expected.detach(), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(plain(a, b), vtbench(a, b), rtol=1e-2)
