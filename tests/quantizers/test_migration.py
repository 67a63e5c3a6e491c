"""Names of vector-quantize-pytorch: all of them are answered, and what has the same meaning gives the same numbers."""

import inspect

import pytest
import torch
import vector_quantize_pytorch as theirs

import gsqtok.studies  # noqa: F401, which registers gsq_study
from gsqtok.quantizers import build_quantizer, list_quantizers, migration, options_type

CLASSES = [name for name in dir(theirs) if inspect.isclass(getattr(theirs, name))]
LATENT = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
SHARED = {"dim", "codebook_size", "codebook_dim", "levels", "commitment_weight"}  # called the same here


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_answered(name):
    with pytest.raises(ValueError, match=f"^there is no '{name}'; .*vector-quantize-pytorch's "):
        build_quantizer(name, dim=8)


@pytest.mark.parametrize("name", ["VectorQuantize", "ResidualVQ", "FSQ", "ResidualFSQ", "LFQ", "ResidualLFQ", "SimVQ"])
def test_every_option_of_what_is_here_is_answered(name):
    parameters = inspect.signature(getattr(theirs, name).__init__).parameters.values()
    options = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - SHARED - {"self"}
    for option in options:
        with pytest.raises(ValueError, match=f"^there is no '{option}'; .*vector-quantize-pytorch's "):
            build_quantizer("identity", dim=8, **{option: 1})


def test_what_an_answer_names_exists():
    known = {field for name in list_quantizers() for field in options_type(name).__dataclass_fields__}
    known |= {*list_quantizers(), "dim", "channel_first=True"}
    for option in ("groups", "revive_after", "orthogonal_weight", "stage_dropout", "diversity", "entropy_weight"):
        assert option in known
        assert any(said.startswith(option) for said in migration.OPTIONS.values())
    for said in (*migration.OPTIONS.values(), *migration.CLASSES.values()):
        quoted = [word for word in said.split("'")[1::2] if word.isidentifier()]
        assert set(quoted) <= known, said


def test_an_unknown_name_is_answered_as_before():
    with pytest.raises(ValueError, match=r"has no option 'group'; did you mean 'groups'\?"):
        build_quantizer("gsq", dim=8, group=2)
    assert build_quantizer("fvq", dim=8, codebook_size=64, heads=2).heads == 2  # its own option of that name


@pytest.mark.parametrize("cosine", [False, True])
def test_codebook_dim_and_the_rest_do_what_they_do_there(cosine):
    """VectorQuantize with maps, groups that share a codebook, and a mask."""
    vq = theirs.VectorQuantize(
        dim=12,
        codebook_dim=3,
        heads=2,
        codebook_size=32,
        use_cosine_sim=cosine,
        commitment_weight=0.25,
        rotation_trick=False,
    ).eval()
    ours = build_quantizer(
        "ema_vq", dim=12, codebook_dim=6, groups=2, codebook_size=32, metric="cosine" if cosine else "euclidean"
    ).eval()
    ours.project_in.load_state_dict(vq.project_in.state_dict())
    ours.project_out.load_state_dict(vq.project_out.state_dict())
    ours.codebook.copy_(vq.codebook)
    quantized, indices, loss = ours(LATENT)
    expected, their_indices, _ = vq(LATENT)
    assert torch.equal(indices, their_indices)
    torch.testing.assert_close(quantized, expected, rtol=1e-5, atol=1e-6)
    assert loss.isfinite()
    first = ours(LATENT.movedim(-1, 1), channel_first=True)
    torch.testing.assert_close(first.quantized, expected.movedim(-1, 1), rtol=1e-5, atol=1e-6)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    masked, masked_indices, _ = ours(LATENT, mask=mask)
    expected, their_indices, _ = vq(LATENT, mask=mask)
    assert torch.equal(masked_indices, their_indices)
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
