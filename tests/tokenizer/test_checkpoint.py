"""Loading under other defaults than PyTorch's, of tokenizers that were changed, and of files that ask for too much."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gsqtok.tokenizer import CheckpointError, ImageTokenizer, TokenizerConfig, checkpoint

OWN = ["pretrained/f8", "pretrained/f8-nested", "pretrained/f16", "pretrained/f16?decoder=sharp"]


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def saved(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("source", [None, "saved"])
def test_another_default_type(saved, source):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = ImageTokenizer.from_pretrained(source and saved)
    finally:
        torch.set_default_dtype(before)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert loaded.fingerprint() == ImageTokenizer.from_pretrained(source and saved).fingerprint()


def test_another_default_device(saved, tiny_tokenizer, images):
    with torch.device("meta"):
        loaded = ImageTokenizer.from_pretrained(saved)
    assert loaded.fingerprint() == tiny_tokenizer.fingerprint()
    assert torch.equal(loaded.encode(images), tiny_tokenizer.encode(images))


def test_device_and_type(saved, tiny_tokenizer, images):
    loaded = ImageTokenizer.from_pretrained(saved, device="cpu", dtype=torch.bfloat16)
    kinds = {name.split(".")[0]: value.dtype for name, value in loaded.state_dict().items()}
    assert kinds == {"encoder": torch.bfloat16, "quantizer": torch.float32, "decoder": torch.bfloat16}
    assert (loaded.encode(images) == tiny_tokenizer.encode(images)).float().mean() > 0.7
    assert ImageTokenizer.from_pretrained(saved, device="meta").device.type == "meta"


def test_loaded_weights_are_not_the_file_s(saved, tiny_tokenizer):
    loaded = ImageTokenizer.from_pretrained(saved)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert ImageTokenizer.from_pretrained(saved).fingerprint() == tiny_tokenizer.fingerprint()


def test_compiled_networks_are_saved_under_their_usual_names(tiny_tokenizer, images, tmp_path):
    fingerprint, tokens = tiny_tokenizer.fingerprint(), tiny_tokenizer.encode(images)
    decoded = tiny_tokenizer.decode(tokens)
    tiny_tokenizer.decoder = torch.compile(tiny_tokenizer.decoder, backend="eager")
    tiny_tokenizer.quantizer = torch.compile(tiny_tokenizer.quantizer, backend="eager")
    assert tiny_tokenizer.fingerprint() == fingerprint
    tiny_tokenizer.save_pretrained(tmp_path / "compiled")
    loaded = ImageTokenizer.from_pretrained(tmp_path / "compiled")
    assert loaded.fingerprint() == fingerprint
    assert isinstance(loaded.decoder, nn.Module)
    assert torch.equal(loaded.decode(tokens), decoded)


@pytest.mark.parametrize(
    "quantizer", ["gsq", "ema_vq", "fsq", "rsq", "leech", "random_sphere", "fibonacci_sphere", "bsq"]
)
def test_every_kind_of_codebook_comes_back(tiny_config, tmp_path, images, quantizer):
    options = {"leech": {"groups": 1}, "fsq": {"target_bits": 24, "groups": 2}, "bsq": {"groups": 2}}
    options = options.get(quantizer, {"groups": 2, "codebook_size": 32})
    config = TokenizerConfig(latent_dim=24, channels=32, multipliers=(1, 1), quantizer={"name": quantizer, **options})
    tokenizer = ImageTokenizer(config).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    tokens = tokenizer.encode(images)
    assert torch.equal(loaded.encode(images), tokens)
    assert torch.equal(loaded.decode(tokens), tokenizer.decode(tokens))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder_blocks": 10**8}, "asks for more than"),
        ({"decoder_blocks": [0, 0, 10**8]}, "asks for more than"),
        ({"encoder_middle_blocks": 10**9}, "asks for more than"),
        ({"multipliers": [1] * 10**5}, "asks for more than"),
        ({"quantizer": {"name": "rvq", "stages": 10**9}}, "asks for more than"),
        ({"quantizer": {"name": "rsq", "groups": 2, "codebook_size": 10**15}}, "it lacks"),
        ({"quantizer": {"name": "random_sphere", "codebook_size": 10**12}}, "expected (1000000000000, 8)"),
        ({"quantizer": {"name": "fibonacci_sphere", "codebook_size": 10**12}}, "expected (1000000000000, 8)"),
        ({"quantizer": {"name": "gsq", "codebook_size": 2**62}}, "overflow"),
        ({"channels": 32 * 10**6}, "has shape"),
        ({"latent_dim": 10**9}, "has shape"),
        (
            {"latent_dim": 10**9, "quantizer": {"name": "fsq", "target_bits": 10}},
            "target_bits must be from 1 a channel",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_config_that_asks_for_far_more_than_its_weights(saved, changes, reason):
    """It is refused before anything is built, which would take hours and all memory."""
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError) as error:
        ImageTokenizer.from_pretrained(saved)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_another_decoder_of_the_same_tokens(tiny_tokenizer, images, tmp_path):
    folder, sharp = tmp_path / "both", copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.save_pretrained(folder)
    for parameter in sharp.decoder.parameters():
        parameter.data.mul_(1.1)
    save_file(sharp.decoder.state_dict(), folder / "decoder-sharp.safetensors")
    for loaded in (
        ImageTokenizer.from_pretrained(folder, decoder="sharp"),
        ImageTokenizer.from_pretrained(f"{folder}?decoder=sharp"),
    ):
        tokens = tiny_tokenizer.encode(images)
        assert torch.equal(loaded.encode(images), tokens)
        assert torch.equal(loaded.decode(tokens), sharp.decode(tokens))
        assert loaded.fingerprint() == sharp.fingerprint() != tiny_tokenizer.fingerprint()
        assert loaded.tokens_fingerprint() == tiny_tokenizer.tokens_fingerprint()
    with pytest.raises(CheckpointError, match="holds no decoder 'soft': it has sharp, and its usual one"):
        ImageTokenizer.from_pretrained(folder, decoder="soft")
    (folder / "decoder-sharp.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"decoder-sharp\.safetensors cannot be read"):
        ImageTokenizer.from_pretrained(folder, decoder="sharp")


def test_short_names_are_found_in_a_checkout_and_on_the_hub(tiny_tokenizer, tmp_path, monkeypatch):
    tiny_tokenizer.save_pretrained(tmp_path / "pretrained" / "small")
    monkeypatch.setattr(checkpoint, "CHECKOUT", tmp_path)
    loaded = ImageTokenizer.from_pretrained("pretrained/small")
    assert loaded.fingerprint() == tiny_tokenizer.fingerprint()


@pytest.mark.parametrize("name", OWN)
def test_a_short_name_outside_a_checkout_says_where_the_weights_lie(name, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = name.partition("?")[0]
    with pytest.raises(FileNotFoundError, match=f"no folder 'gsqtok/.*folder pretrained/ of a clone.*CLONE/{folder}$"):
        ImageTokenizer.from_pretrained(name, local_files_only=True)


@pytest.mark.parametrize("name", OWN)
def test_the_weights_of_this_repository(name):
    if not (checkpoint.CHECKOUT / name.partition("?")[0]).is_dir():
        pytest.skip("a package without its repository does not have them")
    tokenizer = ImageTokenizer.from_pretrained(name)
    record = json.loads((checkpoint.CHECKOUT / "docs" / "quality.json").read_text())
    measured = {
        line["model"]["fingerprint"] for key, line in record.items() if key.endswith(name.replace("pretrained", ""))
    }
    assert measured == {tokenizer.fingerprint()}
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    restored = tokenizer(ramp).reconstruction
    assert (restored - ramp).square().mean() < ramp.var() / 10  # it was trained: a smooth ramp comes back
