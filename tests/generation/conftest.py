import pytest
import torch

from gsqtok.generation.prior import Prior, PriorModelConfig, Vocabulary, codewords_of


@pytest.fixture
def tiny_prior(tiny_tokenizer):
    """A prior for the tiny tokenizer's tokens on grids of up to 3 x 4, far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vocabulary = Vocabulary(tiny_tokenizer.tokens_fingerprint(), 2, 64, (3, 4))
        config = PriorModelConfig(width=64, layers=2, head_layers=1)
        prior = Prior(config, vocabulary, codewords_of(tiny_tokenizer))
        prior.embedding.second.weight.data *= 10
        return prior.eval()
