"""Training in float64: two ways to the same step then differ by less than anything could magnify.

In float32 they differ by 1e-7, and a GAN does not keep that small: where an activation of the discriminator changes
sign, its LeakyReLU changes slope, and its norms divide by the small spread of a nearly constant image. How a processor
rounds decides which activations those are. In float64 the difference starts at 1e-16, and no activation is so near 0.
"""

from collections.abc import Callable
from typing import Any

import torch


def everywhere(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Compute in float64 whatever is made or widened from here on; half precision is not."""
    from gsqtok.data import loader
    from gsqtok.training import trainer

    to_tensor, to_float = loader.to_tensor, trainer.to_float
    torch.set_default_dtype(torch.float64)
    replace(torch.Tensor, "float", torch.Tensor.double)
    replace(loader, "to_tensor", lambda pixels: to_tensor(pixels).double())
    replace(trainer, "to_float", lambda pixels, layout: to_float(pixels, layout).double())
