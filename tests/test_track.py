"""Video made from a photograph that moves in a known way."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import SHARED
from test_predict import HOPPER
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.predict.predictor import load
from recombinator.predict.track import OneEuro, Tracker, frames
from recombinator.predict.video import write_track
from recombinator.utils.errors import InputError

RATE = 25.0


@pytest.fixture(scope="module")
def scene():
    image = cv2.imread(str(HOPPER))[40:440, 60:480, ::-1]
    return np.ascontiguousarray(image)


def shifted(image, x, y, noise=0.0, seed=0):
    """The photograph moved by (x, y) pixels, with gray noise."""
    out = cv2.warpAffine(image, np.float32([[1, 0, x], [0, 1, y]]), image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    rng = np.random.default_rng(seed)
    return np.clip(out + rng.normal(0, noise, out.shape), 0, 255).astype(np.uint8) if noise else out


@pytest.fixture(scope="module")
def predictor():
    return load("rcn-6-mtfl")


def follow(predictor, images, **options):
    tracker = Tracker(predictor, **options)
    return tracker, [tracker.update(image, i / RATE) for i, image in enumerate(images)]


def test_a_moving_face_is_followed_without_the_detector_and_without_lag(predictor, scene):
    steps = np.array([(20 * np.sin(i / 6), 0.8 * i) for i in range(24)])
    images = [shifted(scene, x, y) for x, y in steps]
    tracker, found = follow(predictor, images, detect_every=1000)
    assert tracker.detections == 1
    assert [[t.number for t in tracks] for tracks in found] == [[1]] * 24
    still = predictor.predict(scene)[0].points
    side = found[0][0].face.box[2]
    lag = []
    for (x, y), (track,) in zip(steps, found, strict=True):
        assert np.linalg.norm(track.raw.points - still - [x, y], axis=1).mean() < 0.03 * side
        lag.append(np.linalg.norm(track.face.points - still - [x, y], axis=1).mean())
    assert np.mean(lag) < 0.03 * side


def still_scene(predictor, scene, smooth):
    images = [shifted(scene, 0, 0, noise=12, seed=i) for i in range(20)]
    _, found = follow(predictor, images, smooth=smooth, detect_every=1000)
    points = np.array([tracks[0].face.points for tracks in found])
    return float(np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=2).mean()))


def test_smoothing_steadies_a_still_scene(predictor, scene):
    raw, smooth = (still_scene(predictor, scene, s) for s in (False, True))
    assert 0 < smooth < 0.5 * raw


def test_a_face_that_is_lost_and_found_keeps_its_number_for_a_while(predictor, scene):
    black = np.zeros_like(scene)
    images = [scene] * 3 + [black] * 8 + [scene] * 3 + [black] * 60 + [scene] * 2
    _, found = follow(predictor, images)
    numbers = [[t.number for t in tracks] for tracks in found]
    assert numbers[:3] == [[1]] * 3 and numbers[5:11] == [[]] * 6
    assert numbers[11:14] == [[1]] * 3  # back within two seconds
    assert numbers[-1] == [2]  # after more than two seconds: somebody new


def test_two_faces_have_two_numbers(predictor, scene):
    both = np.concatenate([scene, scene[:, ::-1]], axis=1)
    _, found = follow(predictor, [both] * 4, detect_every=1)
    assert [sorted(t.number for t in tracks) for tracks in found] == [[1, 2]] * 4
    left = [next(t for t in tracks if t.number == 1).face.points[:, 0].mean() for tracks in found]
    assert np.ptp(left) < 5


def test_the_filter_follows_a_jump_and_rests():
    rng = np.random.default_rng(0)
    still = OneEuro()
    noisy = [rng.normal(0, 1, (5, 2)) for _ in range(200)]
    out = np.array([still(p, 100.0, 0.04, np.ones(5)) for p in noisy])
    assert out[50:].std() < 0.6 * np.array(noisy)[50:].std()
    moving = OneEuro()
    line = [np.full((5, 2), 8.0 * i) for i in range(50)]  # two face sides a second
    out = np.array([moving(p, 100.0, 0.04, np.ones(5)) for p in line])
    assert np.abs(out[20:] - np.array(line)[20:]).max() < 8.0  # less than a frame behind
    doubtful = OneEuro()
    out_doubtful = np.array([doubtful(p, 100.0, 0.04, np.full(5, 0.3)) for p in noisy])
    assert out_doubtful[50:].std() < np.array([OneEuro()(p, 100.0, 0.04, np.ones(5)) for p in noisy])[50:].std()


@pytest.fixture(scope="module")
def video(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "moving.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, scene.shape[1::-1])
    for i in range(10):
        writer.write(np.ascontiguousarray(shifted(scene, 3 * i, 0)[..., ::-1]))
    writer.release()
    return path


def test_track_command(video, tmp_path):
    command = ["track", str(video), "--video-out", str(tmp_path / "drawn.mp4"), "--out"]
    run = CliRunner().invoke(app, [*command, str(tmp_path / "points.jsonl")], catch_exceptions=False)
    assert run.exit_code == 0 and "10 frames, 1 face in them" in run.output
    lines = [json.loads(t) for t in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(10)) and lines[-1]["seconds"] == 0.36
    nose = [line["faces"][0]["keypoints"][2]["x"] for line in lines]
    assert nose[-1] - nose[0] == pytest.approx(27, abs=4)
    drawn = [f for _, f, _ in frames(str(tmp_path / "drawn.mp4"))]
    plain = [f for _, f, _ in frames(str(video))]
    assert len(drawn) == 10 and drawn[0].shape == plain[0].shape
    assert np.abs(drawn[5].astype(int) - plain[5]).max() > 100
    moved, as_found = (
        float(v) for v in re.search(r"move by ([\d.]+) % .* without smoothing ([\d.]+) %", run.output).groups()
    )
    side = lines[0]["faces"][0]["box"][2]
    assert as_found == pytest.approx(100 * 3 / side, rel=0.3) and moved == pytest.approx(as_found, rel=0.3)
    run = CliRunner().invoke(
        app, [*command, str(tmp_path / "p.csv"), "--limit", "2", "--raw", "--overwrite"], catch_exceptions=False
    )
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert run.exit_code == 0 and len(rows) == 10 and rows[5]["frame"] == "1"
    assert not [p for p in tmp_path.iterdir() if "part" in p.name]


def test_what_cannot_be_tracked(video, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for arguments, message in (
        ([str(video), "--out", str(tmp_path / "a.txt")], r"\.jsonl or \.csv"),
        (["nowhere.mp4", "--out", str(tmp_path / "a.csv")], "no such file"),
        ([str(tmp_path / "bad.mp4"), "--out", str(tmp_path / "a.csv")], "not a video"),
        ([str(video), "--out", str(tmp_path / "a.csv"), "--device", "gpu"], "unknown device"),
        (["77", "--out", str(tmp_path / "a.csv")], "no webcam"),
        ([str(video), "--out", str(tmp_path / "a.csv"), "--video", str(video)], "overwrite"),
    ):
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(app, ["track", *arguments], catch_exceptions=False)
        assert not list(tmp_path.glob("*.csv"))


def test_ctrl_c_keeps_what_was_recorded(video, tmp_path, monkeypatch):
    whole = Tracker.update

    def update(self, image, seconds):
        if self._frames == 4:
            raise KeyboardInterrupt
        return whole(self, image, seconds)

    monkeypatch.setattr(Tracker, "update", update)
    out, drawn = tmp_path / "p.jsonl", tmp_path / "d.mp4"
    run = CliRunner().invoke(app, ["track", str(video), "--out", str(out), "--video", str(drawn)])  # the earlier name
    assert run.exit_code == 0 and "4 frames" in run.output
    assert len(out.read_text().splitlines()) == 4 and len(list(frames(str(drawn)))) == 4


@pytest.mark.parametrize(("limit", "total"), [(None, 10), (3, 3)])
def test_progress_knows_the_length_of_a_video(predictor, video, tmp_path, limit, total):
    calls = []
    write_track(
        Tracker(predictor), str(video), tmp_path / "p.csv", limit=limit, progress=lambda *call: calls.append(call)
    )
    assert calls == [(i + 1, total) for i in range(total)]


def mjpeg(path, scene, frames=12):
    """Write a video whose frames are JPEG images, and return its bytes and where each frame begins."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, scene.shape[1::-1])
    for i in range(frames):
        writer.write(np.ascontiguousarray(shifted(scene, i, 0)[..., ::-1]))
    writer.release()
    data = path.read_bytes()
    starts = [m.start() for m in re.finditer(b"\xff\xd8\xff", data)]
    assert len(starts) == frames
    return data, starts


