"""The program as a user meets it."""

import csv
import inspect
import json
import logging
import re
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT
from test_predict import HOPPER
from typer.main import get_command
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.table import load_table
from recombinator.models import RCN, ScoreMapNet, SumNet, create_model, model_names
from recombinator.models.denoiser import MapDenoiser, PointDenoiser
from recombinator.study.render import load_results, render_documents, render_text
from recombinator.training.recipe import FAST, changed, parse_settings, setting_types
from recombinator.utils import errors
from recombinator.utils.console import log_to_console
from recombinator.utils.errors import InputError
from recombinator.utils.version import __version__
from recombinator.weights.shipped import shipped_models


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "recombinator", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def test_importing_is_light():
    code = "import sys, recombinator, recombinator.cli; print({'torch', 'cv2', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def commands(group, path=()):
    """(path, command) of every command and group."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(p, c, id=" ".join(p)) for p, c in commands(get_command(app))]
)
def test_every_help(path, command):
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*path, "--help"])
    assert shown.exit_code == 0 and "Usage" in shown.stdout and not shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80 and "..." not in shown.stdout.split("Options:")[1]
    assert command.help and all(p.help for p in command.params if not p.hidden)
    for name in (n for p in command.params if not p.hidden for n in p.opts if n.startswith("-")):
        assert name in shown.stdout


def test_all_commands_are_listed_in_sections():
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["--help"]).stdout
    daily, research = shown.split("Daily use:\n")[1].split("\n\nResearch:\n")
    listed = [re.findall(r"^  (\S+)", part, re.M) for part in (daily, research)]
    assert listed == [
        ["demo", "predict", "track", "fit", "suggest", "check-labels", "train", "evaluate", "export", "web", "models",
         "prepare"],
        ["compare", "calibrate", "reliability", "join", "average", "mirror", "shift", "smooth", "convert", "denoise",
         "bench", "study"],
    ]  # fmt: skip


def test_version():
    assert run("--version").stdout == f"recombinator {__version__}\n"


def test_every_setting_is_listed_with_its_default():
    shown = CliRunner().invoke(app, ["train", "--list-settings"])
    assert shown.exit_code == 0
    rows = {line.split()[0]: line.split()[1:3] for line in shown.stdout.splitlines() if re.match(r"  \S", line)}
    assert rows.keys() == setting_types().keys()
    changes, options = parse_settings([f"{n}={d}" for n, (_, d) in rows.items() if d not in ("-", "all")])
    assert changed(FAST, **changes) == FAST
    defaults = {}
    for kind in (PointDenoiser, MapDenoiser, RCN, SumNet, ScoreMapNet):
        defaults |= {n: p.default for n, p in inspect.signature(kind.__init__).parameters.items()}
    of_rcn = {name: options.pop(name) for name in ("form", "width")}
    shapes = [[p.shape for p in create_model("rcn-6", **given).parameters()] for given in (of_rcn, {})]
    assert shapes[0] == shapes[1]
    assert options == {name: defaults[name] for name in options} and defaults["mask"] is None


def test_earlier_options_of_train_say_how_they_are_written_now(tmp_path):
    asked = ["train", "rcn-4", "--data", "d", "--out", "o"]
    for old, now in (
        (["--batch", "64"], "--batch 64 is now --set batch=64"),
        (["--learning-rate=1e-3"], "--learning-rate=1e-3 is now --set learning_rate=1e-3"),
        (["--loss", "l2", "--mask", "1,0,0,1"], "--loss l2 --mask 1,0,0,1 are now --set loss=l2 --set mask=1,0,0,1"),
    ):
        shown = CliRunner().invoke(app, [*asked, *old])
        assert isinstance(shown.exception, InputError) and str(shown.exception) == now
        parse_settings([text for text in now.split() if "=" in text and not text.startswith("--")])  # it is accepted
    done = run(*asked, "--width", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "error: --width VALUE is now --set width=VALUE\n"


def test_prepare_takes_its_folder_either_way(tmp_path):
    for where in (["a"], ["--out", "b"]):
        assert run("prepare", "synthetic", *where, "--faces", 10, "--points", 68, cwd=tmp_path).returncode == 0
        assert len(load_table(tmp_path / where[-1] / "test.parquet").info.keypoints) == 68
    for where, words in (([], "give --out FOLDER"), (["a", "--out", "b"], "give one")):
        shown = CliRunner().invoke(app, ["prepare", "synthetic", *where])
        assert isinstance(shown.exception, InputError) and words in str(shown.exception)


def test_messages_go_to_the_streams_of_the_command_line(capsys):
    logger = logging.getLogger("recombinator.something")
    with log_to_console():
        logger.info("an epoch")
        logger.warning("dropped: a face")
        logger.debug("a detail")
    logger.info("a library prints nothing")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("an epoch\n", "dropped: a face\n")


def test_models_json():
    rows = json.loads(run("models", "--json").stdout)
    assert [r["name"] for r in rows] == model_names()
    assert next(r for r in rows if r["name"] == "rcn-6") == {
        "name": "rcn-6", "parameters": 310_229, "multiply_adds": 115_448_832, "input": 80, "keypoints": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "rcn-6", "--data", "nowhere", "--out", "x"], "nowhere/train.parquet: no such file"),
        (["train", "rcn6", "--data", "{faces}", "--out", "x"], "did you mean 'rcn-6'?"),
        (["train", "rcn-4", "--data", "{faces}", "--out", "x", "--set", "mask=1,2"], "mask (1, 2) must have 4 entries"),
        (["train", "rcn-4", "--data", "{faces}", "--out", "x", "--set", "mask=a"], "--set mask=a: expected integers"),
        (["train", "rcn-4", "--data", "{faces}", "--out", "x", "--recipe", "no"], "expected one of fast, paper"),
        (["train", "rcn-4", "--data", "{faces}", "--out", "x", "--epochs", "0"], "--epochs"),
        (["train", "rcn-4", "--data", "{faces}", "--out", "x", "--set", "fold=7"], "divide the input size"),
        (["shift", "denoiser-lite-300w", "--out", "x.safetensors"], "an RCN or a SumNet"),
        (["shift", "rcn-6-mtfl", "--out", "x.safetensors", "--by", "41"], "shift=41 must be from 0 to 20"),
        (["shift", "rcn-6-mtfl", "--out", "x.safetensors", "--by", "2"], "--by 2: must be odd"),
        (["mirror", "rcn-6-mtfl", "--out", "x.onnx"], "x.onnx: must end in .safetensors"),
        (["export", "rcn-6-mtfl", "--onnx", "{faces}"], "is a folder; expected a file name"),
        (["track", "a.mp4", "--out", "x.csv", "--detector", "none"], "--detector none"),
        (["predict", "a.jpg", "--out", "{faces}/test.parquet"], "is a file; expected a folder"),
        (["predict", "a.jpg", "--out", "x", "--chips", "100000"], "chips"),
        (["evaluate", "nothing", "--data", "{faces}/test.parquet"], "neither a weights file"),
        (["evaluate", "{faces}/test.parquet", "--data", "{faces}/test.parquet"], "not a readable safetensors file"),
        (["evaluate", "rcn-6-mtfl", "--data", "{faces}"], "a folder; give one of its tables"),
        (["train", "rcn-4", "--data", "{faces}/train.parquet", "--out", "x"], "a file; give the folder"),
        (
            ["evaluate", "rcn-6-mtfl", "--data", "{faces}/test.parquet", "--json", "{faces}/test.parquet"],
            "would",
        ),
        (["convert", "nowhere", "--out", "x.safetensors"], "nowhere: cannot be read"),
        (["prepare", "mtfl", "nowhere", "x"], "no such folder"),
        (["prepare", "synthetic", "x", "--points", "7"], "expected 5 or 68 keypoints, got 7"),
        (["predict", "nowhere.jpg", "--out", "x"], "nowhere.jpg: cannot be read"),
        (["predict", "a.jpg", "--out", "x", "--box", "1,2"], "--box 1,2"),
        (["demo", "--photo", "nowhere.jpg"], "nowhere.jpg: cannot be read"),
        (["study", "render", "--root", "nowhere"], "no README.md"),
        (["fly"], "fly"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, words, faces5, tmp_path):
    done = run(*(a.format(faces=faces5) for a in arguments), cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x").exists()


def test_the_whole_chain(tmp_path):
    """prepare, train, resume, evaluate, predict: what README types, on drawn faces."""
    assert "train.parquet: 48 faces" in run("prepare", "synthetic", "faces", "--faces", 60, cwd=tmp_path).stdout
    kind = ["train", "rcn-4", "--data", "faces", "--out", "runs/a", "--set", "size=40", "--set", "width=0.25"]
    first = run(*kind, "--epochs", 2, cwd=tmp_path)
    assert first.returncode == 0 and first.stdout.count("\n") == 3 and "best epoch" in first.stdout
    again = run(*kind, "--epochs", 2, cwd=tmp_path)
    assert again.returncode == 2 and "--resume" in again.stderr
    assert run(*kind, "--epochs", 3, "--resume", cwd=tmp_path).returncode == 0
    done = run(
        "evaluate", "runs/a", "--data", "faces/test.parquet", "--json", "r/a.json", "--plots", "plots", cwd=tmp_path
    )
    assert done.returncode == 0 and "paper" in done.stdout and "continuous" in done.stdout
    report = json.loads((tmp_path / "r/a.json").read_text())
    for key in ("images", "nme_paper", "nme", "nme_ci95", "per_keypoint", "failure_rate_10", "auc_10", "protocols",
                "normaliser", "crop", "decoder", "grid", "provenance", "training"):  # fmt: skip
        assert key in report
    per_image = pd.read_parquet(tmp_path / "r/a.images.parquet")
    assert len(per_image) == 6 and 100 * per_image["error"].mean() == pytest.approx(report["nme"])
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"cumulative.png", "worst.png"}
    predicted = run("predict", HOPPER, "--weights", "runs/a", "--out", "points", "--min-confidence", 0, cwd=tmp_path)
    assert predicted.returncode == 0 and "left_eye" in predicted.stdout


def test_predict_writes_json_csv_and_pictures(tmp_path):
    (tmp_path / "bad.jpg").write_text("no")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / HOPPER.name).write_bytes(HOPPER.read_bytes())
    done = run("predict", HOPPER, "bad.jpg", f"again/{HOPPER.name}", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1 and "bad.jpg: not an image" in done.stderr
    found = json.loads((tmp_path / "out/points.json").read_text())["photographs"]
    assert [len(p["faces"]) for p in found] == [1, 1]
    rows = list(csv.DictReader((tmp_path / "out/points.csv").open()))
    assert len(rows) == 10 and float(rows[0]["x"]) == found[0]["faces"][0]["keypoints"][0]["x"]
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {
        "grace_hopper.keypoints.png", "grace_hopper-2.keypoints.png",
    }  # fmt: skip


def test_outputs_that_cannot_be_written_are_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    for arguments in (["demo", "--out", "file"], ["prepare", "synthetic", "file", "--faces", "10"]):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and "file" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_photograph_is_never_overwritten(tmp_path):
    photo = tmp_path / "me.jpg"
    photo.write_bytes(HOPPER.read_bytes())
    assert run("demo", "--photo", "me.jpg", "--out", ".", cwd=tmp_path).returncode == 0
    assert run("predict", "me.jpg", "--out", ".", cwd=tmp_path).returncode == 0
    assert photo.read_bytes() == HOPPER.read_bytes()


def test_demo(tmp_path):
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("_eye") == 2
    for number in (5, 68):
        assert (tmp_path / f"out/demo/grace_hopper.{number}-keypoints.png").is_file()
        faces = json.loads((tmp_path / f"out/demo/grace_hopper.{number}-keypoints.json").read_text())["faces"]
        assert [len(f["keypoints"]) for f in faces] == [number]


def test_the_benchmark_of_the_pipeline(tmp_path, monkeypatch):
    from recombinator.study import pipeline

    small, short = pipeline.landscape(300, 200), pipeline.video_frames(2)
    monkeypatch.setattr(pipeline, "landscape", lambda: small)
    monkeypatch.setattr(pipeline, "video_frames", lambda: short)
    report = pipeline.run(["rcn-6-mtfl-int8"], 1)
    rows = report["rows"]
    assert rows[report["reference"]]["times_reference"] == 1 and report["threads"] == 1 and report["passes"] == 2
    assert all(row["unit"] == "ms" and row["median"] > 0 and row["times_reference"] > 0 for row in rows.values())
    for part in ("photograph, without decoding", "crop, per pass", "network, per pass", "video frame, 1280x720"):
        assert f"rcn-6-mtfl-int8: {part}" in rows
    assert "find, 1280x720" in rows and "photograph without a face, 2000x3000, without decoding" in rows


def test_bench_reports_ratios(tmp_path):
    done = run("bench", "--model", "sumnet-4", "--rounds", 1, "--json", "b.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert rows["sumnet-4 training, plain"]["ratio_to_plain"] == 1
    assert all(r["low"] <= r["median"] <= r["high"] for r in rows.values())


def test_documents_agree_with_results():
    assert load_results(ROOT), "results/ is empty"
    assert render_documents(ROOT, write=False) == [], "run `recombinator study render`"


def test_a_changed_figure_is_noticed():
    results = load_results(ROOT)
    text = render_text("<!-- results: aflw-all -->\n<!-- end -->", results, "x")
    results["rcn-6-mtfl"]["nme_paper"] += 1
    assert render_text(text, results, "x") != text


NO_TORCH = "import sys; sys.modules.update({'torch': None, 'pyarrow': None})\n"


def test_a_command_that_lacks_its_extra_says_which(tmp_path):
    code = NO_TORCH + "from recombinator.cli import main; sys.argv = ['recombinator', *sys.argv[1:]]; main()"
    for arguments, words in (
        (["train", "rcn-4", "--data", "x", "--out", "y"], "this command needs torch; pip install -e '.[train]'"),
        (["models", "--json"], "this command needs torch; pip install -e '.[train]'"),
        (["prepare", "synthetic", "x"], "writing tables needs pyarrow; pip install -e '.[train]'"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    names = subprocess.run([sys.executable, "-c", code, "models"], capture_output=True, text=True, cwd=tmp_path)
    assert names.returncode == 0 and all(name in names.stdout for name in shipped_models())
    assert "multiply-adds, needs torch; pip install -e '.[train]'" in names.stdout
    found = subprocess.run(
        [sys.executable, "-c", code, "predict", str(HOPPER), "--out", "o"], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == 0 and "left_eye" in found.stdout


def test_the_python_api_says_which_extra_it_lacks():
    code = NO_TORCH + (
        "import recombinator\n"
        "for name in ('train', 'evaluate', 'create_model'):\n"
        "    try: getattr(recombinator, name)\n"
        "    except ImportError as error:\n"
        "        assert isinstance(error, recombinator.InputError); print(error)\n"
        "recombinator.load, recombinator.prepare_mtfl, recombinator.shipped_models"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"recombinator.{name} needs torch; pip install -e '.[train]'" for name in ("train", "evaluate", "create_model")
    ]


def test_an_installed_package_names_the_distribution(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "recombinator" / "utils" / "errors.py"))
    assert errors.remedy("onnx") == "pip install 'recombinator-networks[onnx]'"
    assert errors.explain_missing(ModuleNotFoundError(name="nothing.known"), "this") is None


@pytest.mark.parametrize("step", [1, 50])
def test_time_left_counts_from_the_run_that_is_under_way(step, monkeypatch, capsys):
    from recombinator.utils import console

    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    with console.progress("steps") as advance:
        for start, seconds in ((0, 1.0), (0, 3.0), (400, 6.0)):  # the third run is a resumed one
            for done in range(start + step, 801, step):
                clock[0] += seconds * step
                advance(done, 800)
                if done == 600:
                    left = float(capsys.readouterr().err.strip().splitlines()[-1].split(", ")[1].split()[0])
                    assert left == pytest.approx(200 * seconds / 60, rel=0.35)
