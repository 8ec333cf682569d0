"""Files that are damaged, hostile or half-written, and disks and pipes that fail."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.cli import evaluation as evaluation_commands
from recombinator.cli import weights as weights_commands
from recombinator.data.annotations import image_name
from recombinator.data.points import read_entries
from recombinator.data.readers.own import prepare_points
from recombinator.data.table import load_table
from recombinator.keypoints import FACE_5, KeypointSet
from recombinator.models import create_model
from recombinator.predict.engine import OnnxEngine, TorchEngine, load_engine
from recombinator.predict.graphfile import external_tensors
from recombinator.predict.predictor import Predictor, load
from recombinator.training.files import trim_metrics
from recombinator.utils import files
from recombinator.utils.errors import InputError
from recombinator.utils.files import (
    check_output_folder,
    lock_folder,
    plain_cell,
    write_atomically,
    write_json,
    write_text,
)
from recombinator.utils.schema import Share, decode, parse_json
from recombinator.weights.files import Weights, load_weights, read_tensors, save_weights, write_tensors
from recombinator.weights.shipped import FOLDER, shipped_graphs

GRAPH = "rcn-6-fast-mtfl"
Shares = msgspec.defstruct("Shares", [("a", list[Share])])
TEMPLATE = [[0.5, 0.5]] * 5


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(create_model("rcn-4", width=0.1, size=32), FACE_5, "mtfl", TEMPLATE, {}))
    return path


@pytest.fixture
def graph(tmp_path):
    for ending in (".onnx", ".safetensors"):
        (tmp_path / f"{GRAPH}{ending}").write_bytes((FOLDER / f"{GRAPH}{ending}").read_bytes())
    return tmp_path / f"{GRAPH}.onnx"


def changed(path, **fields):
    """Write the metadata of a weights file with other fields."""
    tensors, meta = read_tensors(path)
    write_tensors(path, tensors, {**meta, **fields})


# ---- structures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"template": [[0.5]] * 5}, r"template\[0\]: expected array of length >= 2, got 1 entries"),
        ({"template": TEMPLATE[:4]}, "template: expected 5 points, got 4"),
        ({"template": [[0.5, float("nan")]] * 5}, r"template\[0\]\[1\]: expected float >= .*, got nan"),
        ({"crop_rule": "x"}, "crop_rule: expected one of mtfl, 300w, .*got 'x'"),
        ({"model": []}, "model: expected object, got array"),
        ({"model": {"name": "rcn-4"}}, "model: expected a name and 5 keypoints"),
        ({"model": {"name": "rcn-4", "keypoints": 5, "size": "32"}}, "size: expected int, got str"),
        ({"model": {"name": "rcn-4", "keypoints": 5, "width": 100}}, "expected .* torch.float32, got"),
        ({"calibration": {"temperature": 1, "covered_below": [0.1] * 4}}, "expected 5 values in covered_below, got 4"),
        ({"keypoints": FACE_5.to_dict() | {"mirror": [[0, 9]]}}, "expected indices from 0 to 4"),
        ({"keypoints": FACE_5.to_dict() | {"names": ["a"] * 5}}, "expected 5 different names, got 1"),
        ({"keypoints": {"name": "x"}}, "keypoints.names: expected a value, got none"),
        ({"training": None}, "training: expected object, got null"),
    ],
)
def test_weights_metadata_is_checked_field_by_field(weights, fields, sentence):
    changed(weights, **fields)
    with pytest.raises(InputError, match=sentence) as error:
        load_weights(weights)
    assert str(error.value).startswith(str(weights)) and "\n" not in str(error.value)


def test_tensors_are_checked(weights):
    tensors, meta = read_tensors(weights)
    for change, sentence in (
        ({"trunk.0.weight": tensors["trunk.0.weight"] * float("nan")}, "expected finite numbers"),
        ({"trunk.0.weight": tensors["trunk.0.weight"].long()}, "got .* torch.int64"),
        ({"more": torch.zeros(3)}, "more is not a part of it"),
    ):
        write_tensors(weights, tensors | change, meta)
        with pytest.raises(InputError, match=sentence):
            load_weights(weights)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "1" * 5000, '{"a": "\\ud800"}', "{", b"\xff\xfe\x00", ""], ids=lambda t: repr(t)[:12]
)
def test_json_that_cannot_be_used(text):
    with pytest.raises(InputError, match=r"^a\.json:3: not (usable )?JSON \(") as error:
        parse_json(text, "a.json:3")
    assert "\n" not in str(error.value)


def test_a_violation_names_field_expectation_and_value():
    for value, sentence in (
        ({"a": [0.5, 2]}, r"f.json: a\[1\]: expected float <= 1.0, got 2$"),
        ({"a": "x"}, "f.json: a: expected array, got str$"),
        ({"a": [10**15]}, r"f.json: a\[0\]: expected float <= 1.0, got 1000000000000000$"),
        ({}, "f.json: a: expected a value, got none$"),
        ([], "f.json: expected object, got array$"),
    ):
        with pytest.raises(InputError, match=sentence):
            decode(Shares, value, "f.json")


def test_a_pair_that_refers_to_itself(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"image": "a.json", "denoiser": "b", "weight": 1, "iterations": 1}))
    with pytest.raises(InputError, match=r"a\.json: refers to itself"):
        load_weights(tmp_path / "a.json")


def test_columns_of_a_table(faces5, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, path = pq.read_table(faces5 / "test.parquet"), tmp_path / "t.parquet"
    boxes, points = table["box"].to_pylist(), table["points"].to_pylist()
    boxes[2][2] = 0.0
    points[1] = points[1][:4]
    files = [None, *table["file"].to_pylist()[1:]]
    i = table.column_names.index
    for made, sentence in (
        (table.set_column(i("box"), "box", pa.array(boxes, pa.list_(pa.float32()))), "positive side, .* row 2"),
        (
            table.set_column(i("points"), "points", pa.array(points)),
            "column points: expected lists of 5 x 2, got one of 4",
        ),
        (
            table.set_column(i("file"), "file", pa.array(files)),
            "column file: expected a value in each row, got none in row 0",
        ),
        (table.set_column(i("mask"), "mask", table["points"]), "column mask: expected bools, got list"),
        (table.drop_columns(["to_file"]), "to_file is missing"),
        (table.append_column("box", table["box"]), "two columns have the same name"),
    ):
        pq.write_table(made, path)
        with pytest.raises(InputError, match=sentence):
            load_table(path)


# ---- checksums and graphs --------------------------------------------------------------------------------------


def test_one_flipped_bit_is_found(weights, graph):
    for file, loaded in ((weights, weights), (graph.with_suffix(".safetensors"), graph)):
        before = file.read_bytes()
        file.write_bytes(before[:-100] + bytes([before[-100] ^ 1]) + before[-99:])
        with pytest.raises(InputError, match="checksum in its metadata"):
            load_engine(loaded)
        file.write_bytes(before)
        load_engine(loaded)


def test_a_file_without_a_checksum_loads(weights, graph):
    from safetensors.torch import save_file

    tensors, meta = read_tensors(weights)
    save_file(tensors, weights, metadata={"recombinator": json.dumps(meta)})
    load_weights(weights)
    model = onnx.load(graph, load_external_data=False)
    meta = json.loads(model.metadata_props[0].value)
    assert meta.pop("checksum")
    model.metadata_props[0].value = json.dumps(meta)
    graph.write_bytes(model.SerializeToString())
    load_engine(graph)


@pytest.mark.parametrize("path", [FOLDER / f"{n}.safetensors" for n in ("rcn-6-mtfl", "rcn-68-300w")], ids=str)
def test_what_ships_has_a_checksum(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as stream:
        assert len(json.loads(stream.metadata()["recombinator"])["checksum"]) == 64


@pytest.mark.parametrize("location", ["/etc/passwd", "../x.safetensors", "a/x.safetensors", "x.bin"])
def test_a_graph_reads_no_other_files(graph, location):
    model = onnx.load(graph, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == "location").value = location
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"allowed are \.safetensors files in the graph's own folder"):
        OnnxEngine(graph)


def test_tensors_outside_a_graph_are_all_found():
    for path in shipped_graphs().values():
        found = {(t.location, t.offset, t.length) for t in external_tensors(path, path.read_bytes())}
        expected = set()
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.external_data:
                entry = {e.key: e.value for e in tensor.external_data}
                expected.add((entry["location"], int(entry["offset"]), int(entry["length"])))
        assert found == expected


@pytest.mark.parametrize(("change", "sentence"), [("name", "has no input or output"), ("nan", "not finite")])
def test_the_interface_of_a_graph_is_checked(graph, change, sentence):
    model = onnx.load(graph)  # with its tensors
    meta = json.loads(model.metadata_props[0].value)
    del meta["checksum"]
    model.metadata_props[0].value = json.dumps(meta)
    if change == "name":
        model.graph.input[0].name = "photograph"
        for node in model.graph.node:
            node.input[:] = ["photograph" if name == "image" else name for name in node.input]
    else:
        bias = next(t for t in model.graph.initializer if t.name.endswith("trunk.0.bias"))
        bias.raw_data = np.full(len(bias.raw_data) // 4, np.inf, np.float32).tobytes()
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=sentence):
        OnnxEngine(graph)


# ---- disks, pipes, killed processes ----------------------------------------------------------------------------


def test_a_full_disk_is_named(weights, tmp_path):
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from recombinator.utils.errors import InputError\n"
        "from recombinator.weights.files import write_tensors\n"
        "from recombinator.utils.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "tensors = {'a': torch.zeros(9999)}\n"
        "for write in (lambda p: write_tensors(p, tensors, {}), lambda p: write_text(p, 'x' * 9999)):\n"
        "    try: write(Path(sys.argv[1]))\n"
        "    except InputError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.x")], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"{tmp_path / 'out.x'}: cannot be written (") for line in lines), run
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_folder_that_cannot_be_written_is_found_first(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for out in (tmp_path, tmp_path / "new" / "run"):
        with pytest.raises(InputError, match=f"{tmp_path}: cannot be written to"):
            check_output_folder(out)


def test_results_are_finite_or_not_written(tmp_path):
    with pytest.raises(InputError, match=r"r\.json: not written: rows\[1\]\.nme is not a finite number"):
        write_json(tmp_path / "r.json", {"rows": [{"nme": 1.0}, {"nme": float("nan")}]})
    assert not list(tmp_path.iterdir())


def test_a_network_whose_output_is_not_finite(weights, faces5, tmp_path):
    loaded = load_weights(weights)
    with torch.no_grad():
        for parameter in loaded.net.parameters():
            parameter.fill_(3e38)
    for call in (
        lambda: TorchEngine(loaded).run(np.full((1, 1, 32, 32), 9, np.uint8)),
        lambda: evaluation_commands.evaluate(tmp_path / "w2.safetensors", faces5 / "test.parquet"),
        lambda: evaluation_commands.compare([str(tmp_path / "w2.safetensors")] * 2, faces5 / "test.parquet"),
        lambda: weights_commands.reliability(
            str(tmp_path / "w2.safetensors"), faces5 / "test.parquet", json_out=tmp_path / "r.json"
        ),
    ):
        save_weights(tmp_path / "w2.safetensors", loaded)
        with pytest.raises(InputError, match="output is not finite"):
            call()
    assert not (tmp_path / "r.json").exists()


class ClosedPipe:
    """A standard output that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        pass