def test_damaged_frames_are_named_and_the_rest_is_tracked(scene, tmp_path):
    data, starts = mjpeg(tmp_path / "v.avi", scene)
    (tmp_path / "v.avi").write_bytes(data[: starts[4]] + bytes(2000) + data[starts[4] + 2000 :])
    out, drawn = tmp_path / "p.jsonl", tmp_path / "d.mp4"
    command = ["track", str(tmp_path / "v.avi"), "--out", str(out), "--video-out", str(drawn)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 1 and "1 damaged frame left out (counted from 0): 4" in run.output
    lines = [json.loads(t) for t in out.read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12)) and lines[4]["damaged"] and not lines[4]["faces"]
    assert lines[5]["seconds"] == pytest.approx(0.2) and len(list(frames(str(drawn)))) == 12


def test_a_video_that_ends_early(scene, tmp_path):
    data, starts = mjpeg(tmp_path / "v.avi", scene)
    (tmp_path / "v.avi").write_bytes(data[: starts[7] - 8])
    run = CliRunner().invoke(app, ["track", str(tmp_path / "v.avi"), "--out", str(tmp_path / "p.csv")])
    assert run.exit_code == 1 and "ends after 7 of 12 frames" in run.output
    run = CliRunner().invoke(app, ["track", str(tmp_path / "v.avi"), "--out", str(tmp_path / "q.csv"), "--limit", "5"])
    assert run.exit_code == 0


