"""The paper's experiments as a resumable list of trainings, and the tables made of their results."""

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.models import create_model
from recombinator.study import figures, measurements, run, tables
from recombinator.study.plan import MASKS, STUDIES, Run, Study
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.utils.files import Busy, is_locked


def test_the_papers_rows_are_there():
    table1, table2 = STUDIES["table1"].runs, STUDIES["table2"].runs
    assert len(table1) == 18 and len(table2) == 13 and len(MASKS) == 9
    by_name = {r.name: r.paper for r in (*table1, *table2)}
    assert by_name["rcn-4-0001"] == (46.87, 48.61) and by_name["sumnet-4-1000"] == (10.54, 10.63)
    assert by_name["rcn-6-occlusion"] == (5.60, 5.36) and by_name["rcn-4"] == by_name["rcn-4-1111"]
    for plan in STUDIES.values():
        for one in plan.runs:
            create_model(one.model, **one.options)
            recipe = run.recipe_of(plan, one, None)
            assert recipe.epochs == one.changes.get("epochs", plan.epochs) * one.part and recipe.augment.flip == (
                one.model == "rcn-68"
            )
        for other in plan.also:
            study, name = other.split("/")
            assert name in {r.name for r in STUDIES[study].runs} and STUDIES[study].epochs == plan.epochs


@pytest.fixture
def small(monkeypatch):
    """A study of two very small networks."""
    options = {"width": 0.2}
    runs = (Run("a", "rcn-4", options, {}, (5.0, 5.0)), Run("b", "sumnet-4", options, {"occlude": (0, 0)}, (6.0, 6.0)))
    monkeypatch.setitem(STUDIES, "small", Study("two small networks", runs, 1))
    return runs


def test_a_study_runs_once_and_resumes(small, faces5, tmp_path, caplog):
    caplog.set_level("INFO", logger="recombinator")
    assert run.run_study("small", faces5, tmp_path, tmp_path / "runs", only="a") == 1
    states = run.state("small", tmp_path, tmp_path / "runs", None, 0)
    assert [s["state"] for s in states] == ["done", "open"]
    first = (tmp_path / "results" / "small" / "a.json").read_text()
    assert run.run_study("small", faces5, tmp_path, tmp_path / "runs") == 1
    assert (tmp_path / "results" / "small" / "a.json").read_text() == first
    assert "1 of 2, a: done before" in caplog.messages
    assert f"2 of 2, b: 1 epochs in {tmp_path / 'runs' / 'small' / 'b'}" in caplog.messages
    assert run.run_study("small", faces5, tmp_path, tmp_path / "runs", epochs=2) == 2  # another budget: trained again
    told = json.loads((tmp_path / "results" / "small" / "b.json").read_text())
    assert [line["epoch"] for line in told["curve"]] == [1, 2] and told["training"]["recipe"]["epochs"] == 2
    assert (tmp_path / "results" / "small" / "b.images.parquet").is_file()
    assert run.cost(STUDIES["small"], small[0], faces5, 10) > 0
    with pytest.raises(InputError, match="no run whose name contains 'c'"):
        run.run_study("small", faces5, tmp_path, tmp_path / "runs", only="c")
    with pytest.raises(InputError, match="unknown study"):
        run.run_study("tabel1", faces5, tmp_path, tmp_path / "runs")


def result(nme, half=0.1):
    ci = [nme - half, nme + half]
    training = {"epoch": 3, "recipe": {"epochs": 12}}
    return {"nme_paper": nme, "nme_paper_ci95": ci, "nme": nme - 0.3, "training": training}


def test_a_row_against_the_papers_order_is_marked(small):
    table = tables.study_table({"small/a": result(6.5), "small/b": result(6.2)}, "small")
    lines = table.splitlines()
    assert "[a](results/small/a.json)" in lines[2]
    assert "| 5.00 | **6.50** [6.40, 6.60] | +1.50 | 6.20 | 3 of 12 | worse than b |" in lines[2]
    assert lines[3].endswith("| +0.20 | 5.90 | 3 of 12 |  |")
    close = tables.study_table({"small/a": result(6.3), "small/b": result(6.2)}, "small")
    assert "worse" not in close
    assert len(tables.study_table({"small/b": result(6.2)}, "small").splitlines()) == 3


def test_a_training_that_two_studies_share_is_done_once(small, faces5, tmp_path, monkeypatch):
    twin = (Run("other", "rcn-4", small[0].options, {}, (5.5, 5.5), same="small/a"),)
    monkeypatch.setitem(STUDIES, "twin", Study("the same again", twin, 1))
    assert run.run_study("twin", faces5, tmp_path, tmp_path / "runs") == 1
    told, theirs = (json.loads((tmp_path / "results" / n).read_text()) for n in ("twin/other.json", "small/a.json"))
    assert told["nme_paper"] == theirs["nme_paper"] and told["run"] == "other" and told["same"] == "small/a"
    assert run.run_study("small", faces5, tmp_path, tmp_path / "runs", only="a") == 0
    for plan in STUDIES.values():
        for one in (r for r in plan.runs if r.same):
            study, name = one.same.split("/")
            (other,) = (r for r in STUDIES[study].runs if r.name == name)
            assert run.recipe_of(STUDIES[study], other, None) == run.recipe_of(plan, one, None)
            nets = [create_model(r.model, **r.options) for r in (one, other)]
            assert [p.shape for p in nets[0].parameters()] == [p.shape for p in nets[1].parameters()]


