"""Photographs that a network labels become rows of the training table."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.images import SAMPLE_PHOTOGRAPH
from recombinator.data.table import PSEUDO_LABELS, load_table
from recombinator.fit.pseudo_labels import add_pseudo_labels
from recombinator.predict.predictor import load
from recombinator.study.tables import COLUMNS
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights


@pytest.fixture(scope="module")
def predictor():
    return load("rcn-6-fast-mtfl-int8")


def test_the_predicted_face_becomes_a_row(predictor, faces5, tmp_path):
    shutil.copy(SAMPLE_PHOTOGRAPH, tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    names, out = [str(tmp_path / n) for n in ("a.jpg", "b.jpg")], tmp_path / "out"
    seen = []
    added = add_pseudo_labels(faces5, names, predictor, out, progress=lambda done, total: seen.append((done, total)))
    before, after = load_table(faces5 / "train.parquet"), load_table(out / "train.parquet")
    assert added == 1 and len(after) == len(before) + 1 and seen == [(1, 2), (2, 2)]
    assert after.subsets == [*before.subsets, PSEUDO_LABELS] and after.files[-1] == names[0]
    (face,) = predictor.predict(names[0])
    linear, shift = after.to_file[-1, :, :2], after.to_file[-1, :, 2]
    np.testing.assert_allclose(after.points[-1] @ linear.T + shift, face.points, atol=1e-3)
    assert after.mask[-1].tolist() == (face.confidence >= 0.5).tolist()
    np.testing.assert_array_equal(after.images[:-1], before.images)
    for split in ("valid", "test"):
        assert (out / f"{split}.parquet").read_bytes() == (faces5 / f"{split}.parquet").read_bytes()


def test_the_training_says_how_many_rows_have_pseudo_labels(predictor, faces5, tmp_path):
    add_pseudo_labels(faces5, [str(SAMPLE_PHOTOGRAPH)], predictor, tmp_path / "out")
    train("rcn-4", tmp_path / "out", tmp_path / "run", epochs=1, options={"size": 16})
    told = load_weights(tmp_path / "run").training
    assert told["pseudo_labels"] == 1 and told["images"] == 49
    shown = COLUMNS["training images"]({"training": {**told, "images": 4314, "pseudo_labels": 2806}})
    assert shown == "1,508, and 2,806 with pseudo-labels"


def test_images_of_the_tables_are_left_out(predictor, faces5, tmp_path):
    """A photograph that the test table names must not be learned."""
    name = load_table(faces5 / "test.parquet").files[0]
    path = tmp_path / "photographs" / name
    path.parent.mkdir(parents=True)
    shutil.copy(SAMPLE_PHOTOGRAPH, path)
    with pytest.raises(InputError, match="its tables have all 1 photographs; give others"):
        add_pseudo_labels(faces5, [str(path)], predictor, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_small_faces_are_left_out(predictor, faces5, tmp_path):
    with pytest.raises(InputError, match="nothing was added: .* in 1 photograph"):
        add_pseudo_labels(faces5, [str(SAMPLE_PHOTOGRAPH)], predictor, tmp_path / "out", smallest=10_000)


def test_tables_that_do_not_fit(predictor, faces5, faces68, tmp_path):
    with pytest.raises(InputError, match="train.parquet, for the network: expected 5 keypoints .* got 68"):
        add_pseudo_labels(faces68, [str(SAMPLE_PHOTOGRAPH)], predictor, tmp_path / "out")
    with pytest.raises(InputError, match="the folder of --data"):
        add_pseudo_labels(faces5, [str(SAMPLE_PHOTOGRAPH)], predictor, faces5)


def test_the_command(faces5, tmp_path):
    out = tmp_path / "out"
    arguments = ["prepare", "pseudo-labels", str(SAMPLE_PHOTOGRAPH), "--data", str(faces5), "--out", str(out)]
    arguments += ["--weights", "rcn-6-fast-mtfl-int8", "--threads", "1"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "pseudo-labels.parquet: 1 object, and the tables of" in shown.stdout
    assert len(load_table(out / "train.parquet")) == len(load_table(faces5 / "train.parquet")) + 1
    again = CliRunner().invoke(app, arguments)
    assert "exists already" in str(again.exception)
