"""Seeded damage to files, by format: what a disk, a network, another program or an attacker does to them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Mutation = Callable[[Path, Random], None]  # changes the file in place

_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 1.5, -0.5, 10**9, -(10**9), 10**30, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 2**31,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", "../x", "/etc/passwd", "\0", "\ud800", "=1+1", "a" * 3000, [], {}, [[]], [None],
    {"a": 1}, [1, 2, 3], "12", "nan",
)  # fmt: skip
_CELLS = (
    "", "nan", "inf", "-1", "1e400", "-1e30", "1,5", '"', "'", "\0", "x" * 200_000, "=1+1", "é", "12a",
    "99999999999999999999", "5" * 5000, "²", "../../x", "/etc/passwd", "0", "0.5", "1e-320",
)  # fmt: skip


def damage_bytes(path: Path, rng: Random) -> None:
    """Flip, cut, remove, repeat or insert bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 64, 4096))
        kind = rng.choice(("flip", "flip", "cut", "remove", "repeat", "insert", "zero"))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = rng.randbytes(length)
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
    path.write_bytes(bytes(data))


def damage_value(value: Any, rng: Random) -> Any:
    """Return a value of JSON with one part deleted, exchanged, nested or replaced by another type or number."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key: Any = rng.choice(keys)
        made: Any = value.copy()
        kind = rng.random()
        if kind < 0.08:
            del made[key]
        elif kind < 0.16:
            other: Any = rng.choice(keys)
            made[key], made[other] = made[other], made[key]
        elif kind < 0.2 and isinstance(made, dict):
            made[rng.choice(("x", "", "format", "size"))] = made[key]
        else:
            made[key] = damage_value(value[key], rng)
        return made
    kind = rng.random()
    if kind < 0.1:
        nested: Any = value
        for _ in range(rng.choice((3, 90, 900))):
            nested = [nested]
        return nested
    if kind < 0.2:
        return [value] * rng.choice((2, 1000))
    if kind < 0.6 or (isinstance(value, float | int) and kind < 0.8):
        return rng.choice(_NUMBERS)
    return rng.choice(_VALUES)


def _damage_text_of_json(text: str, rng: Random) -> str:
    if rng.random() < 0.05:
        return rng.choice(("[" * 100_000, '{"a":' * 100_000, "1" * 5000, "", "null", "[]", "{}", '"\\ud800"'))
    return json.dumps(damage_value(json.loads(text), rng))


def damage_json(path: Path, rng: Random) -> None:
    """Damage a JSON file's values, or its bytes."""
    if rng.random() < 0.25:
        damage_bytes(path, rng)
    else:
        path.write_text(_damage_text_of_json(path.read_text(encoding="utf-8"), rng), encoding="utf-8")


