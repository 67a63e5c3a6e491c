"""What tokens are for: models over grids of grouped tokens, how predictable tokens are, and compressed files."""

from gsqtok.generation.compress import Compressor, decompress
from gsqtok.generation.container import CompressedFile
from gsqtok.generation.prior import Prior, PriorModelConfig
from gsqtok.generation.sampling import SamplingOptions, sample

__all__ = ["CompressedFile", "Compressor", "Prior", "PriorModelConfig", "SamplingOptions", "decompress", "sample"]
