import copy
import gc

import pytest
import torch
from torch import nn

from gsqtok.acceleration import recompute
from gsqtok.networks.backbone import random_backbone
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training.graphs import only_like, record, record_backbone


def test_only_inputs_like_the_sample_replay():
    network = nn.Linear(3, 3).train()
    sample = torch.zeros(2, 3)
    forward = only_like(sample, network, lambda x: "replayed", lambda x: "eager", None)
    assert forward(torch.ones(2, 3)) == "replayed"
    assert forward(torch.ones(4, 3)) == "eager"
    assert forward(torch.ones(2, 3).double()) == "eager"
    assert forward(torch.ones(2, 3, requires_grad=True)) == "eager"
    with torch.no_grad():
        assert forward(torch.ones(2, 3)) == "eager"
    with torch.autocast("cpu", torch.bfloat16):
        assert forward(torch.ones(2, 3)) == "eager"
    network.eval()
    assert forward(torch.ones(2, 3)) == "eager"


def test_only_the_recorded_precision_replays():
    forward = only_like(torch.zeros(1), nn.Identity(), lambda x: "replayed", lambda x: "eager", torch.bfloat16)
    assert forward(torch.ones(1)) == "eager"
    with torch.autocast("cpu", torch.bfloat16):
        assert forward(torch.ones(1)) == "replayed"


def test_passes_with_and_without_gradient_are_told_apart():
    options = (torch.zeros(1), nn.Identity(), lambda x: "replayed", lambda x: "eager", None)
    forward = only_like(*options, gradient=False)
    assert forward(torch.ones(1)) == "eager"
    with torch.no_grad():
        assert forward(torch.ones(1)) == "replayed"
        assert only_like(*options)(torch.ones(1)) == "eager"


def test_graphs_need_a_gpu(tiny_tokenizer):
    with pytest.raises(ValueError, match="on one GPU, not cpu"):
        record(tiny_tokenizer.train(), torch.zeros(1, 3, 8, 8), None)


@pytest.fixture(autouse=True)
def _nothing_left_of_other_tests(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its rounding depends on the algorithm
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
def test_record_refuses_what_it_cannot_record(tiny_tokenizer):
    tokenizer = tiny_tokenizer.cuda()
    with pytest.raises(ValueError, match=r"tokenizer\.train\(\)"):
        record(tokenizer.eval(), torch.zeros(1, 3, 8, 8, device="cuda"), None)
    with pytest.raises(ValueError, match="no multiples of the factor 4"):
        record(tokenizer.train(), torch.zeros(1, 3, 10, 8, device="cuda"), None)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("levels", [0, 2])
def test_steps_from_graphs_equal_eager_ones(tiny_config, precision, layout, levels):
    torch.manual_seed(0)
    eager = ImageTokenizer(tiny_config).cuda().train().to(memory_format=layout)
    recompute(eager, levels=levels)
    graphed = copy.deepcopy(eager)
    batches = torch.rand(3, 4, 3, 16, 24, device="cuda") * 2 - 1
    unchanged, version = batches.clone(), batches._version
    record(graphed, batches[0], precision)

    def train(tokenizer):
        optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.01)
        losses = []
        for images in (*batches, torch.rand(2, 3, 16, 16, device="cuda", generator=generator()) * 2 - 1):
            with torch.autocast("cuda", precision, enabled=precision is not None):
                out = tokenizer(images)
                loss = (out.reconstruction.float() - images).square().mean() + out.quantizer_loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach().clone())
        return torch.stack(losses), [p.detach().clone() for p in tokenizer.parameters()]

    tolerance = {"rtol": 1e-3, "atol": 1e-4} if precision is None else {"rtol": 2e-2, "atol": 2e-3}
    for found, expected in zip(train(graphed)[1], train(eager)[1], strict=True):
        torch.testing.assert_close(found, expected, **tolerance)
    assert torch.equal(batches, unchanged)
    assert batches._version == version
    assert graphed.eval().encode(batches[0]).shape == (4, 4, 6, 2)


@pytest.mark.gpu
@needs_gpu
def test_several_shapes_share_the_memory_of_their_graphs(tiny_config):
    torch.manual_seed(0)
    eager = ImageTokenizer(tiny_config).cuda().train()
    graphed = copy.deepcopy(eager)
    shapes = [(8, 3, 8, 8), (2, 3, 16, 16)]
    pool = torch.cuda.graph_pool_handle()
    for shape in shapes:
        record(graphed, torch.zeros(shape, device="cuda"), None, pool)
    for shape in [*shapes, *reversed(shapes), *shapes]:
        images = torch.rand(shape, device="cuda") * 2 - 1
        for tokenizer in (eager, graphed):
            out = tokenizer(images)
            ((out.reconstruction - images).square().mean() + out.quantizer_loss).backward()
        for found, expected in zip(graphed.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)
            found.grad = expected.grad = None


@pytest.mark.gpu
@needs_gpu
def test_accumulating_into_existing_gradients(tiny_config):
    torch.manual_seed(0)
    eager = ImageTokenizer(tiny_config).cuda().train()
    graphed = copy.deepcopy(eager)
    batches = torch.rand(3, 2, 3, 16, 16, device="cuda") * 2 - 1
    record(graphed, batches[0], None)
    for tokenizer in (eager, graphed):
        for parameter in tokenizer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for images in batches:
            out = tokenizer(images)
            ((out.reconstruction - images).square().mean() + out.quantizer_loss).backward()
    for found, expected in zip(graphed.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_features_from_graphs_equal_eager_ones(precision):
    torch.manual_seed(0)
    eager = random_backbone("tf_efficientnet_lite0").cuda()
    graphed = copy.deepcopy(eager)
    batches = torch.rand(3, 4, 3, 32, 32, device="cuda") * 2 - 1
    record_backbone(graphed, batches[0].to(memory_format=torch.channels_last), precision)

    def passes(backbone):
        found = []
        with torch.autocast("cuda", precision, enabled=precision is not None):
            with torch.no_grad():
                kept = [backbone(images) for images in batches]  # a pass must not overwrite the features before it
            images = batches[1].clone().requires_grad_()
            features = backbone(images)
            sum(feature.float().square().mean() for feature in features).backward()
            found = [feature for list_ in (*kept, features) for feature in list_]
            found += backbone(batches[:1, :2].flatten(0, 1))  # another size
        return [feature.detach().float().clone() for feature in found], images.grad

    tolerance = {"rtol": 1e-3, "atol": 1e-4} if precision is None else {"rtol": 5e-2, "atol": 5e-2}
    (found, gradient), (expected, right) = passes(graphed), passes(eager)
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(gradient, right, rtol=5e-2, atol=float(right.abs().max()) / 50)


def generator():
    return torch.Generator("cuda").manual_seed(1)