def test_a_closed_pipe_loses_no_file(weights, faces5, tmp_path, monkeypatch):
    data = faces5 / "test.parquet"
    for call in (
        lambda out: evaluation_commands.evaluate(str(weights), data, json_out=out),
        lambda out: evaluation_commands.compare([str(weights)] * 2, data, json_out=out),
        lambda out: weights_commands.reliability(str(weights), data, json_out=out, plots=tmp_path / "r.png"),
    ):
        out = tmp_path / "report.json"
        with monkeypatch.context() as patch, pytest.raises(BrokenPipeError):
            patch.setattr(sys, "stdout", ClosedPipe())
            call(out)
        assert json.loads(out.read_text())["provenance"]
        out.unlink()
    assert (tmp_path / "r.png").is_file() and (tmp_path / "report.images.parquet").is_file()


def dead_process():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.skipif(os.name != "posix", reason="process numbers")
def test_files_of_killed_processes_are_removed(tmp_path):
    dead, host = dead_process(), files._HOST
    stale = [f".last.{dead}-{host}.tmp.safetensors", f".points.{dead}.part.csv"]
    kept = [f".best.{os.getpid()}-{host}.tmp.safetensors", f".x.{dead}-00000000.tmp.json", "a.1.tmp", ".hidden.7.json"]
    for name in (*stale, *kept):
        (tmp_path / name).write_text("")
    with lock_folder(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, ".lock"])
    named = []
    write_atomically(tmp_path / "x.json", lambda p: (named.append(p.name), p.write_text("{}")))
    assert files._TEMPORARY.fullmatch(named[0])[1] == str(os.getpid())


