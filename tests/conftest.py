from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recombinator.data.images import encode_image
from recombinator.data.readers.synthetic import draw_face, five_of, prepare_synthetic
from recombinator.fit.run import fit

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_configure():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared_mtfl():
    folder = SHARED / "data" / "MTFL"
    if not folder.is_dir():
        pytest.skip("skipped: no ../shared/data")
    return folder


@pytest.fixture(scope="session")
def faces5(tmp_path_factory):
    """Tables of 60 drawn faces with 5 points."""
    out = tmp_path_factory.mktemp("faces5")
    prepare_synthetic(out, faces=60, keypoints=5, seed=1)
    return out


@pytest.fixture(scope="session")
def faces68(tmp_path_factory):
    out = tmp_path_factory.mktemp("faces68")
    prepare_synthetic(out, faces=30, keypoints=68, seed=1)
    return out


def mtfl_line(file, points, attributes=(1, 2, 2, 3)):
    return " ".join([file, *(f"{v:.6f}" for v in points.T.reshape(-1)), *map(str, attributes)])


@pytest.fixture
def mtfl_layout(tmp_path):
    """A folder in MTFL's layout, with drawn faces: 20 training lines (backslashes, CRLF, blank lines), 4 test lines."""
    source = tmp_path / "layout"
    rng = np.random.default_rng(3)
    lines = {"training.txt": [], "testing.txt": []}
    for listing, folder, count, slash in (("training.txt", "web", 20, "\\"), ("testing.txt", "AFLW", 4, "/")):
        (source / folder).mkdir(parents=True)
        for i in range(count):
            image, points = draw_face(rng)
            (source / folder / f"{i}.jpg").write_bytes(encode_image(image, 95))
            lines[listing].append(" " + mtfl_line(f"{folder}{slash}{i}.jpg", five_of(points) + 0.5))
    (source / "training.txt").write_bytes(("\r\n".join(lines["training.txt"]) + "\r\n\r\n \r\n").encode())
    (source / "testing.txt").write_text("\n".join(lines["testing.txt"]), encoding="utf-8-sig")  # as Notepad saves
    return source


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A model of three own points, trained on drawn images for a moment: `model` (run folder) and `images`."""
    folder = tmp_path_factory.mktemp("own")
    rng, rows, images = np.random.default_rng(0), ["file,keypoint,x,y"], []
    for i in range(16):
        image = np.full((90, 120, 3), 200, np.uint8)
        for k, (x, y) in enumerate(rng.uniform((30, 25), (90, 65)) + [(0, -14), (-12, 8), (12, 8)]):
            image[int(y) - 4 : int(y) + 4, int(x) - 4 : int(x) + 4] = 60 * k
            rows.append(f"{i}.png,point_{k},{x:.2f},{y:.2f}")
        images.append(folder / f"{i}.png")
        images[-1].write_bytes(encode_image(image, 0))
    (folder / "points.csv").write_text("\n".join(rows))
    settings = {"size": 48, "factor": 1, "coarse_epochs": 4, "batch": 32}
    fit(folder / "points.csv", folder / "run", minutes=1, settings=settings)
    return SimpleNamespace(model=folder / "run", images=images)
