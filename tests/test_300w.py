"""300-W's layout, with drawn faces."""

import numpy as np
import pytest
from conftest import ROOT

from recombinator.data.images import encode_image
from recombinator.data.readers.pts import read_pts
from recombinator.data.readers.synthetic import draw_face
from recombinator.data.readers.w300 import prepare_300w, split_files
from recombinator.data.table import load_table
from recombinator.utils.errors import InputError


def write_face(path, rng, crop=None, header=True):
    image, points = draw_face(rng)
    if crop:
        x, y, w, h = crop
        image, points = image[y : y + h, x : x + w], points - [x, y]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".jpg" if "afw" not in path.parts else ".png").write_bytes(encode_image(image, 95))
    lines = [f"{x:.3f} {y:.3f}" for x, y in points + 0.5]
    head, tail = (["version: 1", "n_points: 68", "{"], ["}"]) if header else ([], [])
    path.with_suffix(".pts").write_text("\n".join([*head, *lines, *tail, ""]))
    return points


@pytest.fixture
def layout(tmp_path):
    rng = np.random.default_rng(0)
    source = tmp_path / "300W"
    for i in range(12):
        for face in (1, 2):
            write_face(source / "helen" / "trainset" / f"{i}_{face}.x", rng, header=face == 1)
    for i in range(6):
        write_face(source / "afw" / f"{i}_1.x", rng)
    for i in range(3):
        write_face(source / "lfpw" / "testset" / f"image_{i}.x", rng)
    write_face(source / "ibug" / "image_a.x", rng)
    return source


def test_splits_and_subsets(layout, tmp_path):
    counts = prepare_300w(layout, tmp_path / "out")
    assert counts["test"] == 4 and counts["dropped"] == 0 and counts["train"] + counts["valid"] == 30
    assert 3 <= counts["valid"] <= 4
    assert sorted(load_table(tmp_path / "out/test.parquet").subsets) == ["challenging"] + ["common"] * 3
    train, valid = (load_table(tmp_path / f"out/{s}.parquet").files for s in ("train", "valid"))
    photograph = lambda f: f.rsplit("_", 1)[0]  # noqa: E731
    assert not {photograph(f) for f in train} & {photograph(f) for f in valid}
    again = split_files(layout, sorted(layout.rglob("*.pts"))[::-1])["valid"]
    assert {f.stem for f in again} == {f.rsplit("/", 1)[1].split(".")[0] for f in valid}


def test_running_numbers_are_not_one_photograph(tmp_path):
    files = [tmp_path / "lfpw" / f"image_{i:04d}.pts" for i in range(60)]
    files += [tmp_path / "helen" / f"7{i:03d}_1.pts" for i in range(60)]
    valid = split_files(tmp_path, files)["valid"]
    assert len(valid) == 12 and 2 <= sum(f.parent.name == "lfpw" for f in valid) <= 10


def test_points_are_read_as_300w_has_them(tmp_path):
    points = write_face(tmp_path / "a.x", np.random.default_rng(1))
    np.testing.assert_allclose(read_pts(tmp_path / "a.pts"), points - 0.5, atol=1e-3)  # half a pixel beyond 1-based


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("n_points: 68\n{\n", "n_points: 68\n{\n1 2 3\n"), r"a\.pts:4: expected two numbers"),
        (lambda t: "\n".join(t.splitlines()[:-3]), "expected 68 points, got 66"),
        (lambda t: t.replace(t.splitlines()[5], "nan 4"), "not a finite number"),
    ],
)
def test_bad_points_are_named(layout, tmp_path, change, words, caplog):
    file = layout / "helen" / "trainset" / "a.pts"
    write_face(file.with_suffix(".x"), np.random.default_rng(2))
    file.write_text(change(file.read_text()))
    assert prepare_300w(layout, tmp_path / "out")["dropped"] == 1
    with pytest.raises(InputError, match=words):
        raise InputError(caplog.messages[0])


def test_missing_image_and_wrong_folder(layout, tmp_path):
    (layout / "ibug" / "image_a.jpg").unlink()
    with pytest.raises(InputError, match=r"image_a\.pts: no image of that name"):
        prepare_300w(layout, tmp_path / "out", strict=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="each with a .pts file of the same name"):
        prepare_300w(tmp_path / "empty", tmp_path / "out")


def test_padding_is_black_and_border_points_are_known(tmp_path):
    """A face cut through by its photograph's left edge: the crop is padded there, the cut points are flagged."""
    source, rng = tmp_path / "300W", np.random.default_rng(5)
    whole = draw_face(np.random.default_rng(5))[1]
    left = int(whole[:, 0].min()) + 6  # the jaw's outermost points lie within 10 pixels of the edge, or outside
    points = write_face(source / "ibug" / "cut.x", rng, crop=(left, 0, 240 - left, 240))
    write_face(source / "ibug" / "whole.x", rng)
    prepare_300w(source, tmp_path / "out", quality=0)
    table = load_table(tmp_path / "out/test.parquet")
    cut = table.files.index("ibug/cut.jpg")
    edge = table.limits[cut, 0]
    assert edge > 9 and not table.images[cut, 0, :, : int(edge) - 6].any()  # the resampling filter rings a little
    assert table.images[cut, 0, :, int(edge) + 2 :].mean() > 20
    assert table.limits[cut, 0] > table.boxes[cut, 0]
    flagged = table.at_border[cut]
    assert flagged[points[:, 0] < 9.5, 0].all() and not flagged[points[:, 0] > 10.5].any() and not flagged[:, 1:].any()
    assert not table.at_border[1 - cut].any()
    back = table.points[cut] @ table.to_file[cut][:, :2].T + table.to_file[cut][:, 2]
    # half a pixel beyond 1-based: where mirrored images say that 300-W's points are meant
    np.testing.assert_allclose(back, points - 0.5, atol=1e-2)


def test_real_300w():
    source = ROOT.parent / "shared" / "data" / "300W"
    if not source.is_dir():
        pytest.skip("skipped: no ../shared/data")
    files = split_files(source, sorted(source.rglob("*.pts")))
    assert len(files["test"]) == 554 and len(files["train"]) + len(files["valid"]) == 1675
    for file in files["test"][::50]:
        assert read_pts(file).shape == (68, 2)
