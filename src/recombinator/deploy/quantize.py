"""Convert the convolutions of an exported graph to 8 bits with ONNX Runtime's static quantization.

Maps of one layer differ in range by a factor of a hundred, and share one 8-bit scale. `equalize` makes the ranges
similar before export (cross-layer equalization: Nagel et al., ICCV 2019).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from recombinator.models.base import KeypointNet
from recombinator.utils.errors import InputError

PASSING = ("Relu", "MaxPool", "Resize", "Concat")  # quantized with the convolutions around them
BATCH = 32
LEAST = 0.015  # limit on how far rarely used maps are enlarged; chosen on validation faces


@torch.no_grad()
def equalize(net: KeypointNet, images: Tensor) -> None:
    """Scale the maps of each layer so that their ranges are similar. The network's scores do not change.

    A positive factor of one map passes ReLU, max pooling, upsampling and concatenation. Each map is divided by its own
    factor, and the weights that read it are multiplied by that factor. All maps of a layer then reach the square root
    of its largest value: maps of several layers are concatenated, and the square root shares their differences between
    maps and weights.

    Args:
        net: Changed in place, in its plain form. A network without `channel_readers` stays as it is.
        images: (N, channels, S, S) crops, 0..255, from which the ranges are measured.
    """
    largest: dict[Any, Tensor] = {}

    def measure(conv: Any, _: Any, output: Tensor) -> None:
        top = output.clamp_min(0).amax(dim=(0, 2, 3))
        largest[conv] = torch.maximum(largest.get(conv, top), top)

    readers = net.channel_readers()
    hooks = [conv.register_forward_hook(measure) for conv in readers]
    for batch in images.split(BATCH):
        net(batch)
    for hook in hooks:
        hook.remove()
    for conv, reading in readers.items():
        top = largest[conv].max() if largest[conv].any() else torch.tensor(1.0)
        factor = largest[conv].clamp_min(LEAST * float(top)) / top.sqrt()
        conv.weight /= factor[:, None, None, None]
        cast(Tensor, conv.bias).div_(factor)
        for reader, first in reading:
            reader.weight[:, first : first + len(factor)] *= factor[:, None, None]


class _Crops:
    """Batches of crops for the calibrator, each returned once."""

    def __init__(self, crops: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.array_split(crops, -(-len(crops) // BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def quantize(model: Any, crops: np.ndarray) -> Any:
    """Convert all convolutions of an exported model but the first and the last to 8 bits.

    Args:
        model: An onnx.ModelProto that `export` made.
        crops: (N, C, S, S) of the graph's input type, from which the ranges of the maps are measured.

    Returns:
        The quantized onnx.ModelProto.

    Raises:
        InputError: The model has fewer than three convolutions.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        folder = Path(name)
        onnx.save(model, folder / "exported.onnx")  # an object in place of a file would lose its large tensors
        quant_pre_process(folder / "exported.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        prepared = onnx.load(folder / "prepared.onnx")
        nodes, shapes = list(prepared.graph.node), {t.name: tuple(t.dims) for t in prepared.graph.initializer}
        # the filters of the contrast normalization are rows and columns: those are not square
        convs = [i for i, n in enumerate(nodes) if n.op_type == "Conv" and len(set(shapes[n.input[1]][2:])) == 1]
        if len(convs) < 3:
            raise InputError(f"8 bits need a network with three or more convolutions, this one has {len(convs)}")
        inner = [
            n.name for i, n in enumerate(nodes)
            if convs[0] < i < convs[-1] and (i in convs or n.op_type in PASSING)
        ]  # fmt: skip
        quantize_static(
            prepared, folder / "quantized.onnx", _Crops(crops), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=inner,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        return onnx.load(folder / "quantized.onnx")
