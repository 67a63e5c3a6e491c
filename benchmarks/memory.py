"""Memory that a process keeps instead of handing it back: feature maps on a CPU are allocated again and again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h of glibc
KEPT = 1 << 30  # bytes of free memory that are not handed back
PAD = 1 << 26  # bytes that are asked for at once


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory of any size, in this whole process; whether it could be set.

    By default it takes every block of 32 MiB and more from the system and hands it back when it is freed. The system
    fills each page with zeros on first use, which can take as long as the convolution that writes there. A process then
    holds on to its largest memory up to 1 GiB.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, KEPT), mallopt(_TOP_PAD, PAD)])