def damage_json_lines(path: Path, rng: Random) -> None:
    """Damage one line of a file with one JSON value per line, or its bytes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if rng.random() < 0.25 or not lines:
        return damage_bytes(path, rng)
    i = rng.randrange(len(lines))
    lines[i] = _damage_text_of_json(lines[i], rng)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return None


def damage_lines(path: Path, rng: Random) -> None:
    """Damage words, cells and columns of a text file, or its bytes."""
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.3:
        words = list(re.finditer(r"[\w.+-]+", text))
        word = rng.choice(words)
        path.write_text(text[: word.start()] + rng.choice(_CELLS) + text[word.end() :], encoding="utf-8")
        return None
    separator = "," if "," in text else " "
    rows = [line.split(separator) for line in text.splitlines()]
    kind = rng.random()
    if kind < 0.2 or not rows:
        return damage_bytes(path, rng)
    row = rng.choice(rows)
    if kind < 0.6:
        row[rng.randrange(len(row))] = rng.choice(_CELLS)
    elif kind < 0.75:
        a, b = rng.randrange(len(row)), rng.randrange(len(row))
        for line in rows:
            if max(a, b) < len(line):
                line[a], line[b] = line[b], line[a]
    elif kind < 0.85:
        del row[rng.randrange(len(row))]
    elif kind < 0.95:
        rows.insert(rng.randrange(len(rows)), row.copy())
    else:
        del rows[rng.randrange(len(rows)) :]
    path.write_text("\n".join(separator.join(r) for r in rows) + "\n", encoding="utf-8")
    return None


def damage_weights(path: Path, rng: Random) -> None:
    """Damage the metadata or the tensors of a safetensors file, or its bytes."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    kind = rng.random()
    if kind < 0.3:
        return damage_bytes(path, rng)
    with safe_open(path, "pt") as stream:
        text = (stream.metadata() or {})["recombinator"]
        tensors = {k: stream.get_tensor(k).clone() for k in stream.keys()}  # noqa: SIM118
    if kind < 0.75:
        text = _damage_text_of_json(text, rng)
    else:
        meta = json.loads(text)
        meta.pop("checksum", None)  # as of an earlier version, or of somebody who removed it
        text, name = json.dumps(meta), rng.choice(sorted(tensors))
        value, change = tensors[name], rng.randrange(7)
        if change == 0:
            del tensors[name]
        elif change == 1:
            tensors[name] = value.to(rng.choice((torch.int64, torch.float64, torch.float16, torch.uint8, torch.bool)))
        elif change == 2:
            tensors[name] = value[..., :1].clone() if value.ndim else value[None].clone()
        elif change == 3:
            tensors[f"{name}.more"] = value.clone()
        elif change == 4 and value.numel():
            value.reshape(-1)[rng.randrange(value.numel())] = rng.choice((float("nan"), float("inf"), 3e38))
        elif change == 5:
            tensors[name] = value * 1e30
        else:
            other = rng.choice(sorted(tensors))
            tensors[name], tensors[other] = tensors[other], value
    save_file(tensors, path, metadata={"recombinator": text})
    return None


def damage_graph(path: Path, rng: Random) -> None:
    """Damage the metadata, names, types, tensors or external files of an ONNX graph, or its bytes."""
    import onnx

    kind = rng.random()
    if kind < 0.3:
        return damage_bytes(path, rng)
    model = onnx.load(path, load_external_data=False)
    meta = json.loads(model.metadata_props[0].value)
    if kind < 0.65:
        model.metadata_props[0].value = _damage_text_of_json(json.dumps(meta), rng).replace("\0", "")
    else:
        meta.pop("checksum", None)
        model.metadata_props[0].value = json.dumps(meta)
        change, tensor = rng.randrange(6), rng.choice(list(model.graph.initializer))
        external = [t for t in model.graph.initializer if t.external_data]
        if change == 0 and external:
            entry = rng.choice(rng.choice(external).external_data)
            locations = ("/etc/passwd", "../w.safetensors", "w.onnx", "none.safetensors", "", "a/../b.safetensors")
            entry.value = rng.choice(locations if entry.key == "location" else ("-1", "9" * 30, "x", "0", "7", ""))
        elif change == 1:
            rng.choice([*model.graph.output, *model.graph.input]).name = rng.choice(("", "x", "points"))
        elif change == 2:
            tensor.data_type = rng.choice((1, 2, 6, 7, 10, 11, 99))
        elif change == 3 and tensor.raw_data:
            tensor.raw_data = damaged_numbers(tensor.raw_data, rng)
        elif change == 4:
            del model.graph.node[rng.randrange(len(model.graph.node))]
        else:
            node = rng.choice(model.graph.node)
            node.op_type = rng.choice(("Relu", "Loopy", "Identity", "Sqrt", "Div", "Log"))
    path.write_bytes(model.SerializeToString())
    return None


