"""`fit` keeps to its time: the numbers of epochs follow what epochs take."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from recombinator.data.table import load_table
from recombinator.fit.plan import Plan
from recombinator.fit.schedule import MOST_STEPS, PERCENT, TRAINING_SHARE, Schedule, shares
from recombinator.training.loop import Trainer
from recombinator.training.recipe import get_recipe
from recombinator.weights.files import read_tensors

PLAN = Plan("image", 80, 1, 64, "rcn-6", "", 1, 10, 0.1, 0.1, False, 32, minutes=10, coarse_epochs=100)
BUDGET = 60 * PLAN.minutes * TRAINING_SHARE


class Stub:
    """A trainer whose epochs take `cost(epoch)` seconds."""

    average = None

    def __init__(self, out, epochs, cost, samples=320):
        self.out, self.samples, self.cost, self.changes = out, samples, cost, []
        self.recipe = get_recipe("fast", "rcn-6", epochs=epochs)
        self.position = SimpleNamespace(epoch=0, seconds=0.0)
        self.net = torch.nn.Identity()

    def fit(self, on_epoch, progress):
        while self.position.epoch < self.recipe.epochs:
            self.position.epoch += 1
            self.position.seconds += self.cost(self.position.epoch)
            progress(self.position.epoch, self.recipe.epochs)
            on_epoch({})

    def change_epochs(self, epochs):
        assert epochs > self.position.epoch
        self.recipe = replace(self.recipe, epochs=epochs)
        self.changes.append((self.position.epoch, epochs))


def run(tmp_path, cost, plan=PLAN, name="coarse", samples=320):
    parts, schedule = [], Schedule(plan, tmp_path, False, lambda done, total: parts.append((done, total)))
    trainer = Stub(tmp_path, getattr(plan, f"{name}_epochs"), cost, samples)
    schedule.train(name, trainer)
    return trainer, schedule, parts


@pytest.mark.parametrize("seconds", [1.3, 5.1, 11.0, 80.0])
def test_the_time_is_kept_whatever_an_epoch_takes(tmp_path, seconds):
    trainer, _, parts = run(tmp_path, lambda epoch: seconds)
    assert trainer.position.seconds == pytest.approx(BUDGET, rel=0.12)
    assert parts[-1] == (PERCENT, PERCENT) and all(total == PERCENT for _, total in parts)


def test_the_plan_has_the_epochs_of_the_training(tmp_path):
    trainer, schedule, _ = run(tmp_path, lambda epoch: 11.0)
    assert schedule.plan.coarse_epochs == trainer.position.epoch < 100
    assert Plan.read(tmp_path / "plan.json") == schedule.plan


def test_a_machine_that_gets_busy_later(tmp_path):
    trainer, _, _ = run(tmp_path, lambda epoch: 5.1 if epoch <= 60 else 20.0)
    assert trainer.position.seconds < 1.15 * BUDGET  # 1,106 seconds as planned
    assert all(after < 100 for _, after in trainer.changes)


def test_the_learning_rate_never_rises_again(tmp_path):
    trainer, _, _ = run(tmp_path, lambda epoch: 5.1 if epoch <= 60 else 1.0)
    assert trainer.changes == []  # it has begun to fall when the machine becomes free


def test_given_epochs_stay(tmp_path):
    trainer, _, _ = run(tmp_path, lambda epoch: 1e4, replace(PLAN, minutes=0.0))
    assert trainer.position.epoch == 100 and not (tmp_path / "plan.json").exists()


def test_no_more_steps_than_help(tmp_path):
    trainer, _, _ = run(tmp_path, lambda epoch: 0.001, samples=32_000)
    assert trainer.position.epoch == MOST_STEPS * PLAN.batch // 32_000


def test_networks_share_the_time_and_what_is_left_of_it(tmp_path):
    plan = replace(PLAN, where="finder", factor=2, fine_epochs=100, finder_epochs=100)
    assert sum(shares(plan).values()) == pytest.approx(1) and list(shares(plan)) == ["finder", "coarse", "fine"]
    schedule, spent = Schedule(plan, tmp_path, False, lambda done, total: None), 0.0
    for name, cost in (("finder", 0.5), ("coarse", 3.0), ("fine", 3.0)):
        trainer = Stub(tmp_path, 100, lambda epoch, cost=cost: cost, samples=5000 if name == "finder" else 320)
        schedule.train(name, trainer)
        spent += trainer.position.seconds
        if name == "finder":  # limited by its steps
            assert trainer.position.seconds < 0.2 * BUDGET
    assert spent == schedule.used == pytest.approx(BUDGET, rel=0.06)


def test_a_changed_number_of_epochs_is_as_if_it_had_been_planned(faces5, tmp_path):
    recipe = get_recipe("fast", "rcn-4", epochs=10, batch=16, ema=0.9)

    def trainer(name, epochs):
        table = load_table(faces5 / "train.parquet"), load_table(faces5 / "valid.parquet")
        options = {"size": 40, "width": 0.25}
        return Trainer("rcn-4", *table, tmp_path / name, replace(recipe, epochs=epochs), options=options)

    changed, planned = trainer("changed", 10), trainer("planned", 4)
    assert planned.recipe.stable_epochs == 1
    planned.fit()
    changed.fit(lambda metrics: changed.change_epochs(4) if metrics["epoch"] == 1 else None)
    a, b = (read_tensors(tmp_path / name / "last.safetensors")[0] for name in ("changed", "planned"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    resumed = trainer("changed", 4)
    resumed.restore()
    assert resumed.position.epoch == 4
