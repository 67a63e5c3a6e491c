"""Official checkpoints, written here after the format's description, against what the description says they compute."""

import pickle
import re
from pathlib import Path

import official
import pytest
import torch
from omegaconf import OmegaConf

from gsqtok.cli import main
from gsqtok.tokenizer import CheckpointError, ImageTokenizer

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "flex_gen"


def quantizer(kind="gvq", dim=4, groups=1, size=64, **options):
    named = {} if kind == "vq" else {"num_group": groups}
    return {"quantize_type": kind, "embed_dim": dim, "num_embed": size, **named, **options}


VARIANTS = {
    "vq": {},
    "defaults of the quantizer": {"quantizer_config": {"quantize_type": "vq", "num_embed": 64}},
    "gvq, two groups": {"quantizer_config": quantizer(groups=2, use_l2_norm=True)},
    "gvq, one group": {"quantizer_config": quantizer(groups=1, use_l2_norm=True)},
    "gsq, l1": {"quantizer_config": quantizer("gsq", groups=2, use_l1_norm=True)},
    "gsq, no norm": {"quantizer_config": quantizer("gsq", groups=2)},
    "gsq, clip at d = 1": {"quantizer_config": quantizer("gsq", groups=4, use_l2_norm=True, force_1d_clip=True)},
    "gsq, d = 1 without norm": {"quantizer_config": quantizer("gsq", groups=4)},
    "commitment weight": {"quantizer_config": quantizer(use_l2_norm=True, commitment_loss_weight=0.75)},
    "adaptive norm": {"use_adaptive_norm": True},
    "depth to space": {"use_learnable_up_down_sample": True},
    "attention in the middle": {
        "mid_block_attn": True,
        "encoder_layer_configs": (1, 1, 3),
        "decoder_layer_configs": (0, 1, 2),
    },
    "attention at factors": {"attention_resolutions": (2, 16), "encoder_layer_configs": (1, 2, 1)},
    "f8, uneven blocks": {
        "channel_multipliers": (2, 1, 1, 3),
        "encoder_layer_configs": (1, 2, 0, 1, 2),
        "decoder_layer_configs": (2, 1, 1, 0, 0),
    },
    "one level": {"channel_multipliers": (2,), "encoder_layer_configs": [1, 1], "decoder_layer_configs": [0, 1]},
    "everything": {
        "embedding_dim": 8,
        "quantizer_config": quantizer("gsq", dim=8, groups=2, use_l2_norm=True, use_uniform_init=True),
        "use_adaptive_norm": True,
        "use_learnable_up_down_sample": True,
        "mid_block_attn": True,
        "attention_resolutions": (1, 2),
        "channel_multipliers": (1, 2, 2),
        "encoder_layer_configs": (1, 0, 1, 2),
        "decoder_layer_configs": (1, 1, 2, 2),
        "dropout_probability": 0.1,
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_computes_what_the_format_says(changes, tmp_path):
    config = official.arguments(**changes)
    state = official.write(tmp_path / "checkpoint.pt", config)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent = official.run("encoder", config, state, images)
    codes, quantized, loss = official.quantize(config, state, latent)
    expected = official.run("decoder", config, state, quantized)

    tokenizer = ImageTokenizer.from_pretrained(tmp_path / "checkpoint.pt")
    with torch.no_grad():
        out = tokenizer(images)
    torch.testing.assert_close(out.latent, latent, atol=1e-4, rtol=0)
    assert torch.equal(out.tokens.view(codes.shape), codes)
    assert torch.equal(out.quantized, quantized)
    torch.testing.assert_close(out.quantizer_loss, loss, atol=1e-5, rtol=1e-5)
    assert (out.reconstruction - expected).abs().max() < 1e-4
    assert torch.equal(tokenizer.decode(out.tokens), out.reconstruction.clamp(-1, 1))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in tokenizer.parameters())


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="no checkpoints of the official implementation beside the repository")
@pytest.mark.parametrize("name", ["vq-f8-d8", "gvq-f4-d8-g2"])
def test_files_of_the_official_implementation(name):
    tokenizer = ImageTokenizer.from_pretrained(FIXTURES / name)
    expected = torch.load(FIXTURES / name / "expected.pt", weights_only=True)
    with torch.no_grad():
        out = tokenizer(expected["x"])
    assert torch.equal(out.tokens.view(expected["codes"].shape), expected["codes"])
    assert (out.reconstruction - expected["recon"]).abs().max() < 1e-4
    assert (tokenizer.decode(out.tokens) - expected["recon_from_codes"].clamp(-1, 1)).abs().max() < 1e-4
    torch.testing.assert_close(out.quantizer_loss, expected["aux_loss"])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_omegaconf_nodes_in_the_configuration(nested, protocol, tmp_path):
    config = official.arguments(quantizer_config=quantizer(groups=2, use_l2_norm=True), mid_block_attn=None)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    node = OmegaConf.create(plain)
    value = node if nested else config | {k: node[k] for k in ("quantizer_config", "channel_multipliers")}
    official.write(tmp_path / "a.pt", config, pickled=pickle.dumps(value, protocol=protocol))
    official.write(tmp_path / "b.pt", config)
    loaded = ImageTokenizer.from_pretrained(tmp_path / "a.pt")
    assert loaded.fingerprint() == ImageTokenizer.from_pretrained(tmp_path / "b.pt").fingerprint()


