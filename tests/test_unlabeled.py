"""Unlabeled images: the equivariance term, rows without points in training and in fit, and the study."""

import json

import cv2
import numpy as np
import pytest
import torch

from recombinator.cli.study import study
from recombinator.data.images import encode_image
from recombinator.data.select import join_tables, take_rows, without_points
from recombinator.data.table import load_table
from recombinator.fit.run import fit
from recombinator.fit.samples import read_samples
from recombinator.fit.unlabeled import frames, unlabeled_table
from recombinator.study.unlabeled import tables_of
from recombinator.study.unlabeled import unlabeled_table as rendered
from recombinator.training.loop import Trainer
from recombinator.training.loss import equivariance_loss, soft_argmax
from recombinator.training.order import epoch_order
from recombinator.training.recipe import get_recipe
from recombinator.transforms.affine import box_affine, compose, flip_affine
from recombinator.utils.errors import InputError

OPTIONS = {"width": 0.1, "size": 32}


def recipe(**changes):
    return get_recipe("fast", "rcn-4", **{"epochs": 2, "batch": 8, "warmup_steps": 1, "equivariance": 0.1, **changes})


def test_soft_argmax_of_a_peak_is_its_center():
    scores = torch.zeros(1, 1, 8, 8)
    scores[0, 0, 2, 5] = 100
    assert soft_argmax(scores).tolist() == [[[5.5, 2.5]]]


def test_no_loss_for_points_that_follow_the_transform():
    square = torch.tensor([[0.0, 0.0, 32.0]])
    turned = box_affine(square, 32, shift=torch.tensor([[0.05, 0.0]]), degrees=torch.tensor([20.0]))
    flipped = compose(flip_affine(32, torch.tensor([True])), turned)
    points, mirrored = torch.tensor([[[10.0, 12.0], [20.0, 12.0], [16.0, 20.0]]]), [1, 0, 2]
    for affine, order in ((turned, [0, 1, 2]), (flipped, mirrored)):
        moved = points[:, order] @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]
        assert equivariance_loss(moved, points, affine, mirrored, 32).item() == pytest.approx(0, abs=1e-8)
        assert equivariance_loss(moved + 1, points, affine, mirrored, 32).item() == pytest.approx(3 * 2, rel=1e-4)


def test_points_that_leave_the_input_do_not_count():
    away = torch.tensor([[[1.0, 0.0, 30.0], [0.0, 1.0, 0.0]]])
    points = torch.tensor([[[10.0, 12.0], [1.0, 12.0]]])
    assert equivariance_loss(points, points, away, [0, 1], 32).item() == pytest.approx(2 * 30**2)  # the second one only


def test_an_epoch_visits_the_labeled_rows(faces5):
    table = without_points(load_table(faces5 / "train.parquet"), np.arange(5, 48))
    assert sorted(epoch_order(table, recipe(), torch.Generator()).tolist()) == [0, 1, 2, 3, 4]
    assert len(epoch_order(table, recipe(equivariance=0.0), torch.Generator())) == len(table)


def test_unlabeled_rows_change_the_gradient_only_through_the_term(faces5, tmp_path):
    table, valid = (load_table(faces5 / f"{s}.parquet") for s in ("train", "valid"))
    labeled, other = take_rows(table, np.arange(8)), without_points(table, np.arange(8, len(table)))

    def gradient(table, weight, **changes):
        trainer = Trainer("rcn-4", table, valid, tmp_path, recipe(equivariance=weight, **changes), options=OPTIONS)
        trainer.task.epoch = 1.0
        trainer.task.loss(torch.arange(8), torch.Generator().manual_seed(0)).backward()
        return torch.cat([p.grad.flatten() for p in trainer.net.parameters()])

    # before the ramp's first step the weight is almost zero; the loss of the labeled images is that of both tables
    assert gradient(other, 1e-12).isfinite().all()
    assert not torch.equal(gradient(other, 0.5), gradient(labeled, 0.5))
    assert torch.allclose(gradient(other, 0.5, ramp=2), gradient(other, 0.25), atol=1e-6)


def test_training_with_unlabeled_images_resumes(faces5, tmp_path):
    table, valid = (load_table(faces5 / f"{s}.parquet") for s in ("train", "valid"))
    table = without_points(table, np.arange(16, len(table)))

    def trained(out, stop):
        trainer = Trainer("rcn-4", table, valid, out, recipe(ramp=1, decay=0.5), options=OPTIONS)

        def on_epoch(metrics):
            if stop:
                raise KeyboardInterrupt

        if (out / "last.safetensors").is_file():
            trainer.restore()
        assert trainer.steps == 2
        trainer.fit(on_epoch)
        return torch.cat([p.detach().flatten() for p in trainer.net.parameters()])

    whole = trained(tmp_path / "whole", False)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", True)
    assert torch.equal(trained(tmp_path / "parts", False), whole)


def test_the_term_is_for_score_maps_of_images(faces5, tmp_path):
    table, valid = (load_table(faces5 / f"{s}.parquet") for s in ("train", "valid"))
    with pytest.raises(InputError, match="equivariance: is for networks with score maps"):
        Trainer("denoiser", table, valid, tmp_path, recipe(), options={"size": 32})


