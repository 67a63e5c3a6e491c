"""What makes the networks fast: fused kernels, the CPU path, CUDA graphs, tiles; and recomputing, for less memory."""

from gsqtok.acceleration.recompute import recompute
from gsqtok.acceleration.swap import accelerate

__all__ = ["accelerate", "recompute"]
