import pytest
import torch

from gsqtok.evaluation.features import Features


class MeanColours:
    """A network of six features, mean and spread of each channel, with logits and a spatial map as Inception has."""

    suffix = "_mean_colours"
    dim = 6

    def __call__(self, images):
        values = images.float().flatten(2) / 255
        pooled = torch.cat([values.mean(2), values.std(2, correction=0)], 1)
        return Features(pooled, logits=8 * pooled, spatial=values[:, :, :2].flatten(1))

    def to(self, device):
        return self

    def record(self):
        return {"network": "mean colours", "weights_sha256": "00", "input_size": None, "resize": None, "layer": "all"}


@pytest.fixture
def mean_colours():
    return MeanColours()


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Torch-fidelity's Inception v3 with random weights that keep their signal through all layers."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Unloaded(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    original, theirs.load_state_dict_from_url = theirs.load_state_dict_from_url, lambda *_, **__: None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Unloaded("inception", ["2048"])
            for layer in network.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(layer.weight)
    finally:
        theirs.load_state_dict_from_url = original
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), file)
    return file
