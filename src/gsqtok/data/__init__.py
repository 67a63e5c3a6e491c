"""Images from anywhere: sources, decoding, transforms and loaders, on Hugging Face ``datasets``."""

from gsqtok.data.decode import BrokenImageError, decode_image, decode_pixels
from gsqtok.data.loading import EvalLoader, ImageDataset, ImageStream, Sample, eval_loader, train_loader
from gsqtok.data.rejects import RejectLog
from gsqtok.data.sampling import EpochSampler
from gsqtok.data.source import open_source
from gsqtok.data.transforms import ImageTransform, to_pil, to_tensor

__all__ = [
    "BrokenImageError",
    "EpochSampler",
    "EvalLoader",
    "ImageDataset",
    "ImageStream",
    "ImageTransform",
    "RejectLog",
    "Sample",
    "decode_image",
    "decode_pixels",
    "eval_loader",
    "open_source",
    "to_pil",
    "to_tensor",
    "train_loader",
]
