"""An exported graph answers as the network does, for every kind of network."""

import json
import logging

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.deploy.onnx import export, link_tensors
from recombinator.deploy.quantize import LEAST, equalize
from recombinator.evaluation.tables import evaluate
from recombinator.keypoints import FACE_5, FACE_68
from recombinator.models import Joint, ScoreMapNet, create_model
from recombinator.predict.engine import OnnxEngine, TorchEngine, load_engine
from recombinator.predict.predictor import load
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, load_weights, save_weights
from recombinator.weights.shipped import is_graph, shipped_graphs, shipped_weights

SMALL = {"width": 0.2}


def some_joint():
    shape = {"width": 16, "layers": 1, "heads": 2, "modes": 6}
    net = Joint(create_model("rcn-68", **SMALL), create_model("denoiser-lite", **shape), 0.7)
    net.config["image"] |= SMALL
    net.config["denoiser"] |= shape
    return net


NETWORKS = {
    "sumnet-5": lambda: create_model("sumnet-5", alpha="pixel", upsampling="bilinear", **SMALL),
    "rcn-6": lambda: create_model("rcn-6", mask=(1, 0, 1, 1, 0, 1), **SMALL),
    "rcn-7": lambda: create_model("rcn-7", size=96, channels=3, norm="batch", **SMALL),
    "rcn-6-skip": lambda: create_model("rcn-6-skip", norm="global", **SMALL),
    "released": lambda: create_model("rcn-68", upsampling="learned", keep_maxima=True, **SMALL),
    "tcdcn": lambda: create_model("tcdcn"),
    "joint": some_joint,
}


def saved(name, folder):
    torch.manual_seed(0)
    net = NETWORKS[name]()
    keypoints = FACE_5 if net.keypoints == 5 else FACE_68
    path = folder / f"{name}.safetensors"
    calibration = {"temperature": 1.7, "covered_below": [0.4] * net.keypoints} if name == "rcn-6" else {}
    save_weights(path, Weights(net, keypoints, "mtfl", [[0.5, 0.5]] * net.keypoints, {}, calibration))
    return path


def crops(about, n, seed=0):
    """Smooth random pictures: noise makes flat score maps, whose maximum is a matter of the last bit."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((n, about.channels, 8, 8)))
    fine = torch.nn.functional.interpolate(coarse, size=(about.size,) * 2, mode="bicubic")
    return (fine.clamp(0, 1) * 255).to(torch.uint8).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_graph_and_network_agree(name, tmp_path):
    path = saved(name, tmp_path)
    export(path, tmp_path / "a.onnx")
    graph, net = load_engine(tmp_path / "a.onnx"), load_engine(path)
    assert isinstance(graph, OnnxEngine) and isinstance(net, TorchEngine) and graph.about == net.about
    batches = (1, 1, 1) if name == "rcn-7" else (1, 5)  # norm="batch": neighbors count, in both alike
    for n in batches:
        x = crops(graph.about, n)
        found, wanted = graph.run(x), net.run(x)
        assert found.points.shape == wanted.points.shape == (n, len(graph.about.keypoints), 2)
        np.testing.assert_allclose(found.points, wanted.points, atol=1e-3)
        np.testing.assert_allclose(found.highest, wanted.highest, atol=1e-3)
        np.testing.assert_allclose(found.within, wanted.within, atol=1e-4)
        np.testing.assert_allclose(found.covariance, wanted.covariance, atol=1e-2, rtol=1e-3)


def test_maps_are_a_further_output(tmp_path):
    path = saved("rcn-6", tmp_path)
    run = CliRunner().invoke(app, ["export", str(path), "--onnx", str(tmp_path / "a.onnx"), "--maps"])
    assert run.exit_code == 0 and "MB" in run.output
    engine = OnnxEngine(tmp_path / "a.onnx")
    x = crops(engine.about, 2)
    maps = engine.session.run(["scores"], x)[0]
    with torch.no_grad():
        wanted = load_weights(path).net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(maps, wanted, atol=1e-3, rtol=1e-3)


def test_export_leaves_no_trace(tmp_path):
    """A graph names no path of the exporting machine, and the log level is what it was."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        export(saved("rcn-6", tmp_path), tmp_path / "a.onnx")
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
    for graph in (tmp_path / "a.onnx", *shipped_graphs().values()):
        content = graph.read_bytes()
        assert b'File "' not in content and b"stack_trace" not in content, graph


