"""What makes the networks fast: fused kernels, the CPU path, tiles, and CUDA graphs."""
