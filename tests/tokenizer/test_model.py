import copy
import dataclasses
import errno
import json
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gsqtok.tokenizer as module
import gsqtok.tokenizer.checkpoint
import gsqtok.tokenizer.model
from gsqtok.acceleration import accelerate
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import CheckpointError, ImageTokenizer, TokenizerConfig


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def saved(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# The contract


def test_encode_gives_tokens(tiny_tokenizer, images):
    tokens = tiny_tokenizer.encode(images)
    assert tokens.shape == (2, 4, 3, 2)
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < 64
    assert not tokens.requires_grad


def test_forward_contract(tiny_tokenizer, images):
    out = tiny_tokenizer(images)
    assert out.reconstruction.shape == images.shape
    assert out.latent.shape == out.quantized.shape == (2, 8, 4, 3)
    assert out.quantizer_loss.ndim == 0
    assert set(out.quantizer_losses) == {"codebook", "commitment"}
    assert torch.equal(out.tokens, tiny_tokenizer.encode(images))
    expected = out.quantizer_losses["codebook"] + 0.25 * out.quantizer_losses["commitment"]
    torch.testing.assert_close(out.quantizer_loss, expected)


def test_forward_has_a_gradient_everywhere(tiny_tokenizer, images):
    out = tiny_tokenizer.train()(images)
    (out.reconstruction.square().sum() + out.quantizer_loss).backward()
    assert [name for name, p in tiny_tokenizer.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("network", ["paper", "compact"])
def test_accelerated_and_plain_tokenizers_are_saved_alike(tiny_config, images, tmp_path, network):
    fast = ImageTokenizer(dataclasses.replace(tiny_config, network=network)).eval()
    plain = copy.deepcopy(fast)
    accelerate(plain, enabled=False)
    assert any(type(f) is not type(p) for f, p in zip(fast.modules(), plain.modules(), strict=True))
    assert list(fast.state_dict()) == list(plain.state_dict())
    tokens = fast.encode(images)
    for one in (fast, plain):
        one.save_pretrained(tmp_path / "saved")
        loaded = ImageTokenizer.from_pretrained(tmp_path / "saved")
        assert loaded.fingerprint() == fast.fingerprint()
        assert list(map(type, loaded.modules())) == list(map(type, fast.modules()))
        assert torch.equal(loaded.encode(images), tokens)
        assert torch.equal(loaded.decode(tokens), fast.decode(tokens))
        shutil.rmtree(tmp_path / "saved")


@pytest.mark.parametrize("options", [{}, {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True}])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 5), (9, 4), (17, 30)])
def test_decode_of_encode_is_the_reconstruction_at_any_size(tiny_config, size, options):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, **options)).eval()
    torch.nn.init.normal_(tokenizer.decoder.conv_out.weight)  # so that clamping matters
    images = torch.rand(2, 3, *size) * 2 - 1
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 2)
    with torch.no_grad():
        reconstruction = tokenizer(images).reconstruction
    assert reconstruction.abs().max() > 1
    torch.testing.assert_close(tokenizer.decode(tokens, size=size), reconstruction.clamp(-1, 1), atol=1e-5, rtol=1e-5)
    assert tokenizer.decode(tokens).shape[2:] == (tokens.shape[1] * 4, tokens.shape[2] * 4)


def test_padding_repeats_the_edges(tiny_tokenizer, images):
    ragged = images[:, :, :14, :11]
    padded = torch.cat([ragged, ragged[:, :, -1:], ragged[:, :, -1:]], 2)
    padded = torch.cat([padded, padded[..., -1:]], 3)
    assert torch.equal(tiny_tokenizer.encode(ragged), tiny_tokenizer.encode(padded))


