"""Undamaged HDF5 files: AFW's anno.mat as MATLAB 7.3 writes it, and files of SLEAP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.readers import sleap
from recombinator.keypoints import FACE_5


def write_anno(path: Path, photographs: Sequence[tuple[str, Sequence[np.ndarray]]], transposed: bool = False) -> None:
    """Write an anno.mat. MATLAB stores arrays by columns, text as 16-bit codes, and cells as references.

    Args:
        path: The file.
        photographs: For each its name, and (6, 2) points for each face; the first pixel's center is 1.
        transposed: Write the cell array with its rows and columns exchanged.
    """
    import h5py

    with h5py.File(path, "w") as file:
        stored = file.create_group("#refs#")

        def put(value: np.ndarray) -> Any:
            return stored.create_dataset(str(len(stored) + 1), data=value).ref

        def cell(values: Sequence[np.ndarray]) -> np.ndarray:
            return np.array([[put(v) for v in values]], dtype=h5py.ref_dtype)

        columns: list[list[Any]] = [[], [], [], []]
        for name, faces in photographs:
            columns[0].append(put(np.array([[ord(c)] for c in name], np.uint16)))
            columns[1].append(put(cell([np.zeros((2, 2))] * len(faces))))
            columns[2].append(put(cell([np.zeros((3, 1))] * len(faces))))
            columns[3].append(put(cell([np.asarray(points).T for points in faces])))
        anno = np.array(columns, dtype=h5py.ref_dtype)
        file.create_dataset("anno", data=anno.T if transposed else anno)


def write_sleap(folder: Path, points: Sequence[np.ndarray], video: Path) -> None:
    """Write images.slp, whose frames are the images 0.png, 1.png and so on, and video.slp, with those of a video.

    The last frame has a predicted instance too.

    Args:
        folder: The folder, with the images.
        points: (5, 2) points of each frame.
        video: A video with at least as many frames.
    """
    import sleap_io as sio

    skeleton = sio.Skeleton(list(FACE_5.names), edges=[(FACE_5.names[0], FACE_5.names[1])])
    for a, b in FACE_5.mirror:
        skeleton.add_symmetry(FACE_5.names[a], FACE_5.names[b])
    files = [str(folder / f"{i}.png") for i in range(len(points))]
    for name, source in (("images", sio.Video.from_filename(files)), ("video", sio.Video.from_filename(str(video)))):
        frames = []
        for i, shown in enumerate(points):
            instances = [sio.Instance.from_numpy(shown + sleap.ORIGIN, skeleton)]
            if i == len(points) - 1:
                scores = np.full(len(shown), 0.9)
                instances.append(sio.PredictedInstance.from_numpy(shown, skeleton, point_scores=scores, score=0.9))
            frames.append(sio.LabeledFrame(video=source, frame_idx=i, instances=instances))
        sio.Labels(frames).save(str(folder / f"{name}.slp"))
