"""Disturbed crops: points follow their pixels, and each disturbance does what it says."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.table import load_table
from recombinator.evaluation.robustness import CROP, PICTURE, measure, samples
from recombinator.study.measurements import robustness_table
from recombinator.utils.errors import InputError


@pytest.fixture(scope="module")
def table(faces5):
    return load_table(faces5 / "test.parquet")


@pytest.mark.parametrize("name", CROP)
def test_points_follow_their_pixels(name, table):
    """A dot drawn at a point of the stored crop is found where the disturbed sample says that the point is."""
    images = np.zeros_like(table.images)
    for i, (x, y) in enumerate(table.points[:, 2]):
        images[i, 0, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 255
    table = type(table)(**{**table.__dict__, "images": images})
    pixels, points = samples(table, 80, name, CROP[name][1][-1])
    for sample, point in zip(pixels, points[:, 2], strict=True):
        if not ((point > 3) & (point < 77)).all():
            continue
        y, x = divmod(int(sample[0].argmax()), 80)
        assert abs(x + 0.5 - point[0]) < 1.6 and abs(y + 0.5 - point[1]) < 1.6


def test_the_extent_of_each(table):
    plain, points = samples(table, 80, "shift", 0)
    _, moved = samples(table, 80, "shift", 0.2)
    torch.testing.assert_close((moved - points).norm(dim=2), torch.full(points.shape[:2], 16.0), atol=0.01, rtol=0)
    _, larger = samples(table, 80, "scale", 1.25)
    spread = [p.amax(1) - p.amin(1) for p in (points, larger)]
    torch.testing.assert_close(spread[1], spread[0] / 1.25, atol=0.01, rtol=0)
    for name, value in (("rectangle", 0), ("blur", 0), ("noise", 0), ("brightness", 1)):
        torch.testing.assert_close(samples(table, 80, name, value)[0], plain, atol=0.01, rtol=0)
    occluded = (samples(table, 80, "rectangle", 30)[0] == 0) & (plain != 0)
    assert (occluded.sum(dim=(1, 2, 3)) <= 900).all() and occluded.any()
    roughness = [float((samples(table, 80, "jpeg", q)[0] - plain).abs().mean()) for q in (100, 50, 5)]
    assert roughness == sorted(roughness) and roughness[0] < 2
    assert float(samples(table, 80, "brightness", 0.5)[0].mean()) == pytest.approx(float(plain.mean()) / 2, rel=1e-4)


def test_from_the_command_line(faces5, tmp_path):
    out = tmp_path / "r.json"
    command = ["study", "robustness", "rcn-6-mtfl", "--data", str(faces5 / "test.parquet"), "--out", str(tmp_path)]
    run = CliRunner().invoke(app, [*command, "--json", str(out)])
    assert run.exit_code == 0 and (tmp_path / "robustness-synthetic.png").is_file(), run.output
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == sum(len(values) for _, values, *_ in {**CROP, **PICTURE}.values())
    with pytest.raises(InputError, match="takes keypoints, not images"):
        measure(["denoiser-lite-300w"], faces5 / "test.parquet")
    with pytest.raises(InputError, match="expected 68 keypoints"):
        measure(["rcn-68-300w"], faces5 / "test.parquet")


def test_the_table_shows_both_ends_and_the_undisturbed_for_every_network():
    errors = {"a": (9.0, 4.0, 8.0), "runs/b": (7.0, 3.0, 6.0)}
    rows = [
        {"disturbance": "scale", "unit": "times", "value": v, "weights": w, "nme": errors[w][i]}
        for i, v in enumerate((0.7, 1, 1.3)) for w in errors
    ]  # fmt: skip
    report = {"kind": "robustness", "images": 2, "data": {"dataset": "mtfl"}, "rows": rows}
    assert "| scale: 0.7 / 1 / 1.3 (times) | a: 9.0 / 4.0 / 8.0; b: 7.0 / 3.0 / 6.0 |" in robustness_table(
        {"x": report}
    )