@pytest.mark.parametrize(("file", "frame", "seconds"), [("vfr.mp4", 30, 4.0), ("base.mp4", 30, 2.0)])
def test_times_are_the_containers(file, frame, seconds):
    path = SHARED / "cases" / "video" / file
    if not path.is_file():
        pytest.skip("skipped: no ../shared/cases")
    times = [t for t, _, _ in frames(str(path))]
    assert times[frame] == pytest.approx(seconds) and len(times) == 45 and times == sorted(times)


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
from recombinator.cli import main
main()
"""


def test_a_full_disk_leaves_no_unplayable_video(video, tmp_path):
    out, drawn = tmp_path / "p.csv", tmp_path / "d.mp4"
    command = [sys.executable, "-c", FULL, "track", video, "--out", out, "--video-out", drawn]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert run.returncode == 2 and "d.mp4: could not be written completely; is the disk full?" in run.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_leaves_no_hidden_files(scene, tmp_path, number):
    mjpeg(tmp_path / "v.avi", scene, frames=120)
    command = [sys.executable, "-m", "recombinator", "track", tmp_path / "v.avi", "--out", tmp_path / "p.jsonl"]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as process:
        while not [p for p in tmp_path.glob(".p.*.part.jsonl") if p.stat().st_size] and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
    assert process.returncode == 128 + number
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_terminated_prepare_leaves_no_hidden_files(tmp_path):
    command = [sys.executable, "-m", "recombinator", "prepare", "synthetic", "--out", tmp_path, "--faces", 20000]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob(".*.tmp.parquet")) and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM and not list(tmp_path.glob(".*.tmp.*"))


def test_names_that_opencv_cannot_open(video, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    try:
        shutil.copy(video, name)
    except OSError:
        pytest.skip("skipped: this file system has no such names")
    for source, more in ((name, []), (str(video), ["--video-out", name + ".mp4"])):
        with pytest.raises(InputError, match="the name is not UTF-8"):
            command = ["track", source, "--out", str(tmp_path / "p.csv"), *more]
            CliRunner().invoke(app, command, catch_exceptions=False)
    run = CliRunner().invoke(app, ["track", str(video), "--out", str(tmp_path / ("n" * 240 + ".csv")), "--limit", "2"])
    assert run.exit_code == 0, run.output