def test_linked_tensors_give_the_same_answers(tmp_path):
    path = saved("rcn-6", tmp_path)
    export(path, tmp_path / "a.onnx")
    before = OnnxEngine(tmp_path / "a.onnx")
    x = crops(before.about, 3)
    wanted, size = before.run(x), (tmp_path / "a.onnx").stat().st_size
    link_tensors(tmp_path / "a.onnx", path)
    after = OnnxEngine(tmp_path / "a.onnx")
    assert after.about == before.about and (tmp_path / "a.onnx").stat().st_size < size
    for a, b in zip(vars(after.run(x)).values(), vars(wanted).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", shipped_graphs())
def test_no_shipped_tensor_is_stored_twice(name):
    stored = {
        tensor.numpy().tobytes()
        for path in shipped_weights().values() if path.suffix == ".safetensors"
        for tensor in load_file(path).values()
    }  # fmt: skip
    graph = onnx.load(shipped_graphs()[name], load_external_data=False).graph
    again = [t.name for t in graph.initializer if len(t.raw_data) >= 1024 and t.raw_data in stored]
    assert not again, "link it: recombinator.deploy.onnx.link_tensors"


@pytest.mark.parametrize("name", [n for n in shipped_graphs() if not is_graph(n)] or ["none"])
def test_what_ships_agrees_in_both_forms(name):
    full = {n for n in shipped_weights() if not n.startswith("denoiser")}
    in_8_bits = {n for n in full if n != "rcn-6-shift-mtfl" and "-160-" not in n}  # these are about precision
    assert set(shipped_graphs()) == full | {f"{n}-int8" for n in in_8_bits}
    graph, net = load_engine(name, "onnx"), load_engine(name, "torch")
    assert graph.about == net.about
    x = crops(graph.about, 4)
    found, wanted = graph.run(x), net.run(x)
    np.testing.assert_allclose(found.points, wanted.points, atol=1e-3)
    np.testing.assert_allclose(found.within, wanted.within, atol=1e-3)


def test_weights_that_a_json_file_derives(tmp_path):
    path = saved("rcn-6", tmp_path)
    calibration = {"temperature": 0.8, "covered_below": [0.5] * 5}
    derived = tmp_path / "shifted.json"
    derived.write_text(json.dumps({"shifted": path.name, "by": 2, "calibration": calibration}))
    plain, made = load_weights(path), load_weights(derived)
    assert made.net.config == {**plain.net.config, "shift": 2} and made.calibration == calibration
    assert (made.net.temperature, plain.net.temperature) == (0.8, 1.7)
    derived.write_text(json.dumps({"shifted": path.name, "by": 2}))
    with pytest.raises(InputError, match="shifted.json: calibration: expected a value, got none"):
        load_weights(derived)
    derived.write_text("[1]")
    with pytest.raises(InputError, match="shifted.json: expected object, got array"):
        load_weights(derived)


@pytest.mark.parametrize("name", [n for n in shipped_graphs() if is_graph(n)] or ["none"])
def test_what_ships_in_8_bits_is_close(name):
    graph, whole = load_engine(name), load_engine(name.removesuffix("-int8"), "onnx")
    assert graph.about.int8["images"] == 256 and not whole.about.int8
    assert graph.about.training == whole.about.training and graph.about.calibration == whole.about.calibration
    whole_bytes = onnx.load(shipped_graphs()[name.removesuffix("-int8")]).ByteSize()  # linked tensors included
    assert shipped_graphs()[name].stat().st_size < 0.5 * whole_bytes
    x = crops(graph.about, 16)
    gaps = np.linalg.norm(graph.run(x).points - whole.run(x).points, axis=2)
    assert 0 < np.median(gaps) < 1.5  # of drawn blots, on which a network is at its least sure
    with pytest.raises(InputError, match="give the weights it was exported from"):
        load_weights(name)


EQUALIZED = {
    **{name: make for name, make in NETWORKS.items() if name != "tcdcn"},
    "folded": lambda: create_model("rcn-6-fast", **SMALL),
    "skip, branches masked out": lambda: create_model("rcn-6-skip", mask=(1, 0, 1, 1, 0, 0), **SMALL),
    "mirrored and shifted": lambda: create_model("rcn-5", mirror=FACE_5.mirrored, shift=1, **SMALL),
}


def trunk_ranges(net, x):
    return net.features(net.norm(x))[0].amax(dim=(0, 2, 3))


@pytest.mark.parametrize("name", EQUALIZED)
def test_equalizing_keeps_the_scores(name):
    """Maps that differ a thousandfold reach equally far, but for rarely used ones, and no score changes."""
    torch.manual_seed(0)
    whole = EQUALIZED[name]().eval()
    net = next(part for part in whole.modules() if isinstance(part, ScoreMapNet))
    with torch.no_grad():
        for conv in net.rectified():
            factor = torch.logspace(-1.5, 1.5, conv.out_channels)[torch.randperm(conv.out_channels)]
            conv.weight *= factor[:, None, None, None]
            conv.bias += torch.randn(conv.out_channels) * factor
        x = torch.from_numpy(crops(net, 4)).float()
        wanted, net.fused = whole(x), False
        before = trunk_ranges(net, x)
        equalize(net, x)
        after = trunk_ranges(net, x)
        torch.testing.assert_close(whole(x), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    assert (before != after).any()
    if not net.mirror:  # its ranges are of mirrored images too
        top = before.max()
        reach = before.clamp(max=LEAST * top) / (LEAST * top.sqrt())
        torch.testing.assert_close(after, reach, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["rcn-6", "sumnet-5", "rcn-6-skip"])
def test_8_bits_stay_close_also_where_maps_differ_a_thousandfold(name, faces5, tmp_path):
    path = saved(name, tmp_path)
    weights = load_weights(path)
    net = weights.net
    with torch.no_grad():  # the same function, with maps of very different ranges
        first, second = (c for n, c in net.named_modules() if n in ("trunk.0", "trunk.1"))
        factor = torch.logspace(-1.5, 1.5, len(first.weight))
        first.weight *= factor[:, None, None, None]
        first.bias *= factor
        for reader in (second, net.branch["0"][0]):
            reader.weight[:, : len(factor)] /= factor[None, :, None, None]
    save_weights(path, weights)
    data = faces5 / "train.parquet"
    export(path, tmp_path / "whole.onnx", maps=True)
    export(path, tmp_path / "small.onnx", maps=True, int8=data)
    whole, small = OnnxEngine(tmp_path / "whole.onnx"), OnnxEngine(tmp_path / "small.onnx")
    x = crops(whole.about, 8)
    a, b = (e.session.run(["scores"], x)[0] for e in (whole, small))
    assert 0 < np.abs(a - b).mean() < 0.1 * a.std()
    told = evaluate(tmp_path / "small.onnx", data)[1]
    assert told["engine"] == "onnx" and told["int8"]["images"] == small.about.int8["images"] > 0
    assert told["model"]["name"] == weights.net.config["name"]


def test_8_bits_say_what_they_need(faces5, tmp_path):
    path = saved("joint", tmp_path)
    with pytest.raises(InputError, match="expected 68 keypoints"):
        export(path, tmp_path / "a.onnx", int8=faces5 / "train.parquet")
    assert not (tmp_path / "a.onnx").exists()


def test_a_graph_is_evaluated_as_its_weights(faces5, tmp_path):
    path = saved("rcn-6", tmp_path)
    export(path, tmp_path / "a.onnx")
    graph, net = (evaluate(w, faces5 / "test.parquet")[1] for w in (tmp_path / "a.onnx", path))
    assert (
        graph["images"] == net["images"] and abs(graph["nme"] / net["nme"] - 1) < 0.05
    )  # whole gray levels in a graph
    run = CliRunner().invoke(app, ["evaluate", str(tmp_path / "a.onnx"), "--data", str(faces5 / "test.parquet")])
    assert run.exit_code == 0 and "paper's protocol" in run.output


def test_prediction_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'safetensors', 'pyarrow', 'matplotlib']))\n"
        "import numpy as np, recombinator\n"
        "p = recombinator.load('rcn-6-mtfl')\n"
        "face, = p.predict(np.full((200, 200, 3), 90, np.uint8), boxes=[(50, 50, 90, 90)])\n"
        "assert face.points.shape == (5, 2); print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


