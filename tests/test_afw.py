"""AFW's anno.mat, written here as MATLAB 7.3 writes it."""

import h5py
import numpy as np
import pytest

from recombinator.data.images import encode_image
from recombinator.data.readers.afw import prepare_afw, read_annotations
from recombinator.data.readers.synthetic import draw_face, five_of
from recombinator.data.table import load_table
from recombinator.utils.errors import InputError


def write_matlab(path, photographs, transposed=False):
    """photographs: [(name, [(6, 2) points, ...])]. Arrays are stored by columns, text as 16-bit codes, cells as
    references."""
    with h5py.File(path, "w") as file:
        refs = file.create_group("#refs#")
        count = 0

        def put(value):
            nonlocal count
            count += 1
            return refs.create_dataset(str(count), data=value).ref

        def cell(values):
            return np.array([[put(v) for v in values]], dtype=h5py.ref_dtype)

        columns = [[], [], [], []]
        for name, faces in photographs:
            columns[0].append(put(np.array([[ord(c)] for c in name], np.uint16)))
            columns[1].append(put(cell([np.zeros((2, 2))] * len(faces))))
            columns[2].append(put(cell([np.zeros((3, 1))] * len(faces))))
            columns[3].append(put(cell([np.asarray(f).T for f in faces])))
        anno = np.array(columns, dtype=h5py.ref_dtype)
        file.create_dataset("anno", data=anno.T if transposed else anno)


@pytest.fixture
def afw(tmp_path):
    rng = np.random.default_rng(0)
    source, photographs, truth = tmp_path / "AFW", [], []
    source.mkdir()
    for i in range(5):
        image, points = draw_face(rng)
        (source / f"{i}.jpg").write_bytes(encode_image(image, 95))
        five = five_of(points)
        six = np.insert(five, 4, five[3:].mean(axis=0), axis=0) + 0.5
        broken = six.copy()
        broken[2] = np.nan
        photographs.append((f"{i}.jpg", [six, broken] if i == 1 else [six, six + 2] if i == 2 else [six]))
        truth += [five] if i != 2 else [five, five + 2]
    return source, photographs, np.array(truth)


@pytest.mark.parametrize("transposed", [False, True])
def test_every_whole_face_becomes_a_row_with_five_points(afw, tmp_path, transposed, caplog):
    source, photographs, truth = afw
    write_matlab(source / "anno.mat", photographs, transposed)
    counts = prepare_afw(source, tmp_path / "out")
    told = caplog.messages
    assert counts["test"] == 6 and counts["dropped"] == 1 and "face 2 of 1.jpg: a point is not a number" in told[0]
    table = load_table(tmp_path / "out" / "test.parquet")
    assert table.info.dataset == "afw" and table.files == ["0.jpg", "1.jpg", "2.jpg", "2.jpg", "3.jpg", "4.jpg"]
    scale, corner = table.to_file[:, 0, :1, None], table.to_file[:, None, :, 2]
    np.testing.assert_allclose(table.points * scale + corner, truth, atol=1e-3)
    with pytest.raises(InputError, match="not a number"):
        prepare_afw(source, tmp_path / "strict", strict=True)


def test_what_is_not_afw(afw, tmp_path, caplog):
    source, photographs, _ = afw
    with pytest.raises(InputError, match=r"expected anno.mat"):
        prepare_afw(source, tmp_path / "out")
    (source / "anno.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(InputError, match=r"not AFW's anno.mat"):
        read_annotations(source / "anno.mat")
    write_matlab(source / "anno.mat", [("0.jpg", [photographs[0][1][0][:5]])])
    with pytest.raises(InputError, match="face 1 of 0.jpg"):
        read_annotations(source / "anno.mat")
    write_matlab(source / "anno.mat", [("nowhere.jpg", photographs[0][1]), photographs[1]])
    assert prepare_afw(source, tmp_path / "out")["test"] == 1 and "nowhere.jpg" in caplog.messages[0]
