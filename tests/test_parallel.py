"""Training by several processes under torchrun."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recombinator.data.table import load_table
from recombinator.training import parallel
from recombinator.training.loop import Trainer
from recombinator.training.order import batches
from recombinator.training.recipe import get_recipe
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.weights.files import read_tensors

STILL = {"shift": 0.0, "zoom": 0.0, "degrees": 0, "turned": 0.0, "occlude": (0, 0), "precision": "float32"}
KIND = {"batch": 15, "options": {"size": 40, "width": 0.25}, **STILL}


class Stop(Exception):
    pass


def save_gradients(folder, out):
    """Write the gradients and the loss of the first step, of one process or of all together."""
    with parallel.joined("cpu"):
        table = load_table(folder / "train.parquet")
        # a third of the points is unknown, so that the parts of a batch have different numbers of known ones
        table = replace(table, mask=np.random.default_rng(0).random(table.mask.shape) < np.linspace(0.3, 1, 5))
        recipe = get_recipe("fast", "rcn-4", batch=15, **STILL)
        trainer = Trainer("rcn-4", table, table, out.parent, recipe, options=KIND["options"])

        def stop(done, total):
            raise Stop

        with pytest.raises(Stop):
            trainer.run_epoch(stop)
        if not parallel.rank():
            save_file({name: p.grad.contiguous() for name, p in trainer.net.named_parameters()}, out)


def torchrun(*command):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(faces5, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\nfrom test_parallel import save_gradients\n"
        "save_gradients(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    torchrun(str(script), str(faces5), str(tmp_path / "two.safetensors"))
    save_gradients(faces5, tmp_path / "one.safetensors")
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 10
    largest = max(float(g.abs().max()) for g in one.values())
    assert largest > 0.01
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5 * max(largest, 1), msg=name)


@pytest.mark.slow
def test_a_run_of_two_processes_continues_in_one(faces5, tmp_path, caplog):
    run = tmp_path / "run"
    done = torchrun(
        "-m", "recombinator", "train", "rcn-4", "--data", str(faces5), "--out", str(run), "--epochs", "3",
        "--set", "batch=15", "--set", "precision=float32", "--set", "size=40", "--set", "width=0.25",
        "--rotation", "0", "--no-occlusion",
        *(x for name in ("shift", "zoom", "turned") for x in ("--set", f"{name}=0")),
    )  # fmt: skip
    assert done.stdout.count("epoch    1") == 1 and done.stdout.count("best epoch") == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert json.loads((run / "run.json").read_text())["sittings"][0]["processes"] == 2
    train("rcn-4", faces5, tmp_path / "one", epochs=3, **KIND)  # the same samples in the same batches
    alone = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    for line, other in zip(lines, alone, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert line["valid"] == pytest.approx(other["valid"], rel=0.05)
    assert train("rcn-4", faces5, run, epochs=4, resume=True, **KIND)["epochs"] == 4
    assert any("continues with 1 process in place of 2" in message for message in caplog.messages)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    position = read_tensors(run / "last.safetensors")[1]["position"]
    assert position["epoch"] == 4 and len(json.loads((run / "run.json").read_text())["sittings"]) == 2


@pytest.mark.parametrize(("n", "size", "processes", "sizes"), [
    (48, 32, 1, [32, 16]), (33, 32, 1, [32, 1]), (33, 32, 2, [33]), (65, 32, 2, [32, 33]), (66, 32, 2, [32, 32, 2]),
])  # fmt: skip
def test_every_process_has_a_sample_of_every_batch(n, size, processes, sizes):
    parts = batches(torch.arange(n), size, processes)
    assert [len(p) for p in parts] == sizes and torch.equal(torch.cat(parts), torch.arange(n))


def test_too_many_processes_are_refused(faces5, monkeypatch, tmp_path):
    table = load_table(faces5 / "train.parquet", limit=4)
    monkeypatch.setattr(parallel, "processes", lambda: 5)
    with pytest.raises(InputError, match="5 processes need a batch of that many images; got batch=32 and 4 training"):
        Trainer("rcn-4", table, table, tmp_path, get_recipe("fast", "rcn-4"))