def test_the_arms_have_the_same_labeled_rows(faces5):
    table = load_table(faces5 / "train.parquet")
    arms = tables_of(table, 0.25, 1)
    labeled, other = arms["labeled"], arms["unlabeled"]
    known = other.mask.any(axis=1)
    assert [f for f, k in zip(other.files, known, strict=True) if k] == labeled.files
    assert set(other.files) == set(table.files)
    assert not {f for f, k in zip(other.files, known, strict=True) if not k} & set(labeled.files)
    assert len(labeled) == known.sum() and len(set(labeled.files)) == 12
    assert set(tables_of(table, 0.25, 2)["labeled"].files) != set(labeled.files)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Twelve annotated images and, in `more`, two others, a copy of an annotated one and a video of 30 frames."""
    folder = tmp_path_factory.mktemp("annotated")
    rng, rows = np.random.default_rng(0), ["file,keypoint,x,y"]
    (folder / "more").mkdir()
    for i in range(14):
        image = np.full((64, 96, 3), 200, np.uint8)
        points = rng.uniform((20, 20), (76, 44)) + [(0, -12), (-8, 6), (8, 6)]
        for k, (x, y) in enumerate(points):
            image[int(y) - 3 : int(y) + 3, int(x) - 3 : int(x) + 3] = 60 * k
            rows += [f"{i}.png,point_{k},{x:.2f},{y:.2f}"] if i < 12 else []
        (folder / ("more" if i >= 12 else "") / f"{i}.png").write_bytes(encode_image(image, 0))
    (folder / "points.csv").write_text("\n".join(rows))
    video = cv2.VideoWriter(str(folder / "more" / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (96, 64))
    for i in range(30):
        video.write(np.full((64, 96, 3), 8 * i, np.uint8))
    video.release()
    return folder


def test_frames_are_evenly_spaced(annotated):
    assert [name for name, _ in frames(annotated / "more" / "a.avi", 10)] == [f"a.avi#{i}" for i in range(0, 30, 3)]


def test_images_of_the_annotations_are_left_out(annotated):
    samples, keypoints = read_samples(annotated / "points.csv", None)
    excluded = {s.path.resolve() for s in samples}
    table = unlabeled_table(annotated, keypoints, "image", 160, 1, excluded)
    assert table.files[:2] == ["more/12.png", "more/13.png"] and len(table) == 32
    assert not table.mask.any()
    assert table.boxes.tolist() == [[0, 0, 160]] * 32
    assert len(join_tables([table, table])) == 64
    with pytest.raises(InputError, match="no further images or videos"):
        unlabeled_table(annotated / "more", keypoints, "image", 160, 1, {p.resolve() for p in annotated.rglob("*")})


def test_fit_with_unlabeled_images(annotated, tmp_path):
    settings = {"size": 32, "factor": 1, "coarse_epochs": 1, "batch": 64}
    report = fit(annotated / "points.csv", tmp_path / "run", minutes=1, settings=settings, unlabeled=annotated / "more")
    assert report["held_out"]["points"] > 0
    run = json.loads((tmp_path / "run" / "coarse" / "run.json").read_text())
    assert run["recipe"]["equivariance"] > 0 and run["images"] > 512
    with pytest.raises(InputError, match="--unlabeled: is for models that see the whole image"):
        fit(annotated / "points.csv", tmp_path / "b", boxes=True, unlabeled=annotated / "more")


def test_study_continues_and_is_rendered(faces5, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.setattr("recombinator.study.unlabeled.SAMPLES", 10)
    command = [
        "unlabeled", "--data", str(faces5), "--runs", str(tmp_path / "runs"), "--share", "0.2", "--seeds", "2", "--set",
        "epochs=1", "--set", "batch=8", "--final", "--json", str(tmp_path / "u.json"), "--overwrite",
    ]  # fmt: skip
    for _ in range(2):
        result = CliRunner().invoke(study, command, catch_exceptions=False)
        assert result.exit_code == 0 and result.stdout.count("difference") == 2
        report = json.loads((tmp_path / "u.json").read_text())
        (row,) = report.pop("rows")
        assert row["labels"] == 10 and len(row["test"]["difference"]["seeds"]) == 2
        low, high = row["valid"]["difference"]["ci95_images"]
        assert low <= row["valid"]["difference"]["nme_paper"] <= high
    assert len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 4
    assert rendered({"unlabeled": {"rows": [row]}}).count("20 % (10)") == 2
    for interval, what in (
        ([-2, -1], "unlabeled images reduce the error"),
        ([-1, 1], "no measurable gain"),
        ([1, 2], "unlabeled images increase the error"),
    ):
        row["test"]["difference"]["ci95_seeds"] = interval
        assert f": {what};" in rendered({"unlabeled": {"rows": [row]}})
    metrics = next((tmp_path / "runs").glob("*/metrics.jsonl")).read_text()
    assert len(metrics.splitlines()) == 1  # not trained again
