"""Which images were measured, in 64 hexadecimal digits that depend neither on their order nor on who read them."""

from __future__ import annotations

import hashlib

from torch import Tensor


class SetFingerprint:
    """The sum modulo 2^256 of the SHA-256 of every image, over its height, width and 8-bit values.

    Images count as they are measured, after resizing and cropping. Names do not count: a folder and a parquet file of
    the same images are the same set. An image that is there twice counts twice.
    """

    def __init__(self) -> None:
        self.total = 0

    def add(self, images: Tensor) -> None:
        """Add a batch, uint8 (B, 3, H, W)."""
        size = f"{images.shape[2]}x{images.shape[3]}".encode()
        for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy():
            self.total += int.from_bytes(hashlib.sha256(size + image.tobytes()).digest(), "big")
        self.total %= 1 << 256

    def hexdigest(self, others: tuple[int, ...] = ()) -> str:
        """The fingerprint, together with the totals of other processes."""
        return f"{(self.total + sum(others)) % (1 << 256):064x}"
