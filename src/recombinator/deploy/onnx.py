"""Export a network as one ONNX graph from crops to keypoints and probabilities, normalization and decoding included."""

from __future__ import annotations

import base64
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from recombinator.data.crops import RULES
from recombinator.data.table import load_table
from recombinator.keypoints import check_same_keypoints
from recombinator.models import Finder
from recombinator.models.base import KeypointNet, check_takes_images
from recombinator.models.finder import COARSEST
from recombinator.predict.engine import GRAPH_FORMAT, OUTPUTS
from recombinator.predict.finder import FORMAT
from recombinator.predict.graphfile import graph_checksum
from recombinator.transforms.augment import Augment
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError, import_optional
from recombinator.utils.files import write_atomically
from recombinator.utils.schema import parse_json
from recombinator.weights.files import Weights, load_weights

OPSET = 20
INT8_IMAGES = 256
SMALLEST_LINKED = 1024  # bytes; ONNX Runtime reads some small tensors while it loads a graph


class _Graph(nn.Module):
    """Map uint8 crops to OUTPUTS and, if `maps` is set, to the score maps as well."""

    def __init__(self, net: KeypointNet, maps: bool) -> None:
        super().__init__()
        self.net, self.maps = net, maps

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        output = self.net(image.float())
        decoded = self.net.decode(output)
        results = tuple(getattr(decoded, name) for name in OUTPUTS)
        return (*results, output) if self.maps else results


def export(
    weights: str | os.PathLike[str], path: Path, *, maps: bool = False, int8: str | os.PathLike[str] | None = None
) -> None:
    """Write a network as an ONNX file, opset 20.

    The graph's input `image` is (N, channels, size, size) uint8, N free. Its outputs are in crop pixels, a pixel's
    center at its integer + 0.5:

    - `points` (N, K, 2): keypoints, sub-pixel.
    - `highest` (N, K, 2): centers of the highest cells of the score maps.
    - `within` (N, K, 5): probabilities of the squares of 3, 5, 7, 11 and 17 pixels around `highest`.
    - `covariance` (N, K, 3): xx, xy, yy of the predicted distribution.
    - `scores` (N, K, size, size), only with `maps`: the score maps before the softmax.

    Local contrast normalization, temperature, softmax and decoding are inside the graph. Keypoint set, crop rule,
    calibration and training are in its metadata, and so is the graph of the finder, if there is one.

    A finder's own graph has the input `image`, (N, channels, H, W) float32 with values 0 to 255, H and W free multiples
    of 32, and the output `maps` of models.finder.Finder.

    Args:
        weights: Shipped name, weights file or run folder.
        path: File to write.
        maps: Add the score maps as an output.
        int8: Training table. Convolutions then work in 8 bits, with ranges from `INT8_IMAGES` of its images, jittered
            unless they are a finder's.

    Raises:
        InputError: onnx is not installed, the network has no such graph, or the table has other keypoints.
    """
    import_optional("onnx", "export")
    import_optional("onnxscript", "export")
    loaded = load_weights(weights)
    net = loaded.net.plain()
    check_takes_images(net, os.fspath(weights))
    net.check_exportable(os.fspath(weights))
    if net.task == "finding":
        if maps:
            raise InputError(f"{os.fspath(weights)}: a finder has no score maps")
        write_atomically(path, lambda p: p.write_bytes(finder_graph(path, loaded, int8)))
        return
    meta = {
        "format": GRAPH_FORMAT, "keypoints": loaded.keypoints.to_dict(), "crop_rule": loaded.crop_rule,
        "template": loaded.template, "size": net.size, "channels": net.channels, "model": net.config,
        "calibration": loaded.calibration, "training": loaded.training,
    }  # fmt: skip
    model = (
        _in_8_bits(net, meta, _calibration_crops(loaded, int8), lambda: _traced(net, maps))
        if int8
        else _traced(net, maps)
    )
    texts = {}
    if loaded.finder is not None:
        texts["recombinator_finder"] = base64.b64encode(finder_graph(path, loaded.finder)).decode()
    write_atomically(path, lambda p: p.write_bytes(_described(path, model, meta, texts)))


def _described(path: Path, model: Any, meta: dict[str, Any], texts: dict[str, str]) -> bytes:
    """Return the content of a file with an onnx.ModelProto, its metadata and further texts.

    The checksum of the graph is added to the metadata.
    """
    from onnx.helper import set_model_props

    meta = {**meta, "checksum": graph_checksum(path, model.SerializeToString())}
    set_model_props(model, {**texts, "recombinator": json.dumps(meta)})
    content: bytes = model.SerializeToString()
    return content


