import pytest
import torch
from mean_colours import MeanColours


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
