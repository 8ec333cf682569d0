"""Prediction with Ray: the results of the plain command, by parts."""

import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from test_predict import HOPPER
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.cli.ray import as_url
from recombinator.predict import ray as with_ray
from recombinator.utils.errors import InputError

PHOTOGRAPHS = int(os.environ.get("RECOMBINATOR_RAY_PHOTOGRAPHS", "200"))


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=False)


def records(folder, pattern="part-*.jsonl"):
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text().splitlines()]


def test_urls_survive_being_paths():
    for url in ("s3://bucket/a/b", "file:///tmp/a", "memory://x", "gs://a"):
        assert as_url(Path(url)) == url
    assert as_url(Path("a/b")) == "a/b" and as_url(Path("/a")) == "/a"


def test_options_that_ray_cannot_have(tmp_path):
    for options, words in (
        (["--chips", "64"], "--ray writes points only; leave out --chips"),
        (["--format", "coco"], "--ray writes json"),
        (["--out", "-"], "--ray writes files"),
    ):
        with pytest.raises(InputError, match=words):
            run(HOPPER, "--out", tmp_path, "--ray", *options)


def test_parts_depend_on_the_photographs_only():
    for n, parts, largest in ((1, 1, 1), (200, 8, 25), (5000, 33, 156), (10**5, 100, 1000)):
        made = with_ray.make_parts([f"{i}.jpg" for i in range(n)])
        assert (len(made), max(p["size"] for p in made)) == (parts, largest)
        assert [name for p in made for name in p["photographs"]] == [f"{i}.jpg" for i in range(n)]


def test_a_cluster_with_a_token_is_explained(monkeypatch):
    def refuse(**_):
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=refuse))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{address}: Failed .*; if .* by a token, set RAY_AUTH_MODE=token"):
            with_ray.start_ray(address)
    with pytest.raises(InputError, match=f"{address}: .*refused$"):
        with_ray.start_ray(address)


@pytest.fixture(scope="module")
def ray_with_two_cores():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Small photographs, each different; two are damaged."""
    folder = tmp_path_factory.mktemp("album")
    hopper = cv2.resize(cv2.imread(str(HOPPER)), (171, 200), interpolation=cv2.INTER_AREA)
    for i in range(PHOTOGRAPHS):
        image = np.roll(hopper, (i % 7 - 3, i % 11 - 5), axis=(0, 1)).astype(np.float32) * (0.8 + i % 5 / 12)
        cv2.imwrite(str(folder / f"{i:05}.jpg"), image.clip(0, 255))
    (folder / "00003.jpg").write_bytes(b"no")
    (folder / "00120.jpg").write_bytes(b"")
    return folder


@pytest.mark.slow
def test_ray_gives_what_the_plain_command_gives(ray_with_two_cores, album, tmp_path):
    plain = run(album, "--out", tmp_path / "plain", "--no-pictures", "--format", "json")
    assert plain.exit_code == 1
    expected = records(tmp_path / "plain", "points.jsonl")
    for record in expected:
        record.pop("stem")
    done = run("--ray", album, "--out", tmp_path / "ray")
    assert done.exit_code == 1 and "2 photographs could not be used" in done.output
    assert records(tmp_path / "ray") == expected and len(expected) == PHOTOGRAPHS - 2
    assert sum(bool(r["faces"]) for r in expected) > PHOTOGRAPHS / 2
    failed = records(tmp_path / "ray", "failed-*.jsonl")
    assert [os.path.basename(f["file"]) for f in failed] == ["00003.jpg", "00120.jpg"]
    assert all(f["error"] in plain.output for f in failed)


@pytest.mark.slow
def test_a_stopped_run_continues_with_the_missing_parts(ray_with_two_cores, album, tmp_path):
    first = [str(p) for p in sorted(album.iterdir())[:60]]
    assert run(*first, "--out", tmp_path, "--ray").exit_code == 1
    whole, kept = records(tmp_path), tmp_path / "part-00000.jsonl"
    (tmp_path / "part-00001.jsonl").unlink()
    before = kept.stat().st_mtime_ns
    with pytest.raises(InputError, match="already holds results"):
        run(*first, "--out", tmp_path, "--ray")
    with pytest.raises(InputError, match="written with other passes"):
        run(*first, "--out", tmp_path, "--ray", "--resume", "--passes", "1")
    again = run(*first, "--out", tmp_path, "--ray", "--resume")
    assert again.exit_code == 0 and "25 photographs, 35 done before" in again.output
    assert records(tmp_path) == whole and kept.stat().st_mtime_ns == before
    assert "0 photographs, 60 done before" in run(*first, "--out", tmp_path, "--ray", "--resume").output
    fewer = run(*first[5:10], "--out", tmp_path, "--ray", "--overwrite")
    assert fewer.exit_code == 0 and len(records(tmp_path)) == 5 and not list(tmp_path.glob("failed-*"))


@pytest.mark.slow
def test_parquet_and_urls(ray_with_two_cores, album, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(album.iterdir())[:40]
    rows = [{"image": {"bytes": p.read_bytes(), "path": p.name}} for p in paths]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "album.parquet", row_group_size=10)
    url = f"file://{tmp_path}"
    done = run("--ray", f"{url}/album.parquet", "--out", f"{url}/out", "--format", "parquet")
    assert done.exit_code == 1
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    table = pa.concat_tables(pq.read_table(p) for p in parts)
    assert len(parts) == 2 and table["file"].to_pylist() == [p.name for p in paths if p.name != "00003.jpg"]
    assert records(tmp_path / "out", "failed-*.jsonl")[0]["file"] == "00003.jpg"
    urls = run("--ray", f"file://{album}/000[0-3]*.jpg", "--out", tmp_path / "urls")
    assert urls.exit_code == 1
    by_url = records(tmp_path / "urls")
    assert all(r["file"].startswith("file:///") for r in by_url)
    plain = [[f["keypoints"][0]["x"] for f in r["faces"]] for r in by_url]
    assert [[f["keypoints"][0]["x"] for f in faces] for faces in table["faces"].to_pylist()] == plain
