"""Results to compare, written as `gsqtok evaluate -o` writes them."""

import numpy as np
from PIL import Image

from gsqtok.evaluation.result import Result

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">&{{title}}.png"
KEYS = ["a.png", HOSTILE, "c.png"]
PROTOCOL = {
    **{"name": "native", "size": None, "crop": "none", "resize_filter": None, "antialias": None},
    **{"rounding": "8 bits", "features": None, "reference": "originals"},
}


def write_result(folder, name, bits, psnr, *, codebook=None, images=(), protocol=None, fingerprint="f" * 64):
    """A result file ``folder/name.json`` of three images; psnr is theirs."""
    model = {"name": name.split("-")[0], "fingerprint": None, "quantizer": None, "factor": None}
    result = Result(
        model=model | {"bits_per_position": None, "bits_per_pixel": bits, "precision": "float32", "parameters": None},
        data={"source": "images", "split": None, "images": 3, "skipped": 0, "fingerprint": fingerprint},
        protocol=PROTOCOL | (protocol or {}),
        metrics={"psnr": float(np.mean(psnr)), "ssim": 0.5, "bits_per_pixel": bits, "lpips_vgg": None},
        per_image={"key": KEYS, "psnr": list(psnr), "bits_per_pixel": [bits] * 3},
        codebook=codebook,
        images=[],
    )
    for number, (key, rank) in enumerate(images):
        generator = np.random.default_rng(number)
        original = generator.integers(40, 216, (24, 32, 3), dtype=np.uint8)
        files = {what: f"{name}.images/{number}-{what}" for what in ("original", "reconstruction", "tokens")}
        paths = {what: f"{path}.{'npz' if what == 'tokens' else 'png'}" for what, path in files.items()}
        (folder / f"{name}.images").mkdir(exist_ok=True)
        Image.fromarray(original).save(folder / paths["original"])
        Image.fromarray(original + np.uint8(10)).save(folder / paths["reconstruction"])
        if codebook:
            tokens = generator.integers(0, 64, (6, 8, 2)).astype(np.uint8)
            np.savez(folder / paths["tokens"], tokens=tokens)
        else:
            paths["tokens"] = None
        result.images.append({"key": key, "rank": rank, **paths})
    result.save(folder / f"{name}.json")
    return folder / f"{name}.json"
