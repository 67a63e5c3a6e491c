"""Steps that are not finite: skipped, counted, named, and in the end the run stops."""

import logging
import math

import pytest
import torch

from gsqtok.training import Trainer
from gsqtok.training.guards import CollapseWatch, DominanceWatch, FiniteGuard, TrainingDivergedError

FINE = {"total": torch.tensor(1.0), "reconstruction": torch.tensor(1.0), "gradient_norm": torch.tensor(2.0)}
BROKEN = FINE | {"total": torch.tensor(math.nan), "commitment": torch.tensor(math.inf)}
STEEP = FINE | {"gradient_norm": torch.tensor(math.inf)}


def test_skips_counts_and_names(caplog):
    guard = FiniteGuard()
    with caplog.at_level(logging.WARNING, "gsqtok.training"):
        assert guard.allows(1, FINE)
        assert not caplog.records
        assert not guard.allows(2, BROKEN)
        assert not guard.allows(3, STEEP)
        assert not guard.allows(4, FINE | {"discriminator/gradient_norm": torch.tensor(math.nan)})
        assert not guard.allows(5, STEEP | {"discriminator/loss": torch.tensor(math.nan)})
        assert guard.allows(6, FINE)
    assert guard.skipped == 4
    first, second, third, fourth = (record.getMessage() for record in caplog.records)
    assert "step 2: loss term commitment is" in first
    assert "step 3: the gradient is" in second
    assert "step 4: the discriminator's gradient is" in third
    assert "step 5: loss term discriminator/loss is" in fourth


def test_all_ranks_skip_together(caplog):
    guard = FiniteGuard(agreed=torch.zeros_like)
    assert not guard.allows(1, FINE)
    assert "another rank" in caplog.text


def test_stops_after_the_limit_in_a_row(tmp_path):
    guard = FiniteGuard(limit=3, last_checkpoint=lambda: tmp_path / "step-1")
    for step in (1, 2):
        assert not guard.allows(step, BROKEN)
    assert guard.allows(3, FINE)  # the count in a row starts again
    for step in (4, 5):
        assert not guard.allows(step, BROKEN)
    again = FiniteGuard(limit=3)
    again.load_state_dict(guard.state_dict())  # a restart does not start it again
    with pytest.raises(TrainingDivergedError, match=r"3 steps in a row up to step 6.*commitment.*last good.*step-1"):
        guard.allows(6, BROKEN)
    assert guard.skipped == 5
    with pytest.raises(TrainingDivergedError, match="no checkpoint yet"):
        again.allows(6, BROKEN)


def test_collapse_is_said_once_a_stretch():
    watch = CollapseWatch()
    seen = [(0.5, 40.0), (0.9, 80.0), (0.8, 41.0), (0.4, 39.0), (0.3, 20.0), (0.6, 60.0), (0.9, 30.0)]
    said = [watch.see(step, {"usage": usage, "perplexity": p}) for step, (usage, p) in enumerate(seen)]
    assert [message is not None for message in said] == [False, False, False, True, False, False, True]
    assert "step 3" in said[3]
    assert "usage fell to 0.4, from 0.9" in said[3]
    assert "perplexity fell to 39, from 80" in said[3]
    assert "usage" not in said[6]


def test_dominance_is_judged_over_many_steps():
    watch = DominanceWatch(steps=100)
    said = [watch.see(step, accuracy, 50) for step, accuracy in enumerate([1, 0.9, 1, 1, 1, 1, 0.5, 0.5, 1, 0.99])]
    assert [message is not None for message in said] == [False] * 3 + [True] + [False] * 5 + [True]
    assert "step 3" in said[3]
    assert "100.00%" in said[3]
    assert "99.50%" in said[9]


@pytest.mark.parametrize("make", [CollapseWatch, DominanceWatch])
def test_a_restart_says_nothing_twice(make):
    watch = make()
    values = [({"usage": u},) for u in (0.9, 0.1, 0.1)] if make is CollapseWatch else [(1.0, 60)] * 4
    said = []
    for step, value in enumerate(values):
        said.append(watch.see(step, *value))
        state = watch.state_dict()
        watch = make()
        watch.load_state_dict(state)
    assert sum(message is not None for message in said) == 1


def test_a_broken_step_leaves_everything_as_it_was(tiny):
    trainer = Trainer(tiny())
    batches = trainer.batches()
    trainer.step(1, batches)
    before = {k: v.clone() for k, v in trainer.tokenizer.state_dict().items()}
    average = {k: v.clone() for k, v in trainer.ema.state_dict().items()}
    positions = int(trainer.usage.positions)

    hook = trainer.objective.register_forward_hook(lambda module, inputs, out: (out[0] * math.nan, out[1]))
    trainer.step(2, batches)
    hook.remove()
    trainer.guard.settle()
    assert trainer.guard.skipped == 1
    assert int(trainer.usage.positions) == positions
    for name, value in trainer.tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    if trainer.accelerator.device.type == "cpu":  # nobody waits for a GPU: it averages the unchanged weights once more
        for name, value in trainer.ema.state_dict().items():
            assert torch.equal(value, average[name]), name

    trainer.step(3, batches)
    trainer.guard.settle()
    assert trainer.guard.skipped == 1
    changed = [name for name, value in trainer.tokenizer.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(torch.isfinite(value).all() for value in trainer.tokenizer.state_dict().values())


def test_an_image_of_nan_is_skipped(tiny):
    trainer = Trainer(tiny())
    batch = next(trainer.batches())
    before = {k: v.clone() for k, v in trainer.tokenizer.state_dict().items()}
    trainer.step(1, iter([batch | {"image": torch.full_like(batch["image"], math.nan, dtype=torch.float32)}]))
    trainer.guard.settle()
    assert trainer.guard.skipped == 1
    for name, value in trainer.tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name
