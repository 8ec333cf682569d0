"""An exported graph with 8-bit convolutions: ONNX Runtime's static quantization, after the maps were made alike.

Maps of one layer differ in range by a factor of a hundred, and share one 8-bit scale. A convolution, rectifier, maximum
pooling, tiling and concatenation all let a positive factor of one map pass, so each map is divided by a factor of its
own and the next convolutions' weights are multiplied by it: the same function, and ranges that 8 bits resolve
(cross-layer equalization: Nagel et al., ICCV 2019).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.utils.errors import InputError

PASSING = ("Relu", "MaxPool", "Resize", "Concat")  # a positive factor of a map goes through these
BATCH = 32
LEAST = 0.015  # maps that are hardly ever used are enlarged no further; chosen on validation faces


class _Crops:
    """What the calibrator reads: batches of crops, once."""

    def __init__(self, crops: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.array_split(crops, -(-len(crops) // BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


class _Graph:
    """The convolutions of a network inside an ONNX model, with their weights, and where each one's maps go."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model, self.nodes = model, list(model.graph.node)
        self.tensors = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
        self.users: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            for place, name in enumerate(node.input):
                self.users.setdefault(name, []).append((node, place))
        # the normalization's filters are rows and columns: not square, and not of the network
        self.convs = [n for n in self.nodes if n.op_type == "Conv" and _is_square(self.tensors[n.input[1]])]
        self.maps: dict[str, int] = {}  # tensor -> number of its maps, where it is made of convolutions' maps
        for node in self.nodes:
            if node in self.convs:
                self.maps[node.output[0]] = len(self.tensors[node.input[1]])
            elif node.op_type == "Concat" and all(i in self.maps for i in node.input):
                self.maps[node.output[0]] = sum(self.maps[i] for i in node.input)
            elif node.op_type in PASSING and node.op_type != "Concat" and node.input[0] in self.maps:
                self.maps[node.output[0]] = self.maps[node.input[0]]

    def readers(self, name: str, first: int = 0) -> list[tuple[Any, int]] | None:
        """The convolutions that read the maps `name`, and at which input map each begins; None where something else
        reads them."""
        found: list[tuple[Any, int]] = []
        for node, place in self.users.get(name, []):
            start = first
            if node in self.convs and place == 0:
                found.append((node, start))
                continue
            if node.op_type == "Shape":  # asks for the size only
                continue
            if node.op_type not in PASSING or (node.op_type == "Resize" and place):
                return None
            if node.op_type == "Concat":
                if node.output[0] not in self.maps:  # beside something that is no convolution's
                    return None
                start += sum(self.maps[i] for i in node.input[:place])
            further = self.readers(node.output[0], start)
            if further is None:
                return None
            found += further
        return found or None

    def after_rectifier(self, conv: Any) -> str:
        """The convolution's output, rectified where a rectifier follows at once."""
        users = [node for node, _ in self.users[conv.output[0]]]
        return users[0].output[0] if len(users) == 1 and users[0].op_type == "Relu" else conv.output[0]

    def ranges(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """For each convolution the largest magnitude of each of its maps over the crops."""
        import onnx
        import onnxruntime as ort

        probe = onnx.ModelProto()
        probe.CopyFrom(self.model)
        names = {conv.name: self.after_rectifier(conv) for conv in self.convs}
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
        session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
        largest = {conv.name: np.zeros(self.maps[conv.output[0]], np.float32) for conv in self.convs}
        for start in range(0, len(crops), BATCH):
            answers = session.run(list(names.values()), {"image": crops[start : start + BATCH]})
            for name, maps in zip(names, answers, strict=True):
                largest[name] = np.maximum(largest[name], np.abs(maps).max(axis=(0, 2, 3)))
        return largest

    def equalize(self, crops: np.ndarray) -> None:
        """Makes all maps of a layer reach as far as each other, to the square root of what the largest of them did:
        maps of several layers are concatenated, and their differences are shared between maps and weights. The answers
        stay what they were."""
        from onnx import numpy_helper

        for conv, largest in zip(self.convs, self.ranges(crops).values(), strict=True):
            readers = self.readers(conv.output[0])
            if readers is None:
                continue
            top = largest.max() or 1.0
            factor = (np.maximum(largest, LEAST * top) / np.sqrt(top)).astype(np.float32)
            for name in conv.input[1:]:  # weight and, where it has one, bias
                self.tensors[name] /= factor.reshape(-1, *[1] * (self.tensors[name].ndim - 1))
            for reader, first in readers:
                self.tensors[reader.input[1]][:, first : first + len(factor)] *= factor[None, :, None, None]
        for tensor in self.model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(self.tensors[tensor.name], tensor.name))


def _is_square(weight: np.ndarray) -> bool:
    return weight.shape[-1] == weight.shape[-2]


def quantize(model: Any, crops: np.ndarray) -> Any:
    """An exported model with all convolutions but the first and the last in 8 bits; ranges come from `crops` (N, C, S,
    S) uint8. Raises InputError for a model with fewer than three convolutions."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        import onnx

        warnings.simplefilter("ignore")
        folder = Path(name)
        onnx.save(model, folder / "exported.onnx")  # given as an object it would lose its large tensors
        quant_pre_process(folder / "exported.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        graph = _Graph(onnx.load(folder / "prepared.onnx"))
        if len(graph.convs) < 3:
            raise InputError(f"8 bits want a network with three convolutions or more, this one has {len(graph.convs)}")
        graph.equalize(crops)
        first, last = graph.nodes.index(graph.convs[0]), graph.nodes.index(graph.convs[-1])
        inner = [n.name for n in graph.nodes[first + 1 : last] if n in graph.convs or n.op_type in PASSING]
        quantize_static(
            graph.model, folder / "quantized.onnx", _Crops(crops), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=inner,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        return onnx.load(folder / "quantized.onnx")
