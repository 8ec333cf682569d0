"""Weights and tables in memory: the same results as by path, and nothing is loaded twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recombinator.data.table import load_table
from recombinator.evaluation import sources
from recombinator.evaluation.calibration import calibrate, report
from recombinator.evaluation.denoising import evaluate_denoiser
from recombinator.evaluation.plots import plot_worst
from recombinator.evaluation.robustness import measure
from recombinator.evaluation.tables import choose_joint, compare, evaluate
from recombinator.keypoints import FACE_5
from recombinator.models import Joint, create_model
from recombinator.transforms.augment import OCCLUSION
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.weights import files
from recombinator.weights.derive import average
from recombinator.weights.files import Weights, join, load_weights, save_weights


def assert_same(a, b):
    """Equal, numbers up to the rounding that the order of a sum makes (an engine changes the layout of weights)."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == (pytest.approx(b, rel=1e-4, abs=1e-6, nan_ok=True) if isinstance(b, float) else b)


def write(path, net):
    save_weights(path, Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    small = {"size": 24, "width": 0.2}
    nets = {
        "a": create_model("rcn-4", **small), "b": create_model("rcn-4", **small),
        "denoiser": create_model("denoiser-lite", 5, size=24, width=8, layers=1, heads=1, modes=3),
    }  # fmt: skip
    return {name: str(write(folder / f"{name}.safetensors", net)) for name, net in nets.items()}


def test_what_is_in_memory_gives_the_same_results_and_is_not_loaded_again(paths, faces5, monkeypatch):
    data = faces5 / "test.parquet"
    calls = {
        "evaluate": lambda w, t: evaluate(w["a"], t["test"])[1],
        "compare": lambda w, t: compare([w["a"], w["b"]], t["test"]),
        "calibrate": lambda w, t: calibrate(w["a"], t["test"]).calibration,
        "reliability": lambda w, t: report(w["a"], t["test"]),
        "robustness": lambda w, t: measure([w["b"]], t["test"]),
        "denoiser": lambda w, t: evaluate_denoiser(
            w["denoiser"], t["test"], count=2, train=t["train"], valid=t["valid"]
        ),
        "choose": lambda w, t: choose_joint(join(w["a"], w["denoiser"]), t["test"]),
    }
    by_path = {
        name: call(paths, {s: faces5 / f"{s}.parquet" for s in ("train", "valid", "test")})
        for name, call in calls.items()
    }
    assert by_path["evaluate"]["weights"] == paths["a"] and len(by_path["denoiser"]["rows"]) == 3
    assert evaluate_denoiser(paths["denoiser"], data, count=2) == by_path["denoiser"]  # finds train and valid itself
    loaded = {name: load_weights(path) for name, path in paths.items()}
    tables = {s: load_table(faces5 / f"{s}.parquet") for s in ("train", "valid", "test")}
    monkeypatch.setattr(sources, "load_table", lambda *a, **k: pytest.fail("the table was decoded again"))
    monkeypatch.setattr(files, "resolve", lambda *a: pytest.fail("the weights were loaded again"))
    for name, call in calls.items():
        assert_same(call(loaded, tables), by_path[name])
    engine = sources.as_engine(loaded["a"])
    by_engine = evaluate(engine, tables["test"])[1]
    assert_same(by_engine, by_path["evaluate"] | {"weights": "rcn-4"})  # an engine has no name but its model's


def test_an_evaluation_gives_back_the_images_that_the_network_saw(paths, faces5, tmp_path):
    table = load_table(faces5 / "train.parquet")
    result, _ = evaluate(paths["a"], table)
    everything = torch.cat([x for x, _ in fixed_samples(table, 24, None, torch.device("cpu"))]).numpy()
    np.testing.assert_array_equal(result.inputs(), everything)
    np.testing.assert_array_equal(result.inputs([7, 0, 3]), everything[[7, 0, 3]])
    occluded, _ = evaluate(paths["a"], table, occlude=True)
    expected = torch.cat([x for x, _ in fixed_samples(table, 24, OCCLUSION, torch.device("cpu"))]).numpy()
    assert (expected != everything).any()
    np.testing.assert_array_equal(occluded.inputs(), expected)
    plot_worst(tmp_path / "worst.png", result, count=4)
    assert (tmp_path / "worst.png").is_file()
    result.table = None
    with pytest.raises(InputError, match="no table"):
        result.inputs()


def test_what_does_not_fit_is_named(paths, faces5, faces68):
    table, loaded = load_table(faces5 / "test.parquet"), load_weights(paths["a"])
    with pytest.raises(InputError, match=r"synthetic test table: limit=2 .*load_table\(limit=...\)"):
        evaluate(loaded, table, limit=2)
    assert evaluate(loaded, table, limit=len(table))[1]["images"] == len(table)
    with pytest.raises(InputError, match="expected images with 1 channels for .*a.safetensors, got 3"):
        evaluate(loaded, replace(table, images=table.images.repeat(3, axis=1)))
    with pytest.raises(InputError, match=r"for .*a.safetensors: expected 5 keypoints \(face-5: .*got 68 \(face-68"):
        evaluate(loaded, faces68 / "test.parquet")
    with pytest.raises(InputError, match="'onnx' needs an exported graph"):
        evaluate(loaded, table, engine="onnx")
    unnamed = Weights(loaded.net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {})
    assert evaluate(unnamed, table)[1]["weights"] == "rcn-4 in memory"


def test_weights_in_memory_are_left_as_they_were(paths, faces5):
    parts = [load_weights(paths[name]) for name in ("a", "b")]
    before = {k: v.clone() for k, v in parts[0].net.state_dict().items()}
    mean = average(parts)
    assert all(torch.equal(v, before[k]) for k, v in parts[0].net.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in mean.net.state_dict().items())
    joint = join(parts[0], paths["denoiser"], 0.3, 2)
    assert isinstance(joint.net, Joint) and len(choose_joint(joint, faces5 / "valid.parquet")) == 13
    assert (joint.net.weight, joint.net.iterations) == (0.3, 2)
