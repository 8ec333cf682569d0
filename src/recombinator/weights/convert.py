"""Convert the parameter files of the authors' code release to weights.

Such a file is a sequence of Python 2 pickles, one float32 array each. It is read by an unpickler that knows the four
names an array needs and builds nothing else, so no code in the file can run.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.data.crops import RULES
from recombinator.data.readers.synthetic import draw_face, five_of
from recombinator.keypoints import FACE_5, FACE_68
from recombinator.models import RCN, create_model
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights


class _Array:
    """Replaces numpy's array while it is read: it takes the state and nothing else."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.name != "f4":
            raise pickle.UnpicklingError("not an array of float32")
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.value = np.frombuffer(raw, dtype.order + "f4").reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Replaces numpy's dtype while it is read: the type's name and its byte order."""

    order = "<"

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>" else "<"


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that refuses every name but the four that arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return lambda *_: _Array()
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("_codecs", "encode"):  # bytes in pickle protocols 0 to 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"refers to {module}.{name}, which no array needs")


def read_arrays(path: Path) -> list[np.ndarray]:
    """Read every array in a file, in order.

    Args:
        path: A file of consecutive pickles, one float32 array each.

    Raises:
        InputError: The file cannot be read, or holds anything but float32 arrays.
    """
    try:
        stream = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    arrays = []
    while stream.tell() < len(stream.getbuffer()):
        try:
            arrays.append(_ArraysOnly(stream, encoding="latin1").load().value)
        except Exception as error:
            raise InputError(
                f"{path}: object {len(arrays) + 1} is not a float32 array ({error}); expected the authors' "
                "shared_conv_params_*.pickle, and other pickles are not read, since they can run code"
            ) from None
    return arrays


def convert(path: Path, model: str = "rcn-68", keypoints: int | None = None, **options: Any) -> Weights:
    """Convert a parameter file of the authors' release to weights.

    The arrays' order is: trunk, then branches from the finest, weight and bias each, then one kernel per learned
    upsampling from the coarsest. Theano flips kernels, so they are flipped here in both directions.

    Args:
        path: The authors' file, such as shared_conv_params_*.pickle.
        model: Name of the RCN that the file belongs to.
        keypoints: K, by default the model's.
        **options: Further options of `create_model`.

    Raises:
        InputError: The model is not an RCN, or the number or shapes of the arrays do not fit it.
    """
    arrays = read_arrays(path)
    net = create_model(model, keypoints, **options)
    if not isinstance(net, RCN):  # the order of the arrays is that of an RCN's trunk and branches
        raise InputError(f"model {model}: expected an RCN, such as rcn-68; the authors released no other parameters")
    targets: list[torch.nn.Parameter] = []
    for conv in [*net.trunk, *(c for _, convs in net.branches() for c in convs)]:
        targets += list(conv.parameters())
    targets += [p for k in sorted(net.up, reverse=True) for p in net.up[k].parameters()]
    shapes = [tuple(t.shape) for t in targets]
    if [a.shape for a in arrays] != shapes:
        wrong = next((i for i, (a, s) in enumerate(zip(arrays, shapes, strict=False)) if a.shape != s), None)
        detail = "" if wrong is None else f"; array {wrong + 1}: expected {shapes[wrong]}, got {arrays[wrong].shape}"
        raise InputError(
            f"{path}: expected {len(shapes)} arrays for {model} with these options, got {len(arrays)}{detail}"
        )
    with torch.no_grad():
        for target, array in zip(targets, arrays, strict=True):
            value = torch.from_numpy(array.astype(np.float32))
            target.copy_(value.flip(-1, -2) if value.ndim == 4 else value)
    keypoint_set, rule = (FACE_5, "mtfl") if net.keypoints == 5 else (FACE_68, "300w")
    return Weights(net.eval(), keypoint_set, rule, _typical_points(net.keypoints, rule), {"converted": path.name})


def _typical_points(keypoints: int, rule: str) -> list[list[float]]:
    """Return the mean position of each keypoint in the network's crop, as shares of its side.

    A parameter file does not hold them, so they are taken from 50 synthetic faces.
    """
    positions = []
    for i in range(50):
        points = draw_face(np.random.default_rng([0, i]))[1]
        points = five_of(points) if keypoints == 5 else points
        box = RULES[rule].inner_box(points * 0.5 + 20, 160)
        positions.append((points * 0.5 + 20 - box[:2]) / box[2])
    return np.mean(positions, axis=0).round(4).tolist()