def test_half_precision_weights_are_taken_as_float32(tmp_path):
    config = official.arguments()
    state = {name: value.half() for name, value in official.random_state(config).items()}
    official.write(tmp_path / "checkpoint.pt", config, state)
    tokenizer = ImageTokenizer.from_pretrained(tmp_path)
    assert torch.equal(tokenizer.decoder.conv_out.bias, state["decoder.final_layers.2.bias"].float())


# Files that are refused


def error_of(path):
    with pytest.raises(CheckpointError) as caught:
        ImageTokenizer.from_pretrained(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 500 + len(str(path))
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer_config": quantizer("lfq")}, "quantize_type is 'lfq'; vq, gvq, gsq are supported"),
        ({"quantizer_config": quantizer(size=63)}, "64 codewords, config says 63"),
        ({"quantizer_config": quantizer(groups=2)}, "makes 1 groups of embedding_dim 4, config says 2"),
        ({"quantizer_config": quantizer(use_l2_norm=True, use_l1_norm=True)}, "use_l2_norm and use_l1_norm at once"),
        ({"residual_conv_kernel_size": 5}, "residual_conv_kernel_size is 5; only 3"),
        ({"input_channels": 1}, "input_channels is 1"),
        ({"encoder_layer_configs": (1, 1)}, "encoder_layer_configs names 2 counts, expected 3"),
        ({"encoder_layer_configs": (10**9, 1, 1)}, "asks for more than"),
        ({"hidden_channels": 10**12}, "hidden|overflow|size"),
        ({"hidden_channels": 48}, "multiple of 32"),
        ({"hidden_channels": 64}, r"encoder.conv_in.weight has shape \(32, 3, 3, 3\), expected \(64, 3, 3, 3\)"),
        ({"channel_multipliers": None}, "does not describe a tokenizer"),
        ({"embedding_dim": "four"}, "does not describe a tokenizer"),
        ({"encoder_layer_configs": (1, 1, 2)}, "it lacks encoder.blocks.5.net.0.weight"),
        ({"encoder_layer_configs": (1, 1, 0)}, "it has encoder.blocks.4.net.0.weight, .* and 3 more, too"),
        ({"use_adaptive_norm": True}, r"it lacks decoder.blocks.1.gamma.weight, .*; it has decoder"),
    ],
)
def test_configurations_that_do_not_fit(changes, message, tmp_path):
    right = official.arguments()
    official.write(tmp_path / "checkpoint.pt", right | changes, official.random_state(right))
    assert re.search(message, error_of(tmp_path / "checkpoint.pt"))


