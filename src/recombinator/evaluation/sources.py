"""Weights and tables that are given by name, by path, or in memory."""

from __future__ import annotations

import math
import os
from typing import Any, TypeAlias

from recombinator.data.table import FaceTable, load_table
from recombinator.keypoints import KeypointSet, check_same_keypoints
from recombinator.predict.engine import ENGINES, Engine, TorchEngine, load_engine
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, WeightsLike
from recombinator.weights.shipped import is_graph

TableLike: TypeAlias = str | os.PathLike[str] | FaceTable  # a file that `prepare` wrote, or a loaded table
NetworkLike: TypeAlias = WeightsLike | Engine  # weights, an exported graph by name or path, or a loaded engine


def as_engine(network: NetworkLike, engine: str = "torch") -> Engine:
    """Return an engine for a network.

    Args:
        network: A shipped name, a weights file, a run folder, an exported graph, loaded weights, or an engine, which
            is returned as it is.
        engine: "torch" or "onnx"; exported graphs always run with ONNX Runtime, loaded weights with torch.

    Raises:
        InputError: The network cannot be loaded, takes no images, or does not exist in that form.
    """
    if isinstance(network, Weights):
        if engine != "torch":
            raise InputError(f"{network}: engine {engine!r} needs an exported graph; give its name or path")
        return TorchEngine(network)
    if isinstance(network, str | os.PathLike):
        return load_engine(network, "onnx" if engine in ENGINES and is_graph(network) else engine)
    return network


def name_of(source: NetworkLike | TableLike) -> str:
    """Return what reports and messages call a network or a table: the name or path that was given, where known."""
    if isinstance(source, FaceTable):
        return f"{source.info.dataset} {source.info.split} table"
    if isinstance(source, str | os.PathLike | Weights):
        return str(source)
    return str(source.about.model["name"])


def as_table(
    data: TableLike, keypoints: KeypointSet, channels: int | None, network: str, *, limit: int | None = None,
    spread: bool = False, memory: float = math.inf,
) -> FaceTable:  # fmt: skip
    """Return a table, loaded if it is given by path, that a network can be measured on.

    Args:
        data: A file that `prepare` wrote, or a loaded table, which is returned as it is.
        keypoints: The network's keypoints.
        channels: The network's input channels; None for a network that sees no images.
        network: The network's name, for messages.
        limit: Number of rows to read: the first ones.
        spread: Draw the `limit` rows over the whole table instead.
        memory: Gigabytes up to which the crops are decoded at once, as in `load_table`.

    Raises:
        InputError: The table cannot be read, or does not fit the network.
    """
    if isinstance(data, FaceTable):
        table = data
        if limit and limit < len(table):
            raise InputError(
                f"{name_of(data)}: limit={limit} applies to a table's file; load the table with load_table(limit=...)"
            )
        if channels not in (None, table.images.shape[1]):
            raise InputError(
                f"{name_of(data)}: expected images with {channels} channels for {network}, got {table.images.shape[1]}"
            )
    else:
        table = load_table(data, channels or 1, limit, spread, memory)
    check_same_keypoints(keypoints, table.info.keypoints, f"{name_of(data)}, for {network}")
    return table


def identity(table: FaceTable) -> dict[str, Any]:
    """Return `FaceTable.describe` without the number of images, for reports that count them elsewhere."""
    return {key: value for key, value in table.describe().items() if key != "images"}