@contextmanager
def locked_by_another_process(folder):
    code = (
        "import sys; from pathlib import Path; from recombinator.utils.files import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield


def test_two_processes_do_not_train_in_one_folder(small, faces5, tmp_path, caplog):
    caplog.set_level("INFO", logger="recombinator")
    folder = tmp_path / "runs" / "small" / "a"
    folder.mkdir(parents=True)
    with locked_by_another_process(folder):
        assert run.run_study("small", faces5, tmp_path, tmp_path / "runs") == 1  # b alone
        assert "1 of 2, a: skipped, another process is training it" in caplog.messages
        states = run.state("small", tmp_path / "elsewhere", tmp_path / "runs", None, 0)
        assert [s["state"] for s in states] == ["running", "begun"]
        with pytest.raises(Busy, match="another process"):
            train("rcn-4", faces5, folder, epochs=1)
    assert not is_locked(folder)
    assert run.run_study("small", faces5, tmp_path, tmp_path / "runs") == 1


def test_a_watched_study_knows_the_test_error_of_every_epoch(small, faces5, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="recombinator")
    monkeypatch.setitem(STUDIES, "convergence", Study("watched", small, 2, watched=True))
    assert run.run_study("convergence", faces5, tmp_path, tmp_path / "runs", only="a") == 1
    told = json.loads((tmp_path / "results" / "convergence" / "a.json").read_text())
    assert sum(m.startswith("a: epoch ") and ", test " in m for m in caplog.messages) == 2
    assert [p["epoch"] for p in told["curve"]] == [1, 2] and told["curve"][-1]["test"] == pytest.approx(
        told["nme_paper"]
    )
    results = {
        "convergence/a": {**told, "curve": [{**p, "test": t} for p, t in zip(told["curve"], (8.0, 6.0), strict=True)]}
    }
    table = tables.convergence_table(results)
    assert "| 2 epochs, " in table and "| 8.00 | 6.00 | - |" in table
    assert {p.name for p in figures.draw_curves(results, tmp_path)} == {"convergence.png", "convergence.pdf"}
    with pytest.raises(InputError, match="study convergence"):
        figures.draw_curves({}, tmp_path)
    told["training"]["recipe"]["epochs"] = 3
    monkeypatch.setitem(STUDIES, "speedrun", Study("fast", small, 2))
    assert "/a.json) | 3 | " in tables.speedrun_table({"speedrun/a": told})


def test_study_commands(small, faces5, tmp_path):
    listed = CliRunner().invoke(app, ["study", "list", "--root", str(tmp_path), "--runs", str(tmp_path)])
    assert listed.exit_code == 0 and "table1" in listed.output and "rcn-6-skip-occlusion" in listed.output
    cost = CliRunner().invoke(app, ["study", "table3", "--help"])
    assert cost.exit_code == 0 and "--only" in cost.output


def test_tables_of_photographs_and_of_probabilities():
    data = {"dataset": "mtfl", "split": "test"}
    photographs = {
        "kind": "photographs", "data": data, "weights": "w", "passes": 2, "found": 90, "faces": 100, "others": 3,
        "nme": 5.0, "nme_ci95": [4.5, 5.5], "nme_true_crop": 4.9,
    }  # fmt: skip
    assert "| w | 2 | 90 of 100 (90.0 %) | 3 | 5.00 [4.50, 5.50] | 4.90 |" in measurements.photographs_table(
        {"p": photographs}
    )
    rows = [{"radius": r, "right": 0.9, "error": 0.01, "error_uncalibrated": 0.2} for r in (1, 2, 3, 5, 8)]
    reliability = {
        "kind": "reliability", "data": data, "weights": "w", "plain": rows, "covered": rows, "covered_auroc": 0.875,
        "calibration": {"temperature": 1.5}, "flagged_covered": 0.6, "flagged_visible": 0.05,
    }  # fmt: skip
    none = {**photographs, "found": 0, "nme": None, "nme_ci95": None, "nme_true_crop": None}
    assert "| w | 2 | 0 of 100 (0.0 %) | 3 | - | - |" in measurements.photographs_table({"p": none})
    plain = {k: v for k, v in reliability.items() if not k.startswith("flagged")} | {"calibration": {}}
    assert "| w | 1 | " in measurements.reliability_table({"r": plain}) and "- / - |" in measurements.reliability_table(
        {"r": plain}
    )
    table = measurements.reliability_table({"r": reliability, "p": photographs})
    assert "| w | 1.5 | 90.0 % | 20.0 to 1.0 % | 90.0 % | 20.0 to 1.0 % | 0.875 | 60 % / 5 % |" in table