def _in_8_bits(net: KeypointNet, meta: dict[str, Any], ranges: tuple[Tensor, str], traced: Callable[[], Any]) -> Any:
    """Return a network as an onnx.ModelProto in 8 bits.

    Args:
        net: The network, which is changed in place.
        meta: Metadata, to which the source of the ranges is added.
        ranges: Images from which the ranges are measured, and the fingerprint of their table.
        traced: Traces the network.
    """
    from recombinator.deploy.quantize import equalize, quantize

    images, fingerprint = ranges
    equalize(net, images)
    meta["int8"] = {"images": len(images), "fingerprint": fingerprint}
    return quantize(traced(), images.numpy())


def finder_graph(path: Path, weights: Weights, int8: str | os.PathLike[str] | None = None) -> bytes:
    """Return the content of a finder's .onnx file, to be written at `path` or into the graph there.

    Args:
        path: See above.
        weights: The finder, which is changed in place with `int8`.
        int8: Table of whole images; see `export`.
    """
    net = cast(Finder, weights.net.eval())
    example = torch.zeros(2, net.channels, 2 * COARSEST, 3 * COARSEST)
    height, width = (COARSEST * torch.export.Dim(n) for n in ("rows", "columns"))
    shapes = {"x": {0: torch.export.Dim("batch"), 2: height, 3: width}}
    about = {
        "format": FORMAT, "rule": weights.crop_rule, "channels": net.channels,
        "threshold": round(float(net.threshold), 4), "relation": weights.calibration.get("relation", {}),
        "training": weights.training,
    }  # fmt: skip

    def traced() -> Any:
        return _program(net, example, ["maps"], shapes)

    model = _in_8_bits(net, about, _whole_images(net, int8), traced) if int8 else traced()
    return _described(path, model, about, {})


def _traced(net: KeypointNet, maps: bool) -> Any:
    """The network as an onnx.ModelProto."""
    net = net.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = torch.randint(0, 256, (2, net.channels, net.size, net.size), dtype=torch.uint8)
    names = [*OUTPUTS, *(["scores"] if maps else [])]
    return _program(_Graph(net, maps).eval(), example, names, {"image": {0: torch.export.Dim("batch")}})


def _program(net: nn.Module, example: Tensor, outputs: list[str], shapes: dict[str, Any]) -> Any:
    """Export a network without the exporter's notes on where in the source each node comes from."""
    with warnings.catch_warnings(), _log_level("torch.onnx", logging.ERROR):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (example,), input_names=["image"], opset_version=OPSET, output_names=outputs, dynamic_shapes=shapes,
            dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    remove_notes(model)
    return model


def remove_notes(model: Any) -> None:
    """Remove the metadata of an exported graph's nodes and tensors: stack traces with the exporting machine's paths."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]


@contextmanager
def _log_level(name: str, level: int) -> Iterator[None]:
    """Set a logger's level, and restore it afterwards."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def _calibration_crops(loaded: Weights, data: str | os.PathLike[str]) -> tuple[Tensor, str]:
    """Jittered crops of a table, (N, C, S, S) uint8, and the table's fingerprint."""
    table = load_table(data, loaded.net.channels, INT8_IMAGES, spread=True)
    check_same_keypoints(loaded.keypoints, table.info.keypoints, str(data))
    jittered = fixed_samples(table, loaded.net.size, Augment(), torch.device("cpu"))
    crops = torch.cat([inputs.round().clamp(0, 255).byte() for inputs, _ in jittered])
    return crops, table.fingerprint


def _whole_images(net: Finder, data: str | os.PathLike[str]) -> tuple[Tensor, str]:
    """Whole images of a table, (N, C, S, S) float32, and the table's fingerprint."""
    table = load_table(data, net.channels, INT8_IMAGES, spread=True)
    if not RULES[table.info.crop_rule].whole:
        raise InputError(f"{os.fspath(data)}: holds crops; a finder needs a table of whole images (prepare --whole)")
    side = table.images.shape[-1] // COARSEST * COARSEST
    return torch.from_numpy(table.images[:, :, :side, :side]).float(), table.fingerprint


def link_tensors(path: Path, *weights: Path) -> None:
    """Let a graph read its tensors from the weights files they came from, so that a package holds each of them once.

    The shipped graphs are stored in this way. Where the files are replaced, export and link the graph again.

    Args:
        path: Graph, changed in place.
        weights: Safetensors files in the graph's folder. Tensors that none of them holds stay in the graph.
    """
    from onnx import external_data_helper, load_model

    stored: dict[bytes, tuple[str, int]] = {}
    for file in weights:
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, tensor in parse_json(content[8:start], str(file)).items():
            if name != "__metadata__":
                first, end = tensor["data_offsets"]
                stored[content[start + first : start + end]] = (file.name, start + first)
    model = load_model(path)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= SMALLEST_LINKED and tensor.raw_data in stored:
            file_name, offset = stored[tensor.raw_data]
            external_data_helper.set_external_data(tensor, file_name, offset, len(tensor.raw_data))
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
    texts = {p.key: p.value for p in model.metadata_props}
    write_atomically(path, lambda p: p.write_bytes(_described(path, model, json.loads(texts["recombinator"]), texts)))
