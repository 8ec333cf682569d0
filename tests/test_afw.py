"""AFW's anno.mat, written as MATLAB 7.3 writes it."""

import numpy as np
import pytest

from recombinator.data.images import encode_image
from recombinator.data.readers.afw import prepare_afw, read_annotations
from recombinator.data.readers.synthetic import draw_face, five_of
from recombinator.data.table import load_table
from recombinator.study.hdf5_samples import write_anno
from recombinator.utils.errors import InputError


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
    write_anno(source / "anno.mat", photographs, transposed)
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
    write_anno(source / "anno.mat", [("0.jpg", [photographs[0][1][0][:5]])])
    with pytest.raises(InputError, match="face 1 of 0.jpg"):
        read_annotations(source / "anno.mat")
    write_anno(source / "anno.mat", [("../outside.jpg", photographs[0][1]), photographs[1]])
    assert prepare_afw(source, tmp_path / "out")["test"] == 1 and "outside.jpg: outside" in caplog.messages[0]
    caplog.clear()
    write_anno(source / "anno.mat", [("nowhere.jpg", photographs[0][1]), photographs[1]])
    assert prepare_afw(source, tmp_path / "out")["test"] == 1 and "nowhere.jpg" in caplog.messages[0]
