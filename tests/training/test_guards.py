"""Steps that are not finite: skipped, counted, named, and in the end the run stops."""

import logging
import math

import pytest
import torch

from gsqtok.training import Trainer
from gsqtok.training.guards import FiniteGuard, TrainingDivergedError

FINE = {"total": torch.tensor(1.0), "reconstruction": torch.tensor(1.0)}
BROKEN = {"total": torch.tensor(math.nan), "reconstruction": torch.tensor(1.0), "commitment": torch.tensor(math.inf)}


def test_skips_counts_and_names(caplog):
    guard = FiniteGuard()
    with caplog.at_level(logging.WARNING, "gsqtok.training"):
        assert guard.allows(1, torch.tensor(2.0), FINE)
        assert not caplog.records
        assert not guard.allows(2, torch.tensor(math.nan), BROKEN)
        assert not guard.allows(3, math.inf, FINE)
        assert guard.allows(4, 1.0, FINE)
    assert guard.skipped == 2
    first, second = (record.getMessage() for record in caplog.records)
    assert "step 2" in first
    assert "commitment" in first
    assert "reconstruction" not in first
    assert "step 3: the gradient" in second


def test_stops_after_the_limit_in_a_row():
    guard = FiniteGuard(limit=3)
    for step in (1, 2):
        assert not guard.allows(step, math.nan, BROKEN)
    assert guard.allows(3, 1.0, FINE)  # the count in a row starts again
    for step in (4, 5):
        assert not guard.allows(step, math.nan, BROKEN)
    with pytest.raises(TrainingDivergedError, match=r"3 steps in a row up to step 6.*commitment"):
        guard.allows(6, math.nan, BROKEN)
    assert guard.skipped == 5


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
    assert trainer.guard.skipped == 1
    assert int(trainer.usage.positions) == positions
    for name, value in trainer.tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in trainer.ema.state_dict().items():
        assert torch.equal(value, average[name]), name

    trainer.step(3, batches)
    assert trainer.guard.skipped == 1
    changed = [name for name, value in trainer.tokenizer.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(torch.isfinite(value).all() for value in trainer.tokenizer.state_dict().values())


def test_a_picture_of_nan_is_skipped(tiny):
    trainer = Trainer(tiny())
    batch = next(trainer.batches())
    before = {k: v.clone() for k, v in trainer.tokenizer.state_dict().items()}
    trainer.step(1, iter([batch | {"image": torch.full_like(batch["image"], math.nan)}]))
    assert trainer.guard.skipped == 1
    for name, value in trainer.tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name
