"""gsqtok: image tokenizers with Grouped Spherical Quantization (arXiv 2412.02632)."""

__version__ = "0.1.0"
