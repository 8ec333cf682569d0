"""The regression baseline: its layers and attributes, with the trainer and evaluation of the other networks."""

import json

import pytest
import torch

from recombinator.data.readers.mtfl import prepare_mtfl
from recombinator.evaluation.tables import evaluate
from recombinator.models import create_model
from recombinator.training.run import train
from recombinator.training.tasks import Regression
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights


def images(n=2):
    return torch.rand(n, 1, 80, 80, generator=torch.Generator().manual_seed(0)) * 255


def test_layers():
    net = create_model("tcdcn")
    assert net.sizes == [36, 16, 6, 2]
    layers = [sum(p.numel() for p in layer.parameters()) for layer in net.trunk]
    assert layers == [416, 6_960, 27_712, 16_448]
    heads = {n: sum(p.numel() for p in layer.parameters()) for n, layer in net.branch.items()}
    assert heads == {"features": 25_700, "points": 1_010, "gender": 202, "smile": 202, "glasses": 202, "pose": 505}
    alone = create_model("tcdcn-alone")
    assert sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in alone.parameters()) == 1_111
    assert net.multiply_adds() == 400 * 36**2 + 6_912 * 16**2 + 27_648 * 36 + 16_384 * 4 + 25_600 + 1_000 + 1_100


def test_points_are_in_pixels_and_independent_of_the_attributes():
    net = create_model("tcdcn").eval()
    points, heads = net.heads(images())
    torch.testing.assert_close(net(images()), (points + 1) * 40)
    assert {n: t.shape[1] for n, t in heads.items()} == {"gender": 2, "smile": 2, "glasses": 2, "pose": 5}
    features = []
    net.branch["points"].register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    net(images())
    assert (features[0] >= 0).all() and (features[0] <= 1).all()
    with pytest.raises(InputError, match="expected images"):
        net(images()[..., :70])
    with pytest.raises(InputError, match="too small"):
        create_model("tcdcn", size=40)


@pytest.fixture
def tables(mtfl_layout, tmp_path):
    prepare_mtfl(mtfl_layout, tmp_path / "tables")
    return tmp_path / "tables"


KIND = {"flip": False, "batch": 8, "learning_rate": 2e-3}


def test_training_resuming_and_evaluation(tables, tmp_path):
    train("tcdcn", tables, tmp_path / "whole", epochs=4, **KIND)
    train("tcdcn", tables, tmp_path / "cut", epochs=2, decay=0.0, **KIND)
    train("tcdcn", tables, tmp_path / "cut", epochs=4, resume=True)
    train("tcdcn", tables, tmp_path / "flat", epochs=4, decay=0.0, **KIND)
    a, b = (load_weights(tmp_path / n / "best.safetensors").net.state_dict() for n in ("cut", "flat"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] and 0 <= lines[0]["pose_accuracy"] <= 1
    result, report = evaluate(tmp_path / "whole", tables / "test.parquet")
    assert report["decoder"]["nme"] == "coordinates as they are" and (result.within == 1).all()
    assert 0 < report["nme"] < 100


def test_a_task_stops_when_its_validation_loss_does_not_fall(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "PATIENCE", 0)
    train("tcdcn", tables, tmp_path / "stopped", epochs=2, **KIND)
    train("tcdcn", tables, tmp_path / "weightless", epochs=2, auxiliary=0.0, **KIND)
    a, b = (load_weights(tmp_path / n / "best.safetensors").net.state_dict() for n in ("stopped", "weightless"))
    same = {k for k in a if torch.equal(a[k], b[k])}
    assert same >= {k for k in a if k.startswith(("trunk", "branch.points"))}
    monkeypatch.undo()
    train("tcdcn", tables, tmp_path / "auxiliary", epochs=2, **KIND)
    c = load_weights(tmp_path / "auxiliary" / "best.safetensors").net.state_dict()
    assert not torch.equal(a["branch.features.weight"], c["branch.features.weight"])


def test_unsuitable_tables_and_settings(tables, faces5, tmp_path):
    with pytest.raises(InputError, match="no attribute 'gender'"):
        train("tcdcn", faces5, tmp_path / "a", epochs=1, **KIND)
    with pytest.raises(InputError, match="--no-flip"):
        train("tcdcn", tables, tmp_path / "b", epochs=1, **dict(KIND, flip=True))
    assert train("tcdcn-alone", faces5, tmp_path / "c", epochs=1, **dict(KIND, flip=True))["epochs"] == 1
