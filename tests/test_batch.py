"""Photographs by the folder: found, resumed, written in every format."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_predict import HOPPER
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.keypoints import FACE_5
from recombinator.predict import batch
from recombinator.predict.detect import detector_by_name
from recombinator.predict.output import face_chip
from recombinator.predict.predictor import load
from recombinator.predict.result import Face
from recombinator.utils.errors import InputError
from recombinator.weights.shipped import shipped_weights


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Three photographs of one face, one without, one broken, in nested folders."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "deep" / "er").mkdir(parents=True)
    hopper = cv2.imread(str(HOPPER))
    for name, image in (
        ("a.jpg", hopper), ("deep/a.jpg", hopper[:, ::-1]), ("deep/er/b.PNG", cv2.resize(hopper, None, fx=0.5, fy=0.5)),
        ("empty.png", np.full((90, 120, 3), 80, np.uint8)),
    ):  # fmt: skip
        assert cv2.imwrite(str(folder / name), image)
    (folder / "deep" / "broken.jpg").write_bytes(b"no")
    (folder / "notes.txt").write_text("not a photograph")
    return folder


def test_photographs_are_found(album):
    found = batch.find_photographs([album])
    names = [p[len(str(album)) + 1 :] for p in found]
    assert names == ["a.jpg", "deep/a.jpg", "deep/broken.jpg", "deep/er/b.PNG", "empty.png"]
    assert batch.find_photographs([album / "a.jpg", str(album / "*.jpg")]) == [str(album / "a.jpg")]
    assert batch.find_photographs([str(album / "**" / "*.jpg")])[0].endswith("/a.jpg")
    assert batch.find_photographs(["nowhere.jpg", "-"]) == ["nowhere.jpg", "-"]
    for bad, message in (("https://a.b/c.jpg", "download"), (str(album / "*.gif"), "no photograph")):
        with pytest.raises(InputError, match=message):
            batch.find_photographs([bad])
    with pytest.raises(InputError, match="all its photographs are in --out"):
        batch.find_photographs([album], album)


def command(album, out, *more):
    return CliRunner().invoke(app, ["predict", str(album), "--out", str(out), *map(str, more)], catch_exceptions=False)


def test_a_folder_in_every_format(album, tmp_path):
    formats = [f"--format={f}" for f in ("json", "csv", "coco", "pts")]
    run = command(album, tmp_path, "--chips", 96, "--numbers", *formats)
    assert run.exit_code == 1 and "3 faces in 4 photographs" in run.output
    assert "broken.jpg: not an image" in run.output and "empty.png: no face found" in run.output
    lines = [json.loads(t) for t in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "points.json").read_text())["photographs"] == lines
    assert not (tmp_path / "points.jsonl.part").exists()
    first = lines[0]["faces"][0]["keypoints"]
    rows = list(csv.DictReader((tmp_path / "points.csv").open()))
    assert len(rows) == 15 and float(rows[0]["x"]) == first[0]["x"]
    coco = json.loads((tmp_path / "points.coco.json").read_text())
    assert len(coco["images"]) == 4 and len(coco["annotations"]) == 3
    x, y, visible = coco["annotations"][0]["keypoints"][:3]
    assert (x + 0.5, y + 0.5, visible) == (pytest.approx(first[0]["x"]), pytest.approx(first[0]["y"]), 2)
    assert coco["images"][0]["width"] == lines[0]["width"] and coco["categories"][0]["keypoints"][2] == "nose"
    assert sorted(p.name for p in (tmp_path / "pts").iterdir()) == ["a-2_1.pts", "a_1.pts", "b_1.pts"]
    text = (tmp_path / "pts" / "a_1.pts").read_text().splitlines()
    assert float(text[3].split()[0]) == pytest.approx(first[0]["x"] + 0.5)
    assert {p.name for p in tmp_path.glob("*.png")} == {"a.keypoints.png", "a-2.keypoints.png", "b.keypoints.png"}
    chips = [cv2.imread(str(p)) for p in sorted((tmp_path / "chips").iterdir())]
    assert [c.shape for c in chips] == [(96, 96, 3)] * 3
    again = load("rcn-6-mtfl").predict(chips[0][..., ::-1].copy(), boxes=[(10, 10, 76, 76)])[0].points / 96
    template = np.array(load("rcn-6-mtfl").about.template)
    assert np.abs(again - template).max() < 0.08  # the chip shows the face where the template has it


def test_resuming_leaves_out_what_is_done_and_a_killed_run_keeps_its_lines(album, tmp_path):
    assert command(album, tmp_path, "--no-pictures").exit_code == 1
    whole = (tmp_path / "points.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "points.jsonl").unlink()
    (tmp_path / "points.jsonl.part").write_text(lines[0] + lines[1][:30])
    run = command(album, tmp_path, "--no-pictures", "--resume")
    assert "1 done before" in run.output
    assert sorted((tmp_path / "points.jsonl").read_text().splitlines()) == sorted(whole.splitlines())
    third = command(album, tmp_path, "--no-pictures", "--resume")
    assert "4 done before" in third.output and third.exit_code == 1  # the broken one is tried again
    assert (tmp_path / "points.jsonl").read_text().count("\n") == 4


def test_resuming_keeps_chips_and_weights_apart(album, tmp_path):
    command(album / "a.jpg", tmp_path, "--no-pictures", "--chips", 64)
    command(album / "deep" / "a.jpg", tmp_path, "--no-pictures", "--chips", 64, "--resume")
    assert {p.name for p in (tmp_path / "chips").iterdir()} == {"a.face1.png", "a-2.face1.png"}
    with pytest.raises(InputError, match="written with the weights rcn-6-mtfl"):
        command(album, tmp_path, "--resume", "--weights", str(shipped_weights()["rcn-6-mtfl"]))
    (tmp_path / "photo.jpg").write_bytes(HOPPER.read_bytes())
    found = batch.find_photographs([tmp_path], tmp_path / "chips")
    assert found == [str(tmp_path / "photo.jpg")]


def test_chips_of_large_faces_are_averaged():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1600, 1600), dtype=np.uint8)
    template = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]])
    face = Face(template * 800 + 400, np.ones(5), np.array([400.0, 400.0, 800.0]), FACE_5)
    chip = face_chip(image, face, template, 100)
    assert chip.shape == (100, 100) and chip.std() < 0.3 * image.std()
    ramp = np.tile(np.arange(1600) / 1600 * 255, (1600, 1)).astype(np.uint8)
    center = face_chip(ramp, face, template, 100)[50].astype(float)
    np.testing.assert_allclose(center, (400 + (np.arange(100) + 0.5) * 8) / 1600 * 255, atol=1.5)


def test_standard_input(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", type("Pipe", (), {"buffer": io.BytesIO(HOPPER.read_bytes())}))
    outcome = batch.predict_all(load("rcn-6-mtfl"), ["-"], tmp_path)
    assert outcome.faces == 1 and (tmp_path / "stdin.keypoints.png").is_file()


def test_boxes_from_a_file_and_detectors_by_name(album, tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text(f"file,x,y,width,height\n{album / 'a.jpg'},150,110,220,220\n{album / 'a.jpg'},140,100,240,240\n")
    run = command(album / "a.jpg", tmp_path / "out", "--boxes", table)
    assert run.exit_code == 0 and "2 faces in 1 photograph:" in run.output
    table.write_text("file,x,y,width,height\na.jpg,1,2,30,40\n")
    with pytest.raises(InputError, match="must name them as this command does, such as .*/a.jpg"):
        command(album, tmp_path / "x", "--boxes", table)
    with pytest.raises(InputError, match="both give boxes"):
        command(album, tmp_path / "x", "--boxes", table, "--box", "1,2,3,4")
    for bad in ("3,b", "3,nan", "3,-4"):
        table.write_text(f"file,x,y,width,height\na.jpg,1,2,{bad}\n")
        with pytest.raises(InputError, match=r"boxes.csv:2"):
            batch.read_boxes(table)
    table.write_text("file,x\n")
    with pytest.raises(InputError, match=r"boxes.csv:1: expected the columns"):
        batch.read_boxes(table)
    crop = cv2.imread(str(HOPPER))[100:330, 150:380, ::-1].copy()
    face = load("rcn-6-mtfl", detector_by_name("none")).predict(crop)[0]
    assert np.linalg.norm(face.points - load("rcn-6-mtfl").predict(HOPPER)[0].points + [150, 100], axis=1).mean() < 4
    bad = (("dlib", "unknown detector"), ("yunet:nowhere", "no such file"), (f"yunet:{HOPPER}", "cannot read it"))
    for name, message in bad:
        with pytest.raises(InputError, match=message):
            detector_by_name(name)
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        load("rcn-6-mtfl").predict(HOPPER, min_confidence=float("nan"))
    with pytest.raises(InputError, match="unknown format 'xml'; expected one of json, csv, coco, pts"):
        command(album, tmp_path / "x", "--format", "xml")


def test_earlier_results_are_not_overwritten_silently(album, tmp_path):
    assert command(album, tmp_path, "--no-pictures").exit_code == 1
    before = (tmp_path / "points.jsonl").read_text()
    with pytest.raises(
        InputError, match=r"already holds results \(points.jsonl\); --overwrite replaces them, --resume"
    ):
        command(album / "a.jpg", tmp_path)
    with pytest.raises(InputError, match="give one of them"):
        command(album / "a.jpg", tmp_path, "--resume", "--overwrite")
    assert (tmp_path / "points.jsonl").read_text() == before
    assert command(album / "a.jpg", tmp_path, "--overwrite", "--format", "json").exit_code == 0
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 1
    rows = list(csv.DictReader((tmp_path / "points.csv").open()))  # not asked for, but it must not contradict
    assert {r["file"] for r in rows} == {str(album / "a.jpg")}
    (tmp_path / "points.jsonl").rename(tmp_path / "points.jsonl.part")
    with pytest.raises(InputError, match="points.jsonl.part"):
        command(album / "a.jpg", tmp_path)


def test_standard_output(album, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = command(album, "-")
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.exit_code == 1 and [len(r["faces"]) for r in lines] == [1, 1, 1, 0]
    assert "3 faces in 4 photographs" in run.stderr and not list(tmp_path.iterdir())
    for option in (["--chips", 64], ["--resume"], ["--format", "csv"]):
        with pytest.raises(InputError, match=f"leave out {option[0]}"):
            command(album, "-", *option)


def test_the_folder_for_results_has_a_default(album, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["predict", str(album / "a.jpg"), "--threads", "1", "--engine", "torch"])
    assert run.exit_code == 0 and (tmp_path / "keypoints" / "points.jsonl").is_file()
    assert (tmp_path / "keypoints" / "a.keypoints.png").is_file()
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        command(album / "a.jpg", "x", "--device", "gpu")


def test_progress_is_reported(album, tmp_path):
    calls = []
    names = [str(album / "a.jpg"), str(album / "empty.png")]
    batch.predict_all(load("rcn-6-mtfl"), names, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


def test_several_at_once_give_the_same_lines(album, tmp_path):
    names = batch.find_photographs([album])
    predictor = load("rcn-6-mtfl", threads=1)
    for workers in (1, 4):
        out = tmp_path / str(workers)
        outcome = batch.predict_all(predictor, names, out, pictures=False, chips=32, workers=workers)
        assert outcome.faces == 3 and len(outcome.failed) == 1
    assert (tmp_path / "1" / "points.jsonl").read_text() == (tmp_path / "4" / "points.jsonl").read_text()
    assert len(list((tmp_path / "4" / "chips").iterdir())) == 3


def test_two_commands_into_one_folder(album, tmp_path):
    hold = "import sys; from pathlib import Path; from recombinator.utils.files import lock_folder\n"
    hold += "with lock_folder(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="another process uses this folder"):
            command(album / "a.jpg", tmp_path)
        other.stdin.close()


def test_names_of_250_characters_and_names_that_are_not_utf_8(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    names = [b"n" * 246 + b".jpg", b"m.jpg", b"caf\xe9.jpg"]
    try:
        for name in names:
            shutil.copy(HOPPER, os.fsencode(source) + b"/" + name)
    except OSError:
        pytest.skip("skipped: this file system has no such names")
    run = command(source, tmp_path / "out", "--chips", 32, *(f"--format={f}" for f in ("json", "csv", "coco", "pts")))
    assert run.exit_code == 0 and "3 faces in 3 photographs" in run.output
    assert len(list((tmp_path / "out").glob("*.keypoints.png"))) == len(list((tmp_path / "out" / "pts").iterdir())) == 3
    with open(tmp_path / "out" / "points.csv", encoding="utf-8") as stream:
        files = {os.path.basename(row["file"]) for row in csv.DictReader(stream)}
    assert files == {"n" * 246 + ".jpg", "m.jpg", "caf\\udce9.jpg"}
    with pytest.raises(InputError, match="cannot read it as a YuNet model"):
        detector_by_name("yunet:" + os.fsdecode(os.fsencode(source) + b"/caf\xe9.jpg"))


@pytest.mark.slow
def test_5000_photographs_in_flat_memory_and_after_three_kills(tmp_path):
    small = cv2.resize(cv2.imread(str(HOPPER)), (96, 112), interpolation=cv2.INTER_AREA)
    (tmp_path / "album").mkdir()
    for n in range(5000):
        cv2.imwrite(str(tmp_path / "album" / f"{n:04}.png"), np.roll(small, (n % 7, n % 11), axis=(0, 1)))

    def start(out, *more):
        line = [
            sys.executable,
            "-m",
            "recombinator",
            "predict",
            tmp_path / "album",
            "--out",
            out,
            "--no-pictures",
            *more,
        ]
        return subprocess.Popen([str(part) for part in line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def peak(process):
        """The largest memory so far in kB, as Linux tells it."""
        status = (Path("/proc") / str(process.pid) / "status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    whole, peaks = start(tmp_path / "whole"), []
    part = tmp_path / "whole" / "points.jsonl.part"
    while whole.poll() is None:
        time.sleep(0.2)
        done = part.read_bytes().count(b"\n") if part.is_file() else 0
        if done > 500:
            peaks.append(peak(whole))
    assert whole.returncode == 0 and peaks[-1] < peaks[0] + 50_000
    lines = (tmp_path / "whole" / "points.jsonl").read_text().splitlines()
    assert len(lines) == 5000

    killed = tmp_path / "killed"
    for n in range(3):
        process = start(killed, *(["--resume"] if n else []))
        part, wanted = killed / "points.jsonl.part", 1000 * (n + 1)
        while process.poll() is None and not (part.is_file() and part.read_bytes().count(b"\n") > wanted):
            time.sleep(0.1)
        assert process.poll() is None  # there was something left to do
        process.kill()
        process.wait()
    assert start(killed, "--resume").wait() == 0
    assert (killed / "points.jsonl").read_text().splitlines() == lines
