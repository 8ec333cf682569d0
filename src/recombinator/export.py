"""A network as one ONNX graph: grey crop in, points and confidences out, everything between inside."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from recombinator.errors import InputError
from recombinator.files import write_atomically
from recombinator.models import Denoiser, Joint, ScoreMapNet
from recombinator.models.decode import decode
from recombinator.models.denoiser import MapDenoiser
from recombinator.predict.engine import GRAPH_FORMAT, OUTPUTS
from recombinator.weights import load_weights

OPSET = 20


class _Graph(nn.Module):
    """uint8 crops -> OUTPUTS and, where asked for, the score maps."""

    def __init__(self, net: nn.Module, maps: bool) -> None:
        super().__init__()
        self.net, self.maps = net, maps

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        output = self.net(image.float())
        found = decode(output, self.net.temperature)  # type: ignore[arg-type]
        answer = (found.points, found.within, found.covariance)
        return (*answer, output) if self.maps else answer


def export(weights: str | os.PathLike[str], path: Path, *, maps: bool = False) -> None:
    """Writes the weights (name, file or run folder) as ONNX, opset 20.

    Input `image`: (N, channels, size, size) uint8, N free. Outputs `points` (N, K, 2) in crop pixels (a pixel's centre
    at its integer + 0.5), `within` (N, K, 5) probabilities that the point lies in the square of 3, 5, 7, 11 and 17
    crop pixels around the highest cell, `covariance` (N, K, 3) xx, xy, yy in crop pixels, with `maps` also `scores`
    (N, K, size, size). Local contrast normalisation, temperature, softmax and sub-pixel decoding are inside;
    keypoints, crop rule and calibration lie in the metadata. Raises
    InputError for weights that have no such graph.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("export needs onnx and onnxscript: pip install 'recombinator[onnx]'") from None
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
        "calibration": loaded.calibration,
    }  # fmt: skip
    onnx.helper.set_model_props(model, {"recombinator": json.dumps(meta)})
    write_atomically(path, lambda p: p.write_bytes(model.SerializeToString()))