def test_groups_of_one_channel_that_are_normalised(tmp_path):
    config = official.arguments(quantizer_config=quantizer(groups=4, use_l2_norm=True))
    official.write(tmp_path / "checkpoint.pt", config)
    assert "signs alone" in error_of(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("kept", [0, 10, 1000, 50_000])
def test_a_truncated_file(kept, tmp_path):
    path = tmp_path / "checkpoint.pt"
    official.write(path, official.arguments())
    path.write_bytes(path.read_bytes()[:kept])
    assert "broken" in error_of(path)


def test_missing_and_surplus_keys(tmp_path):
    config = official.arguments()
    state = official.random_state(config)
    official.write(tmp_path / "a.pt", config, {k: v for k, v in state.items() if k != "encoder.fianl_layers.0.bias"})
    assert "it lacks encoder.fianl_layers.0.bias" in error_of(tmp_path / "a.pt")
    official.write(tmp_path / "b.pt", config, state | {"discriminator.conv.weight": torch.zeros(1)})
    assert "it has discriminator.conv.weight, too" in error_of(tmp_path / "b.pt")
    official.write(tmp_path / "c.pt", config, {k: v for k, v in state.items() if "codebook" not in k})
    assert "lacks the weight quantizers.codebook.weight" in error_of(tmp_path / "c.pt")


WEIGHTS = {"model_state_dict": {"a": torch.zeros(1)}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, "holds no weights, but state_dict, epoch"),
        ({}, "holds no weights, but nothing"),
        (torch.zeros(3), "holds no weights, but a Tensor"),
        ({"state_dict": {"a": torch.zeros(1)}}, "no family that is known (bitdance, bsq_vit, cosmos_di, "),
        ({"model_state_dict": [1], "config": b"x"}, "holds no weights, but model_state_dict, config"),
        (WEIGHTS | {"config": {"hidden_channels": 32}}, "must be a pickle in bytes, got dict"),
        (WEIGHTS | {"config": b"hello"}, "its config was refused: broken pickle"),
        (WEIGHTS | {"config": pickle.dumps([1])[:-1]}, "its config was refused: broken pickle"),
        (WEIGHTS | {"config": pickle.dumps([1, 2])}, "its config is a list"),
    ],
)
def test_files_of_other_projects(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    assert message in error_of(tmp_path / "other.pt")


def test_a_text_file(tmp_path):
    (tmp_path / "note.pt").write_text("not a checkpoint\n" * 100)
    assert "broken, or no file of plain tensors" in error_of(tmp_path / "note.pt")


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w').write('owned')",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_configuration_runs_nothing(protocol, tmp_path):
    config = official.arguments() | {"quantizer_config": Payload(tmp_path / "owned")}
    pickled = pickle.dumps(config, protocol=protocol)
    official.write(tmp_path / "checkpoint.pt", official.arguments(), pickled=pickled)
    message = error_of(tmp_path / "checkpoint.pt")
    assert "it asks for" in message
    assert ".exec," in message
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickled)
    assert (tmp_path / "owned").read_text() == "owned"  # it was real


def test_a_hostile_outer_file_runs_nothing(tmp_path):
    torch.save(
        {"model_state_dict": {}, "config": b"x", "more": Payload(tmp_path / "owned")}, tmp_path / "checkpoint.pt"
    )
    assert "nothing of it was run: it asks for" in error_of(tmp_path / "checkpoint.pt")
    assert "exec" in error_of(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "owned").exists()


# gsqtok convert


def test_convert_writes_an_ordinary_tokenizer(tmp_path, capsys):
    official.write(tmp_path / "checkpoint.pt", official.arguments())
    assert main(["convert", str(tmp_path / "checkpoint.pt"), "-o", str(tmp_path / "new")]) == 0
    assert "f2" in capsys.readouterr().out
    assert {f.name for f in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    converted = ImageTokenizer.from_pretrained(tmp_path / "new")
    assert converted.fingerprint() == ImageTokenizer.from_pretrained(tmp_path / "checkpoint.pt").fingerprint()


def test_convert_says_what_is_wrong(tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    assert main(["convert", str(tmp_path / "other.pt"), "-o", str(tmp_path / "new")]) == 1
    assert "holds no weights" in capsys.readouterr().err
    assert not any((tmp_path / "new").iterdir())
    assert main(["convert", str(tmp_path / "absent.pt"), "-o", str(tmp_path / "new")]) == 1
    assert "no such" in capsys.readouterr().err
