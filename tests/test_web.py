"""web: the page's modules against Python, the files of a page, and the page in a real browser."""

import base64
import io
import json
import shutil
import subprocess
import tarfile
import urllib.error
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import web_vectors
from PIL import Image

import recombinator
from recombinator.data.images import SAMPLE_PHOTOGRAPH
from recombinator.deploy import web
from recombinator.predict.finder import face_finder
from recombinator.study.browser import Browser, chromium, served
from recombinator.study.web import as_text, measure
from recombinator.utils.errors import InputError

TOLERANCE = 0.1  # pixels between the page's points and Python's


@pytest.fixture
def stub(tmp_path):
    """A runtime folder with short files in place of the real ones."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in (*web.CPU_FILES, *web.GPU_FILES):
        (folder / name).write_text(name)
    return folder


def compare(actual, expected, where="vectors"):
    """Numbers within a millionth, packed pixels within one gray level: versions of OpenCV round differently."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            compare(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            compare(a, b, f"{where}[{i}]")
    elif where.endswith("pixels"):
        a, b = (np.frombuffer(base64.b64decode(v), np.uint8).astype(int) for v in (actual, expected))
        assert np.abs(a - b).max() <= 1, where
    else:
        assert actual == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected), where


def test_vectors_are_those_of_python():
    compare(web_vectors.vectors(), json.loads(web_vectors.FILE.read_text(encoding="utf-8")))


