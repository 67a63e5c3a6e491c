"""Images from anywhere: sources, decoding, transforms and loaders."""

from gsqtok.data.decode import BrokenImageError, decode_image, decode_pixels
from gsqtok.data.decoded import DecodedImages
from gsqtok.data.loader import EvalLoader, ImageDataset, ImageStream, Sample, eval_loader, train_loader
from gsqtok.data.sampling import CropMix, EpochSampler
from gsqtok.data.skipped import SkipLog
from gsqtok.data.sources import ImageSource, check_outside, open_source
from gsqtok.data.transforms import ImageTransform, load_image, to_float, to_pil, to_tensor

__all__ = [
    "BrokenImageError",
    "CropMix",
    "DecodedImages",
    "EpochSampler",
    "EvalLoader",
    "ImageDataset",
    "ImageSource",
    "ImageStream",
    "ImageTransform",
    "Sample",
    "SkipLog",
    "check_outside",
    "decode_image",
    "decode_pixels",
    "eval_loader",
    "load_image",
    "open_source",
    "to_float",
    "to_pil",
    "to_tensor",
    "train_loader",
]