def test_decode_takes_any_integers(tiny_tokenizer, images):
    """Also as numpy has them, whose files hold tokens."""
    tokens = tiny_tokenizer.encode(images)
    expected = tiny_tokenizer.decode(tokens)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(tiny_tokenizer.decode(tokens.to(dtype)), expected)
        assert torch.equal(tiny_tokenizer.decode(tokens.numpy().astype(str(dtype).removeprefix("torch."))), expected)
    assert torch.equal(tiny_tokenizer.decode(tokens.to(torch.uint16), tile=8), tiny_tokenizer.decode(tokens, tile=8))
    with pytest.raises(TypeError, match="integers"):
        tiny_tokenizer.decode(tokens.numpy().astype(float))


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch(tiny_tokenizer, tile, training):
    tokens = tiny_tokenizer.encode(torch.empty(0, 3, 30, 32), tile=tile)
    assert tokens.shape == (0, 8, 8, 2)
    assert tokens.dtype == torch.int64
    assert tiny_tokenizer.decode(tokens, tile=tile).shape == (0, 3, 32, 32)
    assert tiny_tokenizer.decode(tokens, size=(30, 32), tile=tile).shape == (0, 3, 30, 32)
    out = tiny_tokenizer.train(training)(torch.empty(0, 3, 32, 32))
    assert out.reconstruction.shape == (0, 3, 32, 32)
    assert out.quantizer_loss == 0


@pytest.mark.parametrize("call", ["encode", "__call__"])
def test_images_between_0_and_1_are_warned_about_once(tiny_tokenizer, caplog, call):
    gsqtok.tokenizer.model._warn_of_other_range.cache_clear()
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for fine in (photo * 2 - 1, photo[:, :, :8, :8], torch.full((1, 3, 64, 64), 0.5)):
        getattr(tiny_tokenizer, call)(fine)
    assert not caplog.records
    for _ in range(2):
        getattr(tiny_tokenizer, call)(photo)
    assert ["pass images * 2 - 1" in record.getMessage() for record in caplog.records] == [True]


def test_half_precision_images(tiny_tokenizer, images):
    rounded = images.to(torch.bfloat16)
    assert torch.equal(tiny_tokenizer.encode(rounded), tiny_tokenizer.encode(rounded.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_type(tiny_config, images, dtype):
    options = {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True}
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, **options)).eval().to(dtype)
    restored = tokenizer.decode(tokenizer.encode(images))
    assert restored.dtype == dtype
    assert restored.isfinite().all()


def test_bits_per_pixel(tiny_tokenizer):
    assert tiny_tokenizer.factor == 4
    assert tiny_tokenizer.bits_per_pixel == 2 * 6 / 16


# Bad images and tokens


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"shape \(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), ValueError, r"got \(1, 1, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"got \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), ValueError, "at least one pixel"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "127.5"),
        (np.zeros((1, 3, 8, 8), np.float32), TypeError, "must be a tensor, got ndarray; torch.from_numpy"),
    ],
)
def test_bad_images_in_encode_and_forward(tiny_tokenizer, bad, error, message):
    for call in (tiny_tokenizer.encode, tiny_tokenizer):
        with pytest.raises(error, match=message):
            call(bad)


@pytest.mark.parametrize("value", [255.0, -1.5, float("nan"), float("inf")])
def test_one_bad_value_is_refused(tiny_tokenizer, images, value):
    images[1, 2, 3, 4] = value
    for call in (tiny_tokenizer.encode, tiny_tokenizer, tiny_tokenizer.train()):
        with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
            call(images)
    tiny_tokenizer(images, check=False)


def test_forward_on_the_meta_device(tiny_config):
    with torch.device("meta"):
        out = ImageTokenizer(tiny_config)(torch.empty(2, 3, 16, 12))
    assert out.reconstruction.shape == (2, 3, 16, 12)


def test_broken_weights_are_refused(tiny_tokenizer, images):
    with torch.no_grad():
        tiny_tokenizer.encoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        tiny_tokenizer.encode(images)
    assert (tiny_tokenizer.encode(images, check=False) == -1).all()


def test_tokens_do_not_depend_on_checking(tiny_tokenizer, images):
    assert torch.equal(tiny_tokenizer.encode(images, check=False), tiny_tokenizer.encode(images))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(2, 2, 2, dtype=torch.int64), ValueError, r"shape \(B, h, w, G\)"),
        (torch.zeros(1, 4, 0, 2, dtype=torch.int64), ValueError, r"with a position at least, got \(1, 4, 0, 2\)"),
        (torch.zeros(1, 2, 2, 3, dtype=torch.int64), ValueError, "last dimension"),
        (torch.zeros(1, 2, 2, 2), TypeError, "integers"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.bool), TypeError, "integers"),
        (torch.full((1, 2, 2, 2), 64), ValueError, "64 is out of range"),
        (torch.full((1, 2, 2, 2), -1), ValueError, "-1 is out of range"),
    ],
)
def test_bad_tokens(tiny_tokenizer, bad, error, message):
    with pytest.raises(error, match=message):
        tiny_tokenizer.decode(bad)