def test_modules_on_the_vectors():
    node = shutil.which("node")
    if node is None:
        pytest.skip("skipped: no node")
    done = subprocess.run(
        [node, "--test", str(Path(__file__).with_name("web_modules.test.mjs"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_page_of_a_linked_graph(tmp_path, stub):
    out = tmp_path / "site"
    web.write_page("rcn-6-fast-mtfl", out, runtime=stub)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {"index.html", "app.js", "worker.js", "style.css", "model.onnx", "finder.onnx", "example.jpg"} < names
    assert {f"runtime/{name}" for name in web.CPU_FILES} < names
    about = json.loads((out / "model.json").read_text())
    assert about["keypoints"]["names"][0] == "left_eye"
    assert about["crop"]["box"] == "eye_mouth_box" and about["runtime"] == "./runtime/"
    crop = np.random.default_rng(0).integers(0, 256, (1, 1, 80, 80), dtype=np.uint8)
    alone = onnxruntime.InferenceSession(str(out / "model.onnx"))  # its tensors are inside
    expected = recombinator.load("rcn-6-fast-mtfl").engine.run(crop)
    np.testing.assert_allclose(alone.run(["points"], {"image": crop})[0], expected.points, atol=1e-4)


def test_page_without_files_that_it_has_no_longer(tmp_path, stub, trained):
    out = tmp_path / "site"
    web.write_page("rcn-6-fast-mtfl-int8", out, runtime=stub)
    web.write_page(trained.model, out, runtime=stub)
    about = json.loads((out / "model.json").read_text())
    assert not (out / "finder.onnx").exists() and about["finder"] is None
    assert about["name"] == "run" and about["crop"]["whole"]


def test_unusable_runtimes_and_examples(tmp_path, stub):
    (stub / web.CPU_FILES[0]).unlink()
    with pytest.raises(InputError, match="expected the dist folder of onnxruntime-web"):
        web.write_page("rcn-6-fast-mtfl-int8", tmp_path / "site", runtime=stub)
    with pytest.raises(InputError, match="expected an image file"):
        web.write_page("rcn-6-fast-mtfl-int8", tmp_path / "site", example=tmp_path / "none.jpg")
    assert not (tmp_path / "site").exists()


def test_download_is_checked_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(web.urllib.request, "urlopen", no_network)
    with pytest.raises(InputError, match=r"cannot be downloaded \(no network\).*--runtime"):
        web.runtime_folder()
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        for name in (*web.CPU_FILES, *web.GPU_FILES):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(web.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(package.getvalue()))
    with pytest.raises(InputError, match="SHA-512 differs"):
        web.runtime_folder()
    monkeypatch.setattr(web, "RUNTIME_SHA512", web.checksum(package.getvalue()))
    folder = web.runtime_folder()
    assert (folder / web.CPU_FILES[2]).read_text() == web.CPU_FILES[2]
    monkeypatch.setattr(web.urllib.request, "urlopen", no_network)
    assert web.runtime_folder() == folder


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime():
    try:
        chromium()
        return web.runtime_folder()
    except InputError as error:
        pytest.skip(f"skipped: {error}")


@pytest.fixture
def page(tmp_path, runtime):
    """A function that opens the page of a model and returns the browser."""
    contexts = ExitStack()

    def opened(model, *options):
        web.write_page(model, tmp_path / "site", runtime=runtime)
        address = contexts.enter_context(served(tmp_path / "site"))
        browser = contexts.enter_context(Browser(*options))
        browser.open(address)
        browser.wait("document.getElementById('status').textContent.startsWith('Ready')")
        browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        return browser

    with contexts:
        yield opened


def text_of(browser, name):
    return browser.evaluate(f"document.getElementById('{name}').textContent")


def results(browser, folder, *files):
    """Choose files, wait for their results, and download them: the JSON's photographs."""
    (folder / "points.json").unlink(missing_ok=True)
    browser.choose("#files", *files)
    browser.wait("!document.getElementById('stop').disabled")
    browser.wait("document.getElementById('stop').disabled")
    browser.evaluate("document.getElementById('json').click()")
    for _ in range(100):
        if (folder / "points.json").is_file():
            break
        browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    return json.loads((folder / "points.json").read_text())["photographs"]


def agree(photographs, predictor, *files):
    """Compare the page's points with Python's on the same images, decoded at full size."""
    assert [one["file"] for one in photographs] == [file.name for file in files]
    for one, file in zip(photographs, files, strict=True):
        expected = predictor.predict(file)
        assert len(one["faces"]) == len(expected) > 0
        for face, other in zip(one["faces"], expected, strict=True):
            points = np.array([(k["x"], k["y"]) for k in face["keypoints"]])
            moved = np.linalg.norm(points - other.points, axis=1)
            changed = np.abs([k["confidence"] for k in face["keypoints"]] - other.confidence)
            # 68 points: a score map can have two modes, between which one gray level decides
            share = 0.98 if len(points) > 5 else 1.0
            assert np.quantile(moved, share) < TOLERANCE and np.quantile(changed, share) < 0.02


def photographs(folder):
    """The sample photograph as it is, with EXIF rotation, turned, twice in one picture, and cut through the face."""
    picture = Image.open(SAMPLE_PHOTOGRAPH).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [folder / name for name in ("portrait.png", "exif.jpg", "turned.png", "two.png", "cut.png")]
    picture.save(files[0])
    picture.rotate(90, expand=True).save(files[1], quality=95, exif=exif)
    picture.rotate(25, expand=True, fillcolor=(90, 90, 90)).save(files[2])
    two = Image.new("RGB", (2 * picture.width, picture.height), (60, 60, 60))
    two.paste(picture)
    two.paste(picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)), (picture.width + 100, 100))
    two.save(files[3])
    picture.crop((190, 0, picture.width, picture.height)).save(files[4])
    return files


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rcn-6-fast-mtfl", "rcn-68-300w"])
def test_points_of_faces_equal_pythons(tmp_path, page, model):
    browser, files = page(model), photographs(tmp_path)
    # the page has one localizer: 68 points take two passes in place of five points and one pass
    agree(results(browser, tmp_path, *files), recombinator.load(model, face_finder()), *files)


@pytest.mark.slow
def test_points_of_an_own_model_equal_pythons(tmp_path, page, trained):
    browser, files = page(trained.model), trained.images[:4]
    agree(results(browser, tmp_path, *files), recombinator.load(trained.model), *files)


@pytest.mark.slow
def test_page_with_bad_files_keys_and_a_webcam(tmp_path, page):
    browser = page("rcn-6-fast-mtfl-int8", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    bad = tmp_path / "notes.jpg"
    bad.write_text("no image")
    found = results(browser, tmp_path, SAMPLE_PHOTOGRAPH, bad)
    assert text_of(browser, "error") == "notes.jpg: not an image or a video that this browser can read."
    assert [len(one["faces"]) for one in found] == [1]
    assert text_of(browser, "status") == "grace_hopper.jpg: 1 object."
    assert browser.evaluate("document.getElementById('canvas').ariaLabel").startswith(
        "grace_hopper.jpg: 1 object, mean"
    )
    assert browser.evaluate("document.querySelectorAll('#rows tr').length") == 5
    # every control has a name for screen readers
    unnamed = (
        "[...document.querySelectorAll('button, select')].filter((e) => !e.textContent.trim() && !e.ariaLabel).length"
    )
    assert browser.evaluate(unnamed) == 0
    browser.appear(360, 800)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    browser.evaluate("document.getElementById('camera').click()")
    browser.wait("document.getElementById('rate').textContent.includes('frames per second')")
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="Escape", code="Escape")
    browser.wait("document.getElementById('status').textContent.startsWith('Stopped')")


@pytest.mark.slow
def test_a_video_gives_points_by_frame(tmp_path, page):
    frame = cv2.imread(str(SAMPLE_PHOTOGRAPH))[:480, :480]
    video = cv2.VideoWriter(str(tmp_path / "clip.webm"), cv2.VideoWriter.fourcc(*"VP80"), 10, (480, 480))
    if not video.isOpened():
        pytest.skip("skipped: OpenCV cannot write WebM here")
    for _ in range(15):
        video.write(frame)
    video.release()
    browser = page("rcn-6-fast-mtfl-int8")
    found = results(browser, tmp_path, tmp_path / "clip.webm")
    assert [one["frame"] for one in found] == list(range(len(found))) and found[-1]["seconds"] > 0
    assert all([face["face"] for face in one["faces"]] == [1] for one in found)
    browser.evaluate("document.getElementById('csv').click()")
    browser.evaluate("new Promise((done) => setTimeout(done, 500))")
    rows = (tmp_path / "points.csv").read_text().splitlines()
    assert rows[0] == "file,frame,seconds,face,keypoint,x,y,confidence,inside" and len(rows) == 1 + 5 * len(found)


@pytest.mark.slow
def test_the_measurement_of_the_page(runtime):
    report = measure("rcn-6-fast-mtfl-int8", 1, runtime)
    assert report["objects"] == 1 and report["frames_per_second"]["median"] > 0
    assert "frames per second" in as_text(report)
