"""Kaiming's initialization, with which the paper's own code starts the tokenizer and its PatchGAN.

He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015, arXiv 1502.01852, equation 10.
"""

from torch import nn


def initialize_kaiming(network: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / inputs of a value), and set its bias to 0, in place.

    PyTorch's own start has a sixth of that variance, and random biases. Norms and linear layers stay as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
