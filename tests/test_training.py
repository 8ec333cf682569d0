import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from recombinator.data.readers.synthetic import prepare_synthetic
from recombinator.data.table import load_table
from recombinator.evaluation.tables import evaluate
from recombinator.keypoints import KeypointSet
from recombinator.models import create_model
from recombinator.models.layers import Conv, initial_bound
from recombinator.training.average import MovingAverage
from recombinator.training.loop import Trainer
from recombinator.training.loss import distillation_loss, softmax_loss
from recombinator.training.order import balanced_order
from recombinator.training.recipe import FAST, PAPER, Recipe, get_recipe, make_optimizer, parse_settings, setting_types
from recombinator.training.revive import dead_channels, revive
from recombinator.training.run import train
from recombinator.training.start import copy_matching
from recombinator.transforms.augment import Augment
from recombinator.transforms.samples import corrupted
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights, read_tensors

SMALL = {"options": {"size": 40, "width": 0.25}}


def weights_of(run, name="last.safetensors"):
    return read_tensors(run / name)[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stop(Exception):
    pass


def stop_after(epoch):
    def on_epoch(metrics):
        if metrics["epoch"] == epoch:
            raise Stop

    return on_epoch


def test_distillation_from_a_larger_network(faces5, tmp_path):
    train("rcn-4", faces5, tmp_path / "large", epochs=1, **SMALL)
    teacher = load_weights(tmp_path / "large").net
    kind = dict(SMALL, teacher=tmp_path / "large", distil=1.0, batch=8, learning_rate=4e-3)
    train("rcn-4", faces5, tmp_path / "small", epochs=2, **dict(kind, options={"size": 40, "width": 0.2, "fold": 2}))
    train("rcn-4", faces5, tmp_path / "alone", epochs=2, **dict(SMALL, batch=8, learning_rate=4e-3, options={
        "size": 40, "width": 0.2, "fold": 2}))  # fmt: skip
    x = torch.rand(8, 1, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
    target = teacher(x)
    mask = torch.ones(8, 5)
    small, alone = (distillation_loss(load_weights(tmp_path / n).net(x), target, mask) for n in ("small", "alone"))
    assert small < alone  # closer to the teacher, whatever the truth
    again = train("rcn-4", faces5, tmp_path / "small", epochs=3, resume=True)
    assert again["epochs"] == 3
    for wrong, words in (
        ({"options": {"size": 48}}, "size=40; expected keypoints=5, channels=1, size=48"),
        ({"distil": 2.0}, "distil=2.0: expected a number from 0 to 1"),
    ):
        with pytest.raises(InputError, match=words):
            train("rcn-4", faces5, tmp_path / "no", epochs=1, **dict(kind, **wrong))
    with pytest.raises(InputError, match="errors_of .*large: is for a denoiser"):
        train("rcn-4", faces5, tmp_path / "no", epochs=1, **SMALL, errors_of=tmp_path / "large")
    with pytest.raises(InputError, match="teacher .*large: is for networks with score maps"):
        train("tcdcn-alone", faces5, tmp_path / "no", epochs=1, **dict(kind, options={}))


def test_the_distillation_loss_is_a_cross_entropy():
    scores, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 1]])
    slow = sum(
        -float((teacher[i, k].flatten().softmax(0) * scores[i, k].flatten().log_softmax(0)).sum())
        for i in range(2) for k in range(3) if mask[i, k]
    )  # fmt: skip
    assert float(distillation_loss(scores, teacher, mask)) == pytest.approx(3 * slow / 4, rel=1e-5)


