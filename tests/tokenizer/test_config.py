import json

import pytest
import torch

from gsqtok.networks import CompactDecoder, CompactEncoder, Decoder
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig

COMPACT = {
    "network": "compact",
    "latent_dim": 8,
    "channels": 32,
    "multipliers": (1, 2),
    "decoder_multipliers": (1, 3),
    "encoder_blocks": (1, 0),
    "decoder_blocks": (1, 2),
    "encoder_middle_blocks": 1,
    "decoder_middle_blocks": 0,
    "quantizer": {"name": "gsq", "groups": 2, "codebook_size": 64},
}


def test_compact_networks():
    tokenizer = ImageTokenizer(TokenizerConfig(**COMPACT))
    assert isinstance(tokenizer.encoder, CompactEncoder)
    assert isinstance(tokenizer.decoder, CompactDecoder)
    assert tokenizer.factor == 4
    tokens = tokenizer.eval().encode(torch.rand(1, 3, 18, 8) * 2 - 1)
    assert tokens.shape == (1, 5, 2, 2)
    assert tokenizer.decode(tokens, size=(18, 8)).shape == (1, 3, 18, 8)
    assert tokenizer.decoder.conv_in.out_channels == 96
    assert tokenizer.encoder.conv_out.in_channels == 64


def test_middle_blocks_of_compact_networks_are_blocks_of_the_last_level():
    torch.manual_seed(0)
    first = ImageTokenizer(TokenizerConfig(**COMPACT))
    torch.manual_seed(0)
    second = ImageTokenizer(TokenizerConfig(**COMPACT | {"encoder_blocks": (1, 1), "encoder_middle_blocks": 0}))
    assert {k: v.shape for k, v in first.state_dict().items()} == {k: v.shape for k, v in second.state_dict().items()}


def test_the_papers_decoder_may_be_wider_than_its_encoder():
    config = TokenizerConfig(channels=32, multipliers=(1, 1), decoder_multipliers=(1, 2), quantizer={"name": "gsq"})
    decoder = ImageTokenizer(config).decoder
    assert isinstance(decoder, Decoder)
    assert decoder.conv_in.out_channels == 64


def test_saved_and_loaded(tmp_path):
    tokenizer = ImageTokenizer(TokenizerConfig(**COMPACT))
    torch.nn.init.normal_(tokenizer.encoder.blocks[0].conv2.weight)
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config == tokenizer.config
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_half_precision_and_layout():
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(TokenizerConfig(**COMPACT)).eval()
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = tokenizer.encode(images)
    assert torch.equal(tokenizer.optimize().encode(images), expected)
    half = tokenizer.optimize(torch.bfloat16)
    assert half.encoder.conv_out.weight.dtype == torch.float32
    assert (half.encode(images) == expected).float().mean() > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "other"}, "network must be one of paper, compact"),
        ({"adaptive_norm": True}, "adaptive_norm is an option of the paper's networks"),
        ({"attention_factors": (2,)}, "attention_factors is an option of the paper's networks"),
        ({"decoder_multipliers": (1, 2, 3)}, "decoder_multipliers names 3 levels, multipliers 2"),
        ({"decoder_multipliers": (0, 1)}, "decoder_multipliers must be a list, each a whole number of at least 1"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**COMPACT | change)


def test_options_that_came_later_leave_fingerprints_alone():
    config = TokenizerConfig()
    assert set(config.to_dict()) == {
        *("latent_dim", "channels", "multipliers", "encoder_blocks", "decoder_blocks", "encoder_middle_blocks"),
        *("decoder_middle_blocks", "middle_attention", "attention_factors", "adaptive_norm", "depth_to_space"),
        "quantizer",
    }
    assert TokenizerConfig.from_dict(config.to_dict()) == config
    compact = TokenizerConfig(**COMPACT)
    assert TokenizerConfig.from_dict(json.loads(json.dumps(compact.to_dict()))) == compact