def damaged_numbers(data: bytes, rng: Random) -> bytes:
    """Return float32 numbers with one replaced by NaN, infinity or a large number."""
    import numpy as np

    values = np.frombuffer(data[: len(data) // 4 * 4], np.float32).copy()
    if len(values):
        values[rng.randrange(len(values))] = rng.choice((float("nan"), float("inf"), 3e38, 0.0))
    return values.tobytes() + data[len(values) * 4 :]


def damage_table(path: Path, rng: Random) -> None:
    """Damage the metadata or the columns of a Parquet table, or its bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = rng.random()
    if kind < 0.3:
        return damage_bytes(path, rng)
    table = pq.read_table(path)
    meta = dict(table.schema.metadata)
    if kind < 0.55:
        meta[b"recombinator"] = _damage_text_of_json(meta[b"recombinator"].decode(), rng).encode()
    else:
        i, j = rng.randrange(table.num_columns), rng.randrange(table.num_columns)
        name, values, change = table.column_names[i], table[i].to_pylist(), rng.randrange(8)
        if change == 0:
            table = table.remove_column(i)
        elif change == 1:
            names = table.column_names
            names[i], names[j] = names[j], names[i]
            table = table.rename_columns(names)
        elif change == 2:
            table = table.append_column(table.column_names[j], table[i])
        elif change == 3:
            table = table.slice(0, 0)
        elif change == 4:
            new = rng.choice((1, 1.5, "x", [1.0], [[1.0, 2.0]], True, None, b"x"))
            table = table.set_column(i, name, pa.array([new] * len(values)))
        else:
            row = rng.randrange(len(values))
            values[row] = _damage_cell(values[row], rng)
            try:
                table = table.set_column(i, name, pa.array(values, type=table.schema.field(i).type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                table = table.set_column(i, name, pa.array([str(v) for v in values]))
    pq.write_table(table.replace_schema_metadata(meta), path)
    return None


def _damage_cell(value: Any, rng: Random) -> Any:
    if isinstance(value, list) and value and rng.random() < 0.8:
        made, i = list(value), rng.randrange(len(value))
        made[i] = _damage_cell(value[i], rng)
        return made if rng.random() < 0.8 else made[:-1]
    if isinstance(value, dict):
        return value | {"bytes": rng.choice((None, b"", b"\x89PNG", rng.randbytes(100)))}
    if isinstance(value, bool):
        return rng.choice((None, not value))
    if isinstance(value, int | float):
        return rng.choice(
            (None, -1, 0, 100, type(value)(1e9), *((float("nan"), 1e30) if isinstance(value, float) else ()))
        )
    return rng.choice((None, "", "../x", "x" * 10_000))


def damage_hdf5(path: Path, rng: Random) -> None:
    """Damage the texts of JSON, the datasets or the bytes of an HDF5 file."""
    import h5py

    if rng.random() < 0.3:
        return damage_bytes(path, rng)
    with h5py.File(path, "r+") as file:
        items: list[Any] = [file]
        file.visititems(lambda name, item: items.append(item))
        attributes = [(item, key) for item in items for key in item.attrs]
        if attributes and rng.random() < 0.4:
            item, key = rng.choice(attributes)
            item.attrs[key] = _damage_item(item.attrs[key], rng)
            return None
        name = rng.choice([item.name for item in items if isinstance(item, h5py.Dataset)])
        values, kind = file[name][()], file[name].dtype
        del file[name]
        change = rng.randrange(8)
        if change == 0:
            return None
        if change == 1:
            file[name] = rng.choice((0, 1.5, "x", [[1, 2], [3, 4]]))
        elif change == 2:
            file.create_dataset(name, data=values.repeat(2, axis=0), dtype=kind)
        elif change == 3:
            file.create_dataset(name, data=values.T if values.ndim > 1 else values[:-1], dtype=kind)
        elif values.size:
            at = rng.randrange(values.size)
            values.reshape(-1)[at] = _damage_item(values.reshape(-1)[at], rng)
            file.create_dataset(name, data=values, dtype=kind)
    return None


def _damage_item(value: Any, rng: Random) -> Any:
    """Return a text, number or record of an HDF5 file with other contents."""
    import h5py
    import numpy as np

    if isinstance(value, h5py.Reference):
        return h5py.Reference()
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode()
        return _damage_text_of_json(text if text[:1] in ("{", "[") else json.dumps(text), rng)
    if isinstance(value, np.void):
        made, name = value.copy(), rng.choice(value.dtype.names or ())
        made[name] = _damage_item(value[name], rng)
        return made
    with np.errstate(all="ignore"):
        return np.float64(float(rng.choice(_NUMBERS))).astype(np.asarray(value).dtype)