@pytest.mark.parametrize(("recipe", "ema"), [("fast", 0.0), ("fast", 0.9), ("paper", 0.0)])
def test_a_resumed_run_equals_an_uninterrupted_one(faces5, tmp_path, recipe, ema):
    kind = dict(SMALL, recipe=recipe, batch=16, ema=ema)
    train("rcn-4", faces5, tmp_path / "whole", epochs=5, **kind)
    with pytest.raises(Stop):
        train("rcn-4", faces5, tmp_path / "cut", epochs=5, **dict(kind, on_epoch=stop_after(3)))
    train("rcn-4", faces5, tmp_path / "cut", epochs=5, resume=True, **kind)
    train("rcn-4", faces5, tmp_path / "longer", epochs=3, **kind)
    train("rcn-4", faces5, tmp_path / "longer", epochs=5, resume=True, **kind)
    for other in ("cut", "longer"):
        assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / other))
        assert same(
            weights_of(tmp_path / "whole", "best.safetensors"), weights_of(tmp_path / other, "best.safetensors")
        )
        errors = [
            [json.loads(x)["valid"] for x in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
            for run in ("whole", other)
        ]
        assert errors[0] == errors[1] and len(errors[0]) == 5


def test_the_moving_average_is_kept_and_does_not_change_the_training(faces5, tmp_path):
    for name, ema in (("plain", 0.0), ("average", 0.5)):
        train("rcn-4", faces5, tmp_path / name, epochs=1, batch=64, ema=ema, **SMALL)
    plain, average = (weights_of(tmp_path / name) for name in ("plain", "average"))
    assert all(torch.equal(v, average[k]) for k, v in plain.items() if k.startswith("net."))
    kept = weights_of(tmp_path / "average", "best.safetensors")
    assert not same(kept, weights_of(tmp_path / "plain", "best.safetensors"))

    net = create_model("rcn-4", 5, **SMALL["options"])
    values = MovingAverage(net, 0.9)
    slow = [p.detach().clone() for p in net.parameters()]
    for step in range(30):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(1)
        values.update(step)
        share = min(0.9, (1 + step) / (10 + step))
        slow = [share * old + (1 - share) * p.detach() for old, p in zip(slow, net.parameters(), strict=True)]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(values.values, slow, strict=True))


