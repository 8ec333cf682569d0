"""Write a static page that runs a model in the browser, with onnxruntime-web and no server."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import tempfile
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

from recombinator.data.crops import GRID, RULES
from recombinator.data.images import ENDINGS, SAMPLE_PHOTOGRAPH
from recombinator.keypoints import RADII, SURE
from recombinator.predict import finder as find
from recombinator.predict.crop import REDUCING_GAP
from recombinator.predict.engine import Description, OnnxEngine, load_engine
from recombinator.predict.five_points import FaceFramer
from recombinator.predict.predictor import FACE_RULES, PASSES, SAME_FACE, TURNED, Predictor, eased
from recombinator.predict.session import Session
from recombinator.utils.errors import InputError, import_optional
from recombinator.utils.files import check_output_folder, copy_file, write_atomically, write_json
from recombinator.weights.shipped import shipped_graphs

PAGE = Path(str(resources.files("recombinator") / "assets" / "web"))
RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
REGISTRY = f"https://registry.npmjs.org/{RUNTIME}/-/{RUNTIME}-{RUNTIME_VERSION}.tgz"
CPU_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
GPU_FILES = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
DETECT_EVERY = 15  # frames of a video, as in predict.track


def write_page(
    model: str | os.PathLike[str], out: Path, *, runtime: Path | None = None, example: Path | None = None,
    runtime_url: str | None = None,
) -> None:  # fmt: skip
    """Write a page that runs a model in the browser.

    The folder can be served by any web server, for example `python -m http.server`. It holds the page's modules,
    `model.onnx`, `finder.onnx` where the model has a finder, `model.json` with what the modules need to know, and the
    files of onnxruntime-web in `runtime/`. Files of an earlier page are replaced.

    Args:
        model: Shipped name, .onnx file, weights file or run folder. Weights are exported first, which needs torch and
            onnx.
        out: Folder to write.
        runtime: Folder with the files of onnxruntime-web: its `dist` folder. By default `runtime_folder()`.
        example: Image that the page offers as an example; by default a portrait for faces, and none for other models.
        runtime_url: Address of the runtime, relative to the page, where it is stored already; nothing is copied then.

    Raises:
        InputError: The model, the folder or the runtime cannot be used.
    """
    check_output_folder(out)
    if example is not None and (not example.is_file() or example.suffix.lower() not in ENDINGS):
        raise InputError(f"{example}: expected an image file as the example")
    source = runtime
    if runtime_url is None:
        source = check_runtime(runtime) if runtime else runtime_folder()
    content, about, finder = read_model(model)
    name = Path(os.fspath(model)).resolve()
    description = describe(about, name.parent.name if name.stem in ("model", "best") else name.stem, finder)
    description["runtime"] = runtime_url or "./runtime/"
    example = example or (SAMPLE_PHOTOGRAPH if about.crop_rule in FACE_RULES else None)
    description["example"] = example and f"example{example.suffix.lower()}"
    for file in sorted(PAGE.iterdir()):
        copy_file(file, out / file.name)
    write_atomically(out / "model.onnx", lambda p: p.write_bytes(content))
    (out / "finder.onnx").unlink(missing_ok=True)
    if finder:
        write_atomically(out / "finder.onnx", lambda p: p.write_bytes(_in_one_file(finder.session)))
    if example:
        copy_file(example, out / description["example"])
    if source:
        for file_name in (*CPU_FILES, *GPU_FILES):
            if (source / file_name).is_file():
                copy_file(source / file_name, out / "runtime" / file_name)
        description["gpu"] = all((source / file_name).is_file() for file_name in GPU_FILES)
    else:
        description["gpu"] = True
    write_json(out / "model.json", description)


def read_model(model: str | os.PathLike[str]) -> tuple[bytes, Description, find.OnnxFinder | None]:
    """Return a model as one graph without further files, its description, and its finder.

    Args:
        model: Shipped name, .onnx file, weights file or run folder.

    Raises:
        InputError: There is no such model, or it cannot be exported.
    """
    text = os.fspath(model)
    if text.endswith(".onnx") or (text in shipped_graphs() and not Path(text).exists()):
        return _read_graph(shipped_graphs().get(text, Path(text)))
    import_optional("torch", "a page of weights")
    from recombinator.deploy.onnx import export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, path)
        return _read_graph(path)


def _read_graph(path: Path) -> tuple[bytes, Description, find.OnnxFinder | None]:
    engine = load_engine(path, "onnx", threads=1)
    assert isinstance(engine, OnnxEngine)
    detector = Predictor(engine).detector
    if isinstance(detector, FaceFramer):  # the page has one localizer, which takes two passes
        detector = detector.five_points.detector
    finder = detector.engine if isinstance(detector, find.FinderDetector) else None
    return _in_one_file(engine.session), engine.about, finder  # type: ignore[return-value]


def _in_one_file(session: Session) -> bytes:
    """Return a graph with its tensors, wherever they are stored."""
    if b".safetensors" not in session.content:
        return session.content
    onnx = import_optional("onnx", f"{session.path.name}: a page of this graph, whose tensors are in other files,")
    content: bytes = onnx.load(session.path).SerializeToString()
    return content


def describe(about: Description, name: str, finder: find.FinderEngine | None) -> dict[str, Any]:
    """Return the content of model.json, which describes a model to the page's modules.

    Args:
        about: Description of the localizer.
        name: What the page calls the model.
        finder: Engine of the finder, if there is one.
    """
    rule = RULES[about.crop_rule]
    least = float(about.calibration.get("least", rule.least))
    described: dict[str, Any] = {
        "name": name,
        "keypoints": {"names": list(about.keypoints.names), "lines": [list(line) for line in about.keypoints.lines]},
        "crop": {
            "box": rule.box.__name__, "stage1": rule.stage1, "stage2": rule.stage2, "origin": rule.origin,
            "whole": rule.whole, "detailed": rule.detailed, "grid": GRID, "fromDetector": list(rule.from_detector),
            "reducingGap": REDUCING_GAP,
        },
        "template": about.template, "size": about.size, "channels": about.channels, "sure": SURE,
        "sureReach": RADII[SURE] + 0.5,
        "leastConfidence": least, "leastBefore": eased(least), "sameObject": SAME_FACE,
        "passes": PASSES, "turned": TURNED, "detectEvery": DETECT_EVERY, "finder": None,
    }  # fmt: skip
    if finder:
        detector = find.FinderDetector(finder)
        described["finder"] = {
            "channels": finder.about.channels, "threshold": detector.threshold,
            "relation": list(detector.relation.get(rule.name, rule.from_detector)), "sides": list(find.SIDES),
            "coarser": list(find.COARSER), "finest": list(find.FINEST), "doubtful": find.DOUBTFUL,
            "mostDoubtful": find.MOST_DOUBTFUL, "leastStep": find.LEAST_STEP, "smallest": find.SMALLEST,
            "largest": find.LARGEST, "same": find.SAME, "most": find.MOST, "gray": find.GRAY, "stride": find.STRIDE,
            "coarsest": find.COARSEST, "reference": find.REFERENCE,
        }  # fmt: skip
    return described


def check_runtime(folder: Path) -> Path:
    """Return the folder with the files of onnxruntime-web in a folder: itself, or its `dist`.

    Raises:
        InputError: They are not there.
    """
    for one in (folder, folder / "dist"):
        if all((one / name).is_file() for name in CPU_FILES):
            return one
    raise InputError(f"{folder}: expected the dist folder of {RUNTIME} {RUNTIME_VERSION}, with {', '.join(CPU_FILES)}")


def runtime_folder() -> Path:
    """Return the cache folder with the files of onnxruntime-web, downloaded from the npm registry at the first call.

    Raises:
        InputError: They cannot be downloaded, or the download is not the expected one.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recombinator"
    folder = cache / f"{RUNTIME}-{RUNTIME_VERSION}"
    if all((folder / name).is_file() for name in (*CPU_FILES, *GPU_FILES)):
        return folder
    try:
        with urllib.request.urlopen(REGISTRY, timeout=60) as answer:
            content = answer.read()
    except OSError as error:
        raise InputError(
            f"{REGISTRY}: cannot be downloaded ({getattr(error, 'reason', error)}); with a network, or with `npm pack "
            f"{RUNTIME}@{RUNTIME_VERSION}` elsewhere, unpack it and give its dist folder with --runtime"
        ) from None
    if checksum(content) != RUNTIME_SHA512:
        raise InputError(f"{REGISTRY}: the download is not the expected file (its SHA-512 differs); try again")
    unpack_runtime(content, folder)
    return folder


def checksum(content: bytes) -> str:
    """Return the SHA-512 of a download, as npm writes it."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def unpack_runtime(content: bytes, folder: Path) -> None:
    """Write the runtime's files of an npm package to a folder."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name in (*CPU_FILES, *GPU_FILES):
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            data = member.read()
            write_atomically(folder / name, lambda p, data=data: p.write_bytes(data))  # type: ignore[misc]