def test_choosing_an_engine(tmp_path):
    path = saved("rcn-6", tmp_path)
    assert isinstance(load("rcn-6-mtfl").engine, OnnxEngine)
    assert isinstance(load("rcn-6-mtfl", engine="torch").engine, TorchEngine)
    assert isinstance(load(path).engine, TorchEngine)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for name, engine, message in (
        (path, "onnx", "has no exported graph"), ("rcn-6-mtfl", "tensorrt", "unknown engine"),
        (tmp_path / "none.onnx", None, "no such file"), (tmp_path / "bad.onnx", None, "not a readable ONNX file"),
        ("nothing", None, "neither a weights file"), (tmp_path / "bad.onnx", "torch", "an exported graph"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            load_engine(name, engine)


def test_what_has_no_graph(tmp_path):
    save_weights(
        tmp_path / "d.safetensors", Weights(create_model("denoiser-lite"), FACE_68, "300w", [[0.5, 0.5]] * 68, {})
    )
    with pytest.raises(InputError, match="takes keypoints, not images"):
        export(tmp_path / "d.safetensors", tmp_path / "d.onnx")
    with pytest.raises(InputError, match="takes keypoints, not images"):
        load_engine(tmp_path / "d.safetensors")
    maps = create_model("denoiser", width=4)
    joint = Joint(create_model("rcn-68", **SMALL), maps)
    joint.config["image"] |= SMALL
    save_weights(tmp_path / "j.safetensors", Weights(joint, FACE_68, "300w", [[0.5, 0.5]] * 68, {}))
    with pytest.raises(InputError, match="cannot be exported to ONNX"):
        export(tmp_path / "j.safetensors", tmp_path / "j.onnx")
    assert not list(tmp_path.glob("*.onnx"))