def test_shuffled_order_and_jitter_differ_between_epochs_and_seeds(faces5, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("sumnet-4", faces5, tmp_path / name, epochs=1, seed=seed, **SMALL)
    assert same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    assert not same(weights_of(tmp_path / "a"), weights_of(tmp_path / "c"))


def test_a_balanced_order_shows_rare_classes_more_often():
    classes = torch.tensor([0] * 900 + [2] * 100)
    orders = [balanced_order(classes, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert all(len(order) == 1000 for order in orders) and not torch.equal(orders[0], orders[1])
    times = torch.stack([order.bincount(minlength=1000) for order in orders]).float()
    often, rare = times[:, :900], times[:, 900:]
    # 30 parts to 10: 750 and 250 of 1,000
    assert abs(float(rare.sum(1).mean()) - 250) < 5 and set(rare.unique().tolist()) == {2.0, 3.0}
    assert set(often.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(often.mean(0).mean(), torch.tensor(750 / 900), atol=0.01) and (often.sum(0) > 20).all()


def test_balancing_by_an_attribute(faces5, tmp_path):
    with pytest.raises(InputError, match="no such attribute"):
        train("rcn-4", faces5, tmp_path / "no", epochs=1, balance="pose", **SMALL)
    with pytest.raises(InputError, match="shuffle"):
        Recipe("x", 1, 8, "adamw", FAST.augment, balance="pose", shuffle=False)


@pytest.mark.parametrize("model", ["rcn-5", "sumnet-5", "rcn-5-skip"])
def test_dead_channels_are_reinitialized(model):
    net = create_model(model, size=40, width=0.25)
    inputs = torch.rand(8, 1, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
    optimizer = make_optimizer(FAST, net)
    softmax_loss(net(inputs), torch.full((8, 5, 2), 20.0), torch.ones(8, 5, dtype=torch.bool)).backward()
    optimizer.step()
    rectified = net.rectified()
    ends = [c for c in net.modules() if isinstance(c, Conv) and c not in rectified]
    assert {c.out_channels for c in ends} == {5} and len(ends) == (5 if model == "sumnet-5" else 1)
    with torch.no_grad():
        for conv in (net.trunk[1], rectified[-1]):
            conv.weight[1:] = 0
            conv.bias[1:] = -1
    before = {k: v.clone() for k, v in net.state_dict().items()}
    dead = {conv: mask.clone() for conv, mask in dead_channels(net, inputs).items()}
    assert dead.keys() == set(rectified) and dead[net.trunk[1]][1:].all() and dead[rectified[-1]][1:].all()
    assert net.fused
    count = revive(net, inputs, optimizer, torch.Generator().manual_seed(0))
    assert count == sum(int(mask.sum()) for mask in dead.values())
    again = dead_channels(net, inputs)
    assert sum(int(mask.sum()) for mask in again.values()) < count / 2
    names = {p: n for n, p in net.named_parameters()}
    for conv, mask in dead.items():  # nothing else was touched, and the new weights are small
        assert torch.equal(conv.weight[~mask], before[names[conv.weight]][~mask])
        assert (conv.weight[mask].abs() <= 0.3 * initial_bound(conv)).all() and (conv.bias[mask] == 0).all()
        squares = optimizer.state[conv.weight]["exp_avg_sq"]
        assert mask.all() or (squares[mask] > 0).all() or (squares[~mask] == 0).all()


def test_revive_is_a_setting_of_the_recipe(faces5, tmp_path):
    kind = dict(SMALL, revive=True, batch=16, epochs=3, seed=2)
    train("rcn-4", faces5, tmp_path / "a", **kind)
    with pytest.raises(Stop):
        train("rcn-4", faces5, tmp_path / "b", **dict(kind, on_epoch=stop_after(1)))
    train("rcn-4", faces5, tmp_path / "b", resume=True, **SMALL)
    assert same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    revived = [json.loads(x)["revived"] for x in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert len(revived) == 3 and revived[-1] == 0  # the learning rate falls in the last epoch
    with pytest.raises(InputError, match="tcdcn-alone lists no rectified convolutions"):
        train("tcdcn-alone", faces5, tmp_path / "c", revive=True, epochs=1)


def test_dead_channels_are_counted_in_every_epoch(faces5, tmp_path):
    table = load_table(faces5 / "train.parquet")
    trainer = Trainer("rcn-4", table, table, tmp_path / "run", replace(FAST, epochs=2), options=SMALL["options"])
    counts = []

    def kill_the_first_layer(metrics):
        counts.append(metrics["dead_channels"])
        trainer.net.trunk[0].bias.data[:] = -1e6

    trainer.fit(kill_the_first_layer)
    assert counts[0] < 4 <= counts[1]  # the first layer has 4 channels
    trainer.net.train()
    assert trainer._count_dead_channels() >= 4 and trainer.net.training and trainer.net.fused
    train("tcdcn-alone", faces5, tmp_path / "regression", epochs=1)
    assert "dead_channels" not in json.loads((tmp_path / "regression" / "metrics.jsonl").read_text())


def long_run(data, folder, epochs=400):
    return [
        sys.executable, "-m", "recombinator", "train", "rcn-4", "--data", str(data), "--out", str(folder / "run"),
        "--set", "size=40", "--set", "width=0.25", "--epochs", str(epochs),
    ]  # fmt: skip


def test_a_kill_loses_at_most_the_running_epoch(faces5, tmp_path):
    command = long_run(faces5, tmp_path, 12)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch    3"):
            break
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, meta = read_tensors(tmp_path / "run" / "last.safetensors")
    assert meta["position"]["epoch"] >= 3
    load_weights(tmp_path / "run")
    done = subprocess.run([*command[:-2], "--resume"], capture_output=True, text=True)  # its epochs are remembered
    assert done.returncode == 0 and "of 12" in done.stdout
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["epoch"] for x in lines] == list(range(1, 13))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sittings"][1]["from_epoch"] >= 3


def test_interrupt_is_clean(faces5, tmp_path):
    command = long_run(faces5, tmp_path)
    # a background job of a shell ignores interrupts, and its children would too
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    for line in process.stdout:
        if line.startswith("epoch    1"):
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in error and "Traceback" not in error


def test_training_learns(faces5, tmp_path):
    train(
        "rcn-4",
        faces5,
        tmp_path / "run",
        epochs=25,
        batch=8,
        learning_rate=4e-3,
        **dict(SMALL, options={"size": 40, "width": 0.5}),
    )
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["clean"] < lines[0]["clean"] / 2 and lines[-1]["loss"] < lines[0]["loss"]
    result, report = evaluate(tmp_path / "run", faces5 / "test.parquet")
    assert report["images"] == 6 and report["nme"] == pytest.approx(100 * result.image_errors("continuous").mean())
    assert report["nme_ci95"][0] <= report["nme"] <= report["nme_ci95"][1]
    assert len(report["per_keypoint"]) == 5 and np.mean(report["per_keypoint"]) == pytest.approx(report["nme"])


def test_the_best_epoch_is_kept(faces5, tmp_path):
    summary = train("rcn-4", faces5, tmp_path / "run", epochs=6, **SMALL)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda x: x["valid"])
    assert summary["best_epoch"] == best["epoch"] and summary["best_valid"] == best["valid"]
    assert load_weights(tmp_path / "run").training["epoch"] == best["epoch"]


def test_patience_stops_early(faces5, tmp_path):
    summary = train("rcn-4", faces5, tmp_path / "run", epochs=50, patience=2, learning_rate=1e-9, **SMALL)
    assert summary["epochs"] - summary["best_epoch"] == 2 and summary["epochs"] < 50


def test_a_loss_that_is_not_finite_stops_with_the_place(faces5, tmp_path):
    with pytest.raises(InputError, match=r"epoch 1, batch \d+ .*no epoch was finished before"):
        train("rcn-4", faces5, tmp_path / "wild", epochs=3, warmup_steps=0, learning_rate=1e30, **SMALL)
    table = load_table(faces5 / "train.parquet")
    trainer = Trainer("rcn-4", table, table, tmp_path / "run", FAST, options=SMALL["options"])

    def poison(line):
        if line["epoch"] == 2:
            trainer.net.trunk[0].weight.data[0] = torch.nan

    with pytest.raises(InputError, match=r"epoch 3, batch 1 .*last good state is .*last\.safetensors \(epoch 2\)"):
        trainer.fit(poison)
    assert torch.isfinite(weights_of(tmp_path / "run")["net.trunk.0.weight"]).all()


def test_68_points_color_and_l2(tmp_path):
    prepare_synthetic(tmp_path / "color", faces=30, keypoints=68, seed=1, gray=False)
    kind = dict(SMALL, options={**SMALL["options"], "channels": 3})
    train("sumnet-4", tmp_path / "color", tmp_path / "a", epochs=1, loss="l2", **kind)
    trained = load_weights(tmp_path / "a")
    assert trained.keypoints.name == "face-68" and trained.net.trunk[0].weight.shape[1] == 3
    # the three channels differ: a network that was given gray three times would answer gray images alike
    inputs = torch.from_numpy(load_table(tmp_path / "color" / "test.parquet", 3).images)[..., :40, :40].float()
    assert (inputs[:, 0] != inputs[:, 2]).any()
    with torch.no_grad():
        assert not torch.allclose(trained.net(inputs), trained.net(inputs.flip(1)))
    prepare_synthetic(tmp_path / "gray", faces=30, keypoints=68, seed=1)
    with pytest.raises(InputError, match="gray"):
        train("sumnet-4", tmp_path / "gray", tmp_path / "b", epochs=1, **kind)


def test_each_epoch_logs_a_line_and_steps_are_counted(faces5, tmp_path, caplog, capsys):
    caplog.set_level("INFO", logger="recombinator")
    steps, metrics = [], []
    kind = {"progress": lambda done, total: steps.append((done, total)), "on_epoch": metrics.append}
    train("rcn-4", faces5, tmp_path / "run", epochs=2, batch=16, **SMALL, **kind)
    assert [m.split("  loss")[0] for m in caplog.messages] == ["epoch    1", "epoch    2"]
    assert steps == [(i, 6) for i in range(1, 7)]
    assert metrics == [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert capsys.readouterr().out == ""  # a library prints nothing


def test_a_denoiser_trains_and_resumes(faces68, tmp_path):
    kind = {"options": {"size": 20, "kernel": 9, "width": 16}, "batch": 8, "sigma": 0.0}
    train("denoiser", faces68, tmp_path / "whole", epochs=6, **kind)
    with pytest.raises(Stop):
        train("denoiser", faces68, tmp_path / "cut", epochs=6, **dict(kind, on_epoch=stop_after(2)))
    train("denoiser", faces68, tmp_path / "cut", resume=True)
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut"))
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    with pytest.raises(InputError, match="a denoiser takes keypoints, not images"):
        evaluate(tmp_path / "whole", faces68 / "test.parquet")


def test_corruption_changes_the_given_number_of_points():
    cells = torch.randint(0, 80, (50, 68, 2))
    given, changed = corrupted(cells, 35, 80, torch.Generator().manual_seed(0))
    assert (changed.sum(1) == 35).all() and torch.equal(given[~changed], cells[~changed])
    assert (given[changed] != cells[changed]).any(1).float().mean() > 0.99
    assert changed.float().mean(0).min() > 0.2  # every point is chosen sometimes


def test_start_from_other_weights(faces5, tmp_path):
    train("rcn-4", faces5, tmp_path / "a", epochs=1, **SMALL)
    tensors = weights_of(tmp_path / "a", "best.safetensors")
    net = load_weights(tmp_path / "a").net
    tensors["trunk.0.bias"] = torch.ones(9)
    copied = copy_matching(tensors, net)
    assert "trunk.1.weight" in copied and "trunk.0.bias" not in copied


def test_a_network_with_fold_2_starts_close_to_one_without():
    plain, folded = (  # "global": local normalization sees other windows in the larger image
        create_model("rcn-4", 3, size=size, fold=size // 16, norm="global").eval() for size in (16, 32)
    )
    assert set(copy_matching(plain.state_dict(), folded)) == set(folded.state_dict())
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        expected = plain(image).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        scores = folded(image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert float((scores - expected).std()) < 0.01 * float(expected.std())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "slow"}, "unknown recipe 'slow'; expected one of fast, paper"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"device": "cuda"}, "no CUDA"),
        ({"device": "gpu"}, "expected one of auto, cpu, cuda"),
        ({"resume": True}, "nothing to resume"),
        ({"start": "nowhere"}, "neither a weights file"),
    ],
)
def test_invalid_settings(faces5, tmp_path, changes, words):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=words):
        train("rcn-4", faces5, tmp_path / "run", **{**SMALL, **changes})


def test_a_run_is_not_overwritten_or_mixed(faces5, tmp_path):
    train("rcn-4", faces5, tmp_path / "run", epochs=2, **SMALL)
    with pytest.raises(InputError, match="already holds a run"):
        train("rcn-4", faces5, tmp_path / "run", epochs=2, **SMALL)
    for model, changes, words in (  # other mistakes come first
        ("rcn4", {}, "unknown model 'rcn4'"), ("rcn-4", {"options": {"mask": (1, 2)}}, "mask"),
        ("rcn-4", {"batch": 0}, "batch=0"), ("rcn-4", {"device": "gpu"}, "unknown device"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            train(model, faces5, tmp_path / "run", **{**SMALL, "epochs": 2, **changes})
    for changes, words in (
        ({"seed": 3}, r"settings: seed was 0 and is now 3\. Leave"),
        ({"batch": 7, "degrees": 7}, r"settings: batch was 32 and is now 7; degrees was \d+ and is now 7\. Leave"),
        ({"occlude": (1, 2)}, r"occlude was \d+,\d+ and is now 1,2"),
        ({"options": {**SMALL["options"], "norm": "global"}}, "norm was the default and is now global"),
    ):
        with pytest.raises(InputError, match=words):
            train("rcn-4", faces5, tmp_path / "run", **{**SMALL, "epochs": 2, "resume": True, **changes})
    with pytest.raises(InputError, match="model was rcn-4 and is now rcn-5"):
        train("rcn-5", faces5, tmp_path / "run", epochs=2, resume=True, **SMALL)


def test_training_leaves_the_callers_random_numbers_alone(faces5, tmp_path):
    """The network starts from the seed's weights, and neither start nor epoch draws from torch's global generator."""
    table, recipe = load_table(faces5 / "train.parquet"), get_recipe("fast", "rcn-4", epochs=2)
    torch.manual_seed(5)
    expected = create_model("rcn-4", 5, **SMALL["options"])
    expected.initialize(table.points, table.mask)
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        trainer = Trainer("rcn-4", table, table, tmp_path / str(seed), recipe, seed=5, options=SMALL["options"])
        assert same(trainer.net.state_dict(), expected.state_dict())
        trainer.fit()
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(trainer.net.state_dict())
    assert same(*ends)


def test_resume_warns_of_discarded_epochs_and_keeps_the_old_best(faces5, tmp_path, caplog):
    run = tmp_path / "run"
    train("rcn-4", faces5, run, epochs=6, **SMALL)
    with pytest.raises(InputError, match="has 6 epochs already"):
        train("rcn-4", faces5, run, epochs=3, resume=True, **SMALL)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6
    best = weights_of(run, "best.safetensors")
    train("rcn-4", faces5, run, epochs=8, resume=True, **SMALL)
    assert len(caplog.messages) == 1 and "epochs 3 to 6 are run again" in caplog.messages[0]
    assert same(weights_of(run, "best-6.safetensors"), best)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("epochs", [4, 1])
def test_a_lengthened_run_may_stop_at_once(faces5, tmp_path, epochs):
    run = tmp_path / "run"
    train("rcn-4", faces5, run, epochs=epochs, batch=16, **SMALL)
    best = weights_of(run, "best.safetensors")

    def stop(step, of):
        raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            train("rcn-4", faces5, run, epochs=8, resume=True, progress=stop, **SMALL)
    assert same(weights_of(run, f"best-{epochs}.safetensors"), best)
    assert train("rcn-4", faces5, run, resume=True, **SMALL)["epochs"] == 8
    train("rcn-4", faces5, tmp_path / "straight", epochs=8, batch=16, **SMALL)
    assert same(weights_of(run), weights_of(tmp_path / "straight"))


def test_a_run_stopped_in_its_first_epoch_starts_again_with_its_settings(faces5, tmp_path, caplog):
    def stop(step, of):
        raise Stop

    with pytest.raises(Stop):
        train("rcn-4", faces5, tmp_path / "run", epochs=2, batch=7, seed=5, progress=stop, **SMALL)
    train("rcn-4", faces5, tmp_path / "run", resume=True)
    train("rcn-4", faces5, tmp_path / "straight", epochs=2, batch=7, seed=5, **SMALL)
    assert "no epoch was finished" in caplog.messages[0]
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "straight"))


def test_patience_holds_on_resume(faces5, tmp_path):
    kind = dict(SMALL, epochs=9, patience=1, learning_rate=1e-9)
    first = train("rcn-4", faces5, tmp_path / "run", **kind)
    again = train("rcn-4", faces5, tmp_path / "run", resume=True, **kind)
    assert first["epochs"] < 9 and again["epochs"] == first["epochs"]


def test_a_recipe_takes_changes_too(faces5, tmp_path):
    assert train("rcn-4", faces5, tmp_path / "run", recipe=FAST, epochs=1, **SMALL)["epochs"] == 1


def test_start_from_unsuitable_weights(faces5, tmp_path):
    train("rcn-4", faces5, tmp_path / "run", epochs=1, **SMALL)
    state = tmp_path / "run" / "last.safetensors"
    for start, words in (
        (state, "a training checkpoint"),
        ("denoiser-lite-300w", "no tensor matches rcn-4"),
    ):
        with pytest.raises(InputError, match=words):
            train("rcn-4", faces5, tmp_path / "no", epochs=1, start=start, **SMALL)


def test_settings_are_remembered_on_resume(faces5, tmp_path):
    with pytest.raises(Stop):
        train("rcn-4", faces5, tmp_path / "run", epochs=3, batch=7, seed=5, **dict(SMALL, on_epoch=stop_after(1)))
    summary = train("rcn-4", faces5, tmp_path / "run", resume=True)
    assert summary["epochs"] == 3


@pytest.mark.parametrize("damage", ["truncated", "weights", "stable lost", "half a line"])
def test_damaged_runs(faces5, tmp_path, damage):
    run = tmp_path / "run"
    train("rcn-4", faces5, run, epochs=6, **SMALL)
    last = run / "last.safetensors"
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "weights":
        last.write_bytes((run / "best.safetensors").read_bytes())
    elif damage == "stable lost":
        (run / "stable-best.safetensors").unlink()
        train("rcn-4", faces5, run, epochs=7, resume=True, **SMALL)
        return
    else:
        with open(run / "metrics.jsonl", "a") as stream:
            stream.write('{"epoch": 7, "lo')
        train("rcn-4", faces5, run, epochs=6, resume=True, **SMALL)
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 6
        return
    with pytest.raises(InputError, match="remove it"):
        train("rcn-4", faces5, run, epochs=6, resume=True, **SMALL)
    last.unlink()
    assert train("rcn-4", faces5, run, epochs=6, resume=True, **SMALL)["epochs"] == 6


def test_validation_is_jittered_by_the_runs_own_ranges(faces5, tmp_path):
    for name, changes in (
        ("plain", {"shift": 0.0, "zoom": 0.0, "degrees": 0, "stretch": 0.0, "occlude": (0, 0)}),
        ("rough", {}),
    ):
        train("rcn-4", faces5, tmp_path / name, epochs=1, **changes, **SMALL)
    lines = [json.loads((tmp_path / n / "metrics.jsonl").read_text()) for n in ("plain", "rough")]
    assert lines[0]["valid"] == lines[0]["clean"] and lines[1]["valid"] != lines[1]["clean"]


def test_paper_recipe():
    recipe = get_recipe("paper", "rcn-6")
    assert (recipe.optimizer, recipe.batch, recipe.augment.degrees, recipe.augment.occlude) == (
        "adadelta",
        64,
        40,
        (20, 50),
    )
    assert not recipe.augment.flip and recipe.sigma == 0 and recipe.outside == "clamp" and recipe.decay == 0
    assert recipe.regularize == {"trunk": 1e-6, "branch": 1e-12}
    assert get_recipe("paper", "sumnet-6").regularize["alpha"] == 1e-14
    assert get_recipe("paper", "rcn-6-skip").regularize == {"trunk": 1e-4, "branch": 1e-4}
    assert get_recipe("paper", "rcn-68").regularize == {"trunk": 1e-12, "branch": 1e-8}
    assert get_recipe("paper", "rcn-68-skip").regularize == {"trunk": 0.1, "branch": 0.1}
    assert get_recipe("paper", "sumnet-68").regularize == {"trunk": 1e-14, "branch": 1e-6}
    for recipe in (PAPER, FAST):
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_weight_decay_spares_biases(faces5):
    table = load_table(faces5 / "train.parquet", limit=4)
    for recipe, trunk in ((PAPER, 0.0), (get_recipe("paper", "sumnet-4"), 2e-10), (FAST, FAST.weight_decay)):
        net = Trainer("sumnet-4", table, table, None, recipe).net
        groups = make_optimizer(recipe, net).param_groups
        decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
        assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
        for name, p in net.named_parameters():
            if name.endswith("bias"):
                assert decay[id(p)] == 0
        assert decay[id(net.trunk[0].weight)] == trunk


def test_learning_rate_schedule():
    recipe = get_recipe("fast", "rcn-6", epochs=10, decay=0.5, warmup_steps=4, learning_rate=1.0)
    rates = [recipe.learning_rate_at(s, 10) for s in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[49] == 1.0 and recipe.stable_epochs == 5
    assert all(a > b for a, b in itertools.pairwise(rates[50:])) and 0 < rates[-1] < 0.01


def test_float32_and_bfloat16_agree_roughly(faces5, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        train("rcn-4", faces5, tmp_path / precision, epochs=1, precision=precision, **SMALL)
        losses.append(json.loads((tmp_path / precision / "metrics.jsonl").read_text())["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and losses[0] != losses[1]


def test_fields_by_name():
    changes, _ = parse_settings(["stretch=0.3", "flip=True", "shuffle=false", "loss=l2", "degrees=15"])
    assert changes == {"stretch": 0.3, "flip": True, "shuffle": False, "loss": "l2", "degrees": 15}
    assert parse_settings(["occlude=10,30", "kernel=23", "mask=1,0,0,1"]) == (
        {"occlude": (10, 30)},
        {"kernel": 23, "mask": (1, 0, 0, 1)},
    )
    for bad, message in (
        ("flip=yes", "true or false"), ("degrees=1.5", "expected an integer"), ("speed=1", "unknown setting"),
        ("occlude=20", "two integers"), ("regularize=1", "unknown setting"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            parse_settings([bad])


def test_every_setting_is_explained():
    """The docstrings of Recipe, Augment and create_model have one `name: explanation` entry per setting."""
    explained = set()
    for documented in (Recipe, Augment, create_model):
        explained |= set(re.findall(r"^ {8}(\w+): \S", documented.__doc__, flags=re.MULTILINE))
    assert {f.name for c in (Recipe, Augment) for f in fields(c)} | set(setting_types()) <= explained


@pytest.mark.parametrize("change", [
    {"degrees": -5}, {"learning_rate": float("nan")}, {"decay": 5.0}, {"decay": -1.0}, {"zoom": 2.0}, {"turned": 3.0},
    {"weight_decay": -1.0}, {"sigma": -1.0}, {"patience": -4}, {"stretch": -2.0}, {"occlude": (50, 20)}, {"epochs": 0},
])  # fmt: skip
def test_numbers_outside_their_range_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        get_recipe("fast", "rcn-4", **change)


def test_flips_need_mirror_pairs(faces5, tmp_path):
    table = load_table(faces5 / "train.parquet")
    unnamed = replace(table, info=replace(table.info, keypoints=KeypointSet("own-5", tuple("12345"))))
    with pytest.raises(InputError, match="own-5 has no mirror pairs"):
        Trainer("rcn-4", unnamed, unnamed, tmp_path, get_recipe("fast", "rcn-4", flip=True))
    Trainer("rcn-4", unnamed, unnamed, tmp_path, get_recipe("fast", "rcn-4", flip=False))
