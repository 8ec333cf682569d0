"""A network as one ONNX graph: gray crop in, points and confidences out, everything between inside."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recombinator.data.table import load_table
from recombinator.models import Denoiser, Joint, ScoreMapNet
from recombinator.models.decode import decode
from recombinator.models.denoiser import MapDenoiser
from recombinator.predict.engine import GRAPH_FORMAT, OUTPUTS
from recombinator.transforms.augment import Augment
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError, remedy
from recombinator.utils.files import write_atomically
from recombinator.weights.files import Weights, load_weights

OPSET = 20
INT8_IMAGES = 256


class _Graph(nn.Module):
    """uint8 crops -> OUTPUTS and, where asked for, the score maps."""

    def __init__(self, net: nn.Module, maps: bool) -> None:
        super().__init__()
        self.net, self.maps = net, maps

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        output = self.net(image.float())
        found = decode(output, self.net.temperature, getattr(self.net, "tile", 1))  # type: ignore[arg-type]
        answer = tuple(getattr(found, name) for name in OUTPUTS)
        return (*answer, output) if self.maps else answer


def export(
    weights: str | os.PathLike[str], path: Path, *, maps: bool = False, int8: str | os.PathLike[str] | None = None
) -> None:
    """Writes the weights (name, file or run folder) as ONNX, opset 20.

    Input `image`: (N, channels, size, size) uint8, N free. Outputs `points` (N, K, 2) in crop pixels (a pixel's center
    at its integer + 0.5), `highest` (N, K, 2) the highest cells' centers, `within` (N, K, 5) probabilities that the
    point lies in the square of 3, 5, 7, 11 and 17
    crop pixels around the highest cell, `covariance` (N, K, 3) xx, xy, yy in crop pixels, with `maps` also `scores`
    (N, K, size, size). Local contrast normalization, temperature, softmax and sub-pixel decoding are inside;
    keypoints, crop rule, calibration and training lie in the metadata. int8: a training table; convolutions
    then work in 8 bits, with ranges from `INT8_IMAGES` of its images, jittered (quantize.py). Raises InputError for
    weights that have no such graph.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError(f"export needs onnx and onnxscript; {remedy('onnx')}") from None
    loaded = load_weights(weights)
    net = loaded.net
    if isinstance(net, Denoiser):
        raise InputError(f"{weights}: a denoiser, which sees no image; export the joint model")
    if isinstance(net, Joint) and isinstance(net.denoiser, MapDenoiser):
        raise InputError(f"{weights}: its denoiser works by FFT, which ONNX has no graph for; join denoiser-lite")
    for part in net.modules():
        if isinstance(part, ScoreMapNet):  # ONNX Runtime lays maps out by itself, and is fast on plain convolutions
            part.layout, part.fused = torch.contiguous_format, False
    net = net.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = torch.randint(0, 256, (2, net.channels, net.size, net.size), dtype=torch.uint8)
    names = [*OUTPUTS, *(["scores"] if maps else [])]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(net, maps).eval(), (example,), input_names=["image"], output_names=names, opset_version=OPSET,
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}}, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    meta = {
        "format": GRAPH_FORMAT, "keypoints": loaded.keypoints.to_dict(), "crop_rule": loaded.crop_rule,
        "template": loaded.template, "size": net.size, "channels": net.channels, "model": net.config,
        "calibration": loaded.calibration, "training": loaded.training,
    }  # fmt: skip
    if int8 is not None:
        model, meta["int8"] = _in_8_bits(model, loaded, int8)
    onnx.helper.set_model_props(model, {"recombinator": json.dumps(meta)})
    write_atomically(path, lambda p: p.write_bytes(model.SerializeToString()))


def _in_8_bits(model: Any, loaded: Weights, data: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """The quantized model, and what its ranges are of."""
    from recombinator.deploy.quantize import quantize

    net: Any = loaded.net
    table = load_table(data, net.channels, INT8_IMAGES, spread=True)
    if table.info.keypoints.names != loaded.keypoints.names:
        raise InputError(f"{data}: its keypoints ({table.info.keypoints.name}) are not those of the weights")
    jittered = fixed_samples(table, net.size, Augment(), torch.device("cpu"))
    crops = torch.cat([inputs.round().clamp(0, 255).byte() for inputs, _ in jittered]).numpy()
    return quantize(model, crops), {"images": len(crops), "fingerprint": table.fingerprint}