@pytest.mark.parametrize("size", [(9, 8), (8, 4), (4, 8), (0, 8), (8, -1), (8, 8, 3), (8,)])
def test_impossible_sizes(tiny_tokenizer, size):
    with pytest.raises(ValueError, match="makes 8x8 pixels"):
        tiny_tokenizer.decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64), size=size)


def test_a_image_of_one_position_and_one_value_a_group(tiny_config):
    """One value a group normalises to 0, alone as in a batch; F.group_norm refuses it where it is alone."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, multipliers=(1, 1, 1), adaptive_norm=True)).eval()
    images = torch.rand(2, 3, 3, 4) * 2 - 1
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, 1, 1, 2)
    assert torch.equal(tokenizer.encode(images[:1]), tokens[:1])
    torch.testing.assert_close(tokenizer.decode(tokens[:1]), tokenizer.decode(tokens)[:1])
    out = tokenizer.train()(images[:1])
    out.reconstruction.sum().backward()
    assert all(p.grad.isfinite().all() for p in tokenizer.decoder.parameters())


# Tiles


@pytest.mark.parametrize("options", [{}, {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True}])
@pytest.mark.parametrize("size", [(30, 45), (1, 1), (3, 50)])
def test_tiles_give_the_tokens_and_the_image_of_the_whole(tiny_config, size, options):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, encoder_middle_blocks=2, **options)).eval().double()
    images = torch.rand(2, 3, *size, dtype=torch.float64) * 2 - 1
    tokens = tokenizer.encode(images)
    told = []
    assert torch.equal(tokenizer.encode(images, tile=8, progress=lambda *numbers: told.append(numbers)), tokens)
    tiled = tokenizer.decode(tokens, size=size, tile=8, progress=lambda *numbers: told.append(numbers))
    assert sum(done == total for done, total in told) == 2
    torch.testing.assert_close(tiled, tokenizer.decode(tokens, size=size), atol=1e-9, rtol=1e-9)


def test_tiles_of_the_embedded_tokenizer():
    tokenizer = ImageTokenizer.from_pretrained()
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 56, 64)
    tokens = tokenizer.encode(ramp, tile=24)
    assert (tokens == tokenizer.encode(ramp)).float().mean() > 0.99  # rounding decides between two codewords as near
    torch.testing.assert_close(tokenizer.decode(tokens, tile=24), tokenizer.decode(tokens), atol=1e-4, rtol=0)


def test_tiles_of_an_optimized_tokenizer(tiny_tokenizer, images):
    tiny_tokenizer.optimize(torch.bfloat16)
    tokens = tiny_tokenizer.encode(images)
    assert (tiny_tokenizer.encode(images, tile=8) == tokens).float().mean() > 0.8
    expected = tiny_tokenizer.decode(tokens).float()
    assert (tiny_tokenizer.decode(tokens, tile=8).float() - expected).norm() / expected.norm() < 0.03


def test_impossible_tiles(tiny_tokenizer, images):
    for tile in (0, 7):
        with pytest.raises(ValueError, match="even number"):
            tiny_tokenizer.encode(images, tile=tile)
        with pytest.raises(ValueError, match="even number"):
            tiny_tokenizer.decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64), tile=tile)


# Configuration


def test_config_round_trip(tiny_tokenizer):
    config = dataclasses.replace(tiny_tokenizer.config, decoder_blocks=(1, 2, 1), attention_factors=(4,))
    text = json.dumps(dataclasses.asdict(config))
    assert TokenizerConfig.from_dict(json.loads(text)) == config


def test_configurations_are_values():
    """They can be hashed, compared and sent to another process."""
    config = TokenizerConfig()
    assert config == TokenizerConfig(quantizer={"name": "gsq", "groups": 8, "codebook_size": 8192, "dim": 16})
    assert hash(config) == hash(TokenizerConfig())
    assert pickle.loads(pickle.dumps(config)) == config
    assert TokenizerConfig(quantizer={"name": "vq", "groups": 8}) != config
    assert quantizer_options("fsq", levels=[8, 5]) == quantizer_options("fsq", levels=(8, 5))


def test_a_saved_config_names_every_quantizer_option(saved):
    options = json.loads((saved / "config.json").read_text())["quantizer"]
    assert options["name"] == "gsq"
    assert options["commitment_weight"] == 0.25
    assert options["norm"] == "l2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"channels": 48}, "multiple of 32"),
        ({"channels": 0}, "channels must be a whole number of at least 1"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"encoder_blocks": (1, 1)}, "encoder_blocks names 2 levels"),
        ({"decoder_blocks": -1}, "decoder_blocks must be a whole number of at least 0 or a list"),
        ({"encoder_middle_blocks": -1}, "middle_blocks"),
        ({"attention_factors": (8,)}, r"among \[1, 2, 4\], got \[8\]"),
        ({"middle_attention": "x"}, "middle_attention must be true or false, got 'x'"),
        ({"encoder_blocks": 1.5}, "encoder_blocks must be a whole number"),
        ({"quantizer": {"groups": 2}}, "must name its method"),
        ({"quantizer": {"name": "gsqq"}}, "unknown quantizer 'gsqq'; did you mean 'gsq'"),
        ({"quantizer": {"name": "gsq", "group": 2}}, "has no option 'group'; did you mean 'groups'"),
        ({"quantizer": {"name": "gsq", "codebook_size": 2.9}}, "codebook_size must be a whole number of at least 2"),
        ({"quantizer": {"name": "gsq", "codebook_size": 64.0}}, "codebook_size must be a whole number of at least 2"),
        ({"quantizer": {"name": "gsq", "codebook_size": math.inf}}, "codebook_size must be a whole number"),
        ({"quantizer": {"name": "gsq", "commitment_weight": math.inf}}, "commitment_weight must be a finite number"),
        ({"quantizer": {"name": "lfq", "entropy_bits": 9.0}}, "entropy_bits must be a whole number from 1 to 24"),
        ({"quantizer": {"name": "fsq", "levels": [2.5] * 8}}, "levels must be a list, each a whole number"),
        ({"quantizer": {"name": "gsq", "dim": 16}}, "quantizer has dim = 16, latent_dim is 8"),
        ({"quantizer": "gsq"}, "quantizer must be QuantizerOptions, got 'gsq'"),
    ],
)
def test_bad_configurations(tiny_config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_config, **change)


# Saving and loading


def test_round_trip_is_bit_identical(tiny_tokenizer, saved, images):
    loaded = ImageTokenizer.from_pretrained(saved)
    assert not loaded.training
    assert loaded.config == tiny_tokenizer.config
    assert loaded.fingerprint() == tiny_tokenizer.fingerprint()
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in tiny_tokenizer.state_dict().items())
    tokens = tiny_tokenizer.encode(images)
    assert torch.equal(loaded.encode(images), tokens)
    assert torch.equal(loaded.decode(tokens), tiny_tokenizer.decode(tokens))


def test_saving_as_float16_rounds_once(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "half", dtype=torch.float16)
    loaded = ImageTokenizer.from_pretrained(tmp_path / "half")
    for name, value in tiny_tokenizer.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    loaded.save_pretrained(tmp_path / "again", dtype=torch.float16)
    assert ImageTokenizer.from_pretrained(tmp_path / "again").fingerprint() == loaded.fingerprint()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "again"))
    assert first.keys() == second.keys()
    assert all(value.dtype == torch.float16 and torch.equal(value, second[name]) for name, value in first.items())
    tiny_tokenizer.save_pretrained(tmp_path / "full")  # the type holds for one call only
    assert ImageTokenizer.from_pretrained(tmp_path / "full").fingerprint() == tiny_tokenizer.fingerprint()


def test_float16_leaves_integer_buffers_alone(tiny_config, tmp_path):
    quantizer = {"name": "ema_vq", "groups": 2, "codebook_size": 64}
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=quantizer))
    tokenizer.quantizer.idle.fill_(100_001)  # float16 ends at 65,504
    tokenizer.save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["quantizer.idle"].eq(100_001).all()
    assert stored["quantizer.codebook"].dtype == torch.float16


def test_the_fingerprint_sees_weights_and_configuration(tiny_tokenizer, tiny_config):
    other = ImageTokenizer(tiny_config)
    other.load_state_dict(tiny_tokenizer.state_dict())
    assert other.fingerprint() == tiny_tokenizer.fingerprint()
    with torch.no_grad():
        other.decoder.conv_out.bias[0] += 1e-3
    assert other.fingerprint() != tiny_tokenizer.fingerprint()
    options = dataclasses.replace(tiny_config.quantizer, output="normalized")
    third = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options))
    third.load_state_dict(tiny_tokenizer.state_dict())
    assert third.fingerprint() != tiny_tokenizer.fingerprint()


def test_a_training_runs_folder_is_taken(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    assert ImageTokenizer.from_pretrained(tmp_path / "run").fingerprint() == tiny_tokenizer.fingerprint()


def test_a_card_is_written_and_one_by_hand_is_kept(tiny_tokenizer, saved):
    assert "gsqtok" in (saved / "README.md").read_text()
    (saved / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    tiny_tokenizer.save_pretrained(saved)
    assert "# Mine" in (saved / "README.md").read_text()


def _change(saved, **values):
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_unknown_key(saved):
    _change(saved, colour="blue")
    with pytest.raises(CheckpointError, match=r"config\.json.*unknown configuration key 'colour'"):
        ImageTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"multipliers": 3}', '{"quantizer": "gsq"}', '"x"'])
def test_a_config_that_is_none(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ImageTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}"):
        ImageTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("kept", [0, 5, 100, 10_000])
def test_truncated_weights(saved, kept):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        ImageTokenizer.from_pretrained(saved)


def test_weights_that_do_not_fit(saved):
    _change(saved, latent_dim=16)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit config\.json") as caught:
        ImageTokenizer.from_pretrained(saved)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model(saved):
    save_file({"layer.weight": torch.zeros(3)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        ImageTokenizer.from_pretrained(saved)


def test_a_file_instead_of_a_folder(saved):
    with pytest.raises(CheckpointError, match="is a file"):
        ImageTokenizer.from_pretrained(saved / "model.safetensors")


def test_saving_onto_a_file(tiny_tokenizer, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(NotADirectoryError, match="taken"):
        tiny_tokenizer.save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
    assert [f.name for f in tmp_path.iterdir()] == ["taken"]


def test_a_full_disk_leaves_the_old_tokenizer(tiny_tokenizer, saved, monkeypatch):
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full(state, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gsqtok.tokenizer.checkpoint, "save_file", full)
    with torch.no_grad():
        tiny_tokenizer.quantizer.codebook.neg_()
    with pytest.raises(OSError, match="No space left"):
        tiny_tokenizer.save_pretrained(saved, dtype=torch.float16)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    assert [f.name for f in saved.parent.iterdir()] == ["saved"]
    with pytest.raises(OSError, match="No space left"):
        tiny_tokenizer.save_pretrained(saved.parent / "new")
    assert [f.name for f in saved.parent.iterdir()] == ["saved"]


# The hub, from a cache made by hand


@pytest.fixture
def cache(saved, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(saved, repository / "snapshots" / commit)
    return tmp_path / "hub"


def test_hub_name_from_the_cache(cache, tiny_tokenizer, monkeypatch):
    monkeypatch.chdir(cache)
    loaded = ImageTokenizer.from_pretrained("owner/name", cache_dir=cache, local_files_only=True)
    assert loaded.fingerprint() == tiny_tokenizer.fingerprint()
    revision = "0123456789abcdef0123456789abcdef01234567"
    by_commit = ImageTokenizer.from_pretrained("owner/name", cache_dir=cache, local_files_only=True, revision=revision)
    assert by_commit.fingerprint() == tiny_tokenizer.fingerprint()


def test_hub_name_that_is_not_there(cache):
    with pytest.raises(FileNotFoundError, match="no folder 'owner/other' here, and not loaded from the hub") as caught:
        ImageTokenizer.from_pretrained("owner/other", cache_dir=cache, local_files_only=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "../nowhere", "nowhere"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=f"no such folder: {name}"):
        ImageTokenizer.from_pretrained(name, local_files_only=True)


# The tokenizer inside the package


def test_the_embedded_tokenizer():
    tokenizer = ImageTokenizer.from_pretrained()
    assert not tokenizer.training
    assert all(p.isfinite().all() for p in tokenizer.parameters())
    images = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    restored = tokenizer.decode(tokenizer.encode(images))
    mse = (restored - images).square().mean()
    assert mse < images.var() / 10  # it was trained: a smooth ramp comes back


def test_the_embedded_weights_are_small():
    assert sum(file.stat().st_size for file in module.EMBEDDED.iterdir()) <= 12_000_000  # with card and curve


# Fast inference


@pytest.mark.parametrize("options", [{}, {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True}])
def test_optimized_in_float32_is_the_same_tokenizer(tiny_config, images, options):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, **options)).eval()
    tokens = tokenizer.encode(images)
    decoded = tokenizer.decode(tokens)
    names, fingerprint = list(tokenizer.state_dict()), tokenizer.fingerprint()
    assert tokenizer.optimize() is tokenizer
    assert tokenizer.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(tokenizer.encode(images), tokens)
    torch.testing.assert_close(tokenizer.decode(tokens), decoded)
    assert list(tokenizer.state_dict()) == names
    assert tokenizer.fingerprint() == fingerprint


@pytest.mark.parametrize("options", [{}, {"adaptive_norm": True, "depth_to_space": True}])
def test_optimized_in_half_precision(tiny_config, images, options):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, **options)).eval()
    tokens = tokenizer.encode(images)
    decoded = tokenizer.decode(tokens)
    tokenizer.optimize(torch.bfloat16)
    kinds = {name: value.dtype for name, value in tokenizer.state_dict().items()}
    assert kinds["encoder.conv_in.weight"] == kinds["decoder.conv_out.weight"] == torch.bfloat16
    assert {kinds[name] for name in kinds if "norm" in name} == {torch.float32}
    assert kinds["encoder.conv_out.weight"] == kinds["quantizer.codebook"] == torch.float32
    assert (tokenizer.encode(images) == tokens).float().mean() > 0.8
    assert (tokenizer.decode(tokens).float() - decoded).norm() / decoded.norm() < 0.03


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimized_on_a_gpu(tiny_config, options, dtype):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, **options)).eval()
    images = torch.rand(4, 3, 36, 52) * 2 - 1
    tokens = tokenizer.encode(images)
    decoded = tokenizer.decode(tokens, size=(36, 52))
    tokenizer.cuda().optimize(dtype)
    bounds = (0.95, 5e-3) if dtype == torch.float32 else (0.8, 0.03)
    found = []
    for _ in range(4):  # plain, recorded, replayed
        again = tokenizer.encode(images.cuda())
        assert (again.cpu() == tokens).float().mean() > bounds[0]
        out = tokenizer.decode(tokens.cuda(), size=(36, 52))
        assert (out.cpu().float() - decoded).norm() / decoded.norm() < bounds[1]
        found.append((again, out))
    assert len(tokenizer._replays.graphs) == 2
    assert all(torch.equal(found[-1][0], again) and torch.equal(found[-1][1], out) for again, out in found[1:])
    other = torch.rand(4, 3, 36, 52, device="cuda") * 2 - 1
    replayed = tokenizer.encode(other)
    seen = []
    hook = tokenizer.encoder.blocks[0].register_forward_hook(lambda *_: seen.append(1))  # a graph would not call it
    assert (tokenizer.encode(other) == replayed).float().mean() > bounds[0]
    assert seen == [1]
    hook.remove()
    conv = tokenizer.encoder.conv_out
    conv.weight = torch.nn.Parameter(-conv.weight)  # a graph would read the old one
    for _ in range(3):
        assert not torch.equal(tokenizer.encode(other), replayed)
