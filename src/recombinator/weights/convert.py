"""The authors' released parameter files (SPEC 9) -> weights of ours.

Such a file is a row of Python 2 pickles, one float32 array each. It is read by a machine that knows the four
names an array needs and builds nothing else: no code in the file can run.
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
    """Stands in for numpy's array while it is read: takes the state, and nothing but the state."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.name != "f4":
            raise pickle.UnpicklingError("not an array of float32")
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.value = np.frombuffer(raw, dtype.order + "f4").reshape(shape, order="F" if fortran else "C")


class _Dtype:
    order = "<"

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>" else "<"


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return lambda *_: _Array()
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("_codecs", "encode"):  # how protocol 0 to 2 spell bytes
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"names {module}.{name}, which no array needs")


def read_arrays(path: Path) -> list[np.ndarray]:
    """Every array in the file, in order. Raises InputError for a file that holds anything but float32 arrays."""
    try:
        stream = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    arrays = []
    while stream.tell() < len(stream.getbuffer()):
        try:
            found = _ArraysOnly(stream, encoding="latin1").load()
            arrays.append(found.value)
        except Exception as error:
            raise InputError(f"{path}: object {len(arrays) + 1} is not a float32 array ({error})") from None
    return arrays


def convert(path: Path, model: str = "rcn-68", keypoints: int | None = None, **options: Any) -> Weights:
    """The arrays of `path` as `model`: trunk, then branches from the finest, weight and bias each, then one kernel a
    learned upsampling from the coarsest. Theano flips kernels, so ours are turned in both directions.

    Raises InputError where number or shapes of the arrays do not fit the model.
    """
    arrays = read_arrays(path)
    net = create_model(model, keypoints, **options)
    if not isinstance(net, RCN):
        raise InputError(f"model {model}: only RCN's parameter files can be converted")
    targets: list[torch.nn.Parameter] = []
    for conv in [*net.trunk, *(c for _, convs in net.branches() for c in convs)]:
        targets += list(conv.parameters())
    targets += [p for k in sorted(net.up, reverse=True) for p in net.up[k].parameters()]
    shapes = [tuple(t.shape) for t in targets]
    if [a.shape for a in arrays] != shapes:
        wrong = next((i for i, (a, s) in enumerate(zip(arrays, shapes, strict=False)) if a.shape != s), None)
        where = "" if wrong is None else f"; array {wrong + 1} is {arrays[wrong].shape}, the model's {shapes[wrong]}"
        raise InputError(f"{path}: holds {len(arrays)} arrays, {model} with these options wants {len(shapes)}{where}")
    with torch.no_grad():
        for target, array in zip(targets, arrays, strict=True):
            value = torch.from_numpy(array.astype(np.float32))
            target.copy_(value.flip(-1, -2) if value.ndim == 4 else value)
    points = FACE_5 if net.keypoints == 5 else FACE_68
    rule = "mtfl" if net.keypoints == 5 else "300w"
    return Weights(net.eval(), points, rule, _typical_points(net.keypoints, rule), {"converted": path.name})


def _typical_points(keypoints: int, rule: str) -> list[list[float]]:
    """Mean place of each point in the network's crop, of drawn faces: a file of parameters does not hold it."""
    places = []
    for i in range(50):
        points = draw_face(np.random.default_rng([0, i]))[1]
        points = five_of(points) if keypoints == 5 else points
        box = RULES[rule].inner_box(points * 0.5 + 20, 160)
        places.append((points * 0.5 + 20 - box[:2]) / box[2])
    return np.mean(places, axis=0).round(4).tolist()
