"""Tokenizers that others have published, behind the calls of ``ImageTokenizer``: one family, one file.

``ImageTokenizer.from_pretrained("vq_ds16_c2i.pt")`` finds the family by what is in the file, ``"llamagen:FILE"`` names
it, and ``"var:FILE?scales=1,2,3"`` adds what no file tells. Importing this package adds its families to the registry.
"""

from gsqtok.published import (  # noqa: F401  (each registers its families)
    bsq_vit,
    cosmos,
    diffusers_vq,
    emu3,
    flex_gen,
    llamagen,
    magvit2,
    maskgit,
    taming,
    titok,
    var,
)
from gsqtok.published.load import open_checkpoint
from gsqtok.published.registry import Family, PublishedConfig, get_family, list_families, register
from gsqtok.published.source import Source

__all__ = [
    "Family",
    "PublishedConfig",
    "Source",
    "get_family",
    "list_families",
    "open_checkpoint",
    "register",
]