def test_links_are_not_followed(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other.txt"
    run.mkdir()
    other.write_text("kept")
    (run / ".lock").symlink_to(other)
    with pytest.raises(InputError, match=r"\.lock: is a symbolic link"), lock_folder(run):
        pass
    (run / "metrics.jsonl").symlink_to(other)
    with pytest.raises(InputError, match=r"metrics\.jsonl: is a symbolic link"):
        trim_metrics(run, 0)
    assert other.read_text() == "kept"


def test_metrics_without_a_state_are_removed(tmp_path):
    line = {"epoch": 1, "loss": 1.0, "valid": 2.0, "clean": 2.0, "images_per_second": 3.0, "seconds": 1.0}
    write_text(tmp_path / "metrics.jsonl", json.dumps(line) + '\n{"epoch": 2, "lo')
    trim_metrics(tmp_path, 1)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == line
    trim_metrics(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


# ---- names, pickles, forks -------------------------------------------------------------------------------------


def test_spreadsheets_run_no_cell():
    for name in ("=1+1", "+x", "-x", "@x", "\tx"):
        assert plain_cell(name) == f"'{name}"
    for name in ("=1+1.jpg", "-x.jpg", "a.jpg", "'a.jpg", "d/=a.jpg"):
        assert image_name(plain_cell(name)) == name


def test_images_outside_the_folder_are_refused(tmp_path, caplog):
    """They would become part of tables and reports."""
    folder, other = tmp_path / "images", tmp_path / "other"
    for path in (folder / "a", other):
        path.mkdir(parents=True)
    for path in (tmp_path / "z.png", folder / "y.png", other / "x.png"):
        path.write_bytes(b"")
    (folder / "linked").symlink_to(other)

    def entries(name, **options):
        (folder / "points.csv").write_text(f"file,keypoint,x,y\ny.png,nose,1,2\n{name},nose,1,2\n")
        return read_entries(folder / "points.csv", **options)[1]

    for name in ("a/../y.png", str(folder / "y.png"), "linked/x.png", "../none.png"):
        assert entries(name, allow_outside=False).file == name and not caplog.records
    (tmp_path / "alias").symlink_to(folder)
    entries(str(folder / "y.png"))
    read_entries(tmp_path / "alias" / "points.csv", allow_outside=False)
    for name in ("../z.png", str(tmp_path / "z.png"), "a/../../z.png", str(other / "x.png")):
        with pytest.raises(InputError, match=r"points\.csv:3: .*[zx]\.png is outside .*--images, or .*--allow-outside"):
            entries(name, allow_outside=False)
        assert entries(name, images=tmp_path, allow_outside=False).path == Path(os.path.normpath(folder / name))
        assert not caplog.records
        assert entries(name).path == Path(os.path.normpath(folder / name))
        assert caplog.messages[0].startswith(f"{folder}/points.csv:3: 1 image outside its folder, such as /")
        caplog.clear()


def test_prepare_and_fit_refuse_images_outside_unless_allowed(trained, tmp_path):
    images = trained.images[0].parent
    text = (images / "points.csv").read_text()
    points = tmp_path / "points.csv"
    points.write_text("\n".join(f"{images}/{line}" if ".png" in line else line for line in text.splitlines()))
    for command in (["prepare", "points", points, tmp_path / "t"], ["fit", points, "--out", tmp_path / "f", "--plan"]):
        line = [str(part) for part in command]
        refused = CliRunner().invoke(app, line)
        assert isinstance(refused.exception, InputError) and "points.csv:2:" in str(refused.exception)
        assert CliRunner().invoke(app, [*line, "--allow-outside"], catch_exceptions=False).exit_code == 0
    prepare_points(points, tmp_path / "u", images=images)


def test_predictors_can_be_pickled(weights):
    for predictor in (load(FOLDER / f"{GRAPH}.onnx", threads=1), load(weights)):
        again = pickle.loads(pickle.dumps(predictor))
        assert isinstance(again, Predictor) and repr(again) == repr(predictor)
        crop = np.full((1, 1, predictor.about.size, predictor.about.size), 9, np.uint8)
        one, two = (p.engine.run(crop).points for p in (predictor, again))
        np.testing.assert_array_equal(one, two)


def answer(engine, queue):
    try:
        queue.put(engine.run(np.zeros((1, 1, engine.about.size, engine.about.size), np.uint8)).points)
    except InputError as error:
        queue.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_engines_in_a_forked_process(weights):
    """A graph starts its own session there; torch says that it cannot."""
    context = multiprocessing.get_context("fork")
    answers = []
    for engine in (load_engine(FOLDER / f"{GRAPH}.onnx", threads=2), load_engine(weights)):
        engine.run(np.zeros((1, 1, engine.about.size, engine.about.size), np.uint8))
        queue = context.Queue()
        process = context.Process(target=answer, args=(engine, queue))
        process.start()
        answers.append(queue.get(timeout=60))
        process.join(60)
    assert answers[0].shape == (1, 5, 2) and "the process was forked" in answers[1]


def test_a_keypoint_set_from_a_file_is_checked():
    assert KeypointSet.from_dict(FACE_5.to_dict()) == FACE_5
    with pytest.raises(InputError, match="mirror: expected each keypoint in one pair at most"):
        KeypointSet("x", ("a", "b", "c"), mirror=((0, 1), (1, 2)))
