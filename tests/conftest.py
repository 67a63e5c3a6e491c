import pytest
import torch


@pytest.fixture
def tiny_config():
    """An f4 tokenizer of two tokens a position, small enough for any test."""
    from gsqtok.tokenizer import TokenizerConfig

    return TokenizerConfig(
        latent_dim=8,
        channels=32,
        multipliers=(1, 1, 2),
        encoder_blocks=1,
        decoder_blocks=1,
        encoder_middle_blocks=1,
        decoder_middle_blocks=1,
        quantizer={"name": "gsq", "groups": 2, "codebook_size": 64},
    )


@pytest.fixture
def tiny_tokenizer(tiny_config):
    from gsqtok.tokenizer import ImageTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer(tiny_config).eval()
