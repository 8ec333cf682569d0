"""The figures of the paper, drawn from networks given by name."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.table import load_table
from recombinator.keypoints import FACE_5, FACE_68
from recombinator.models import Joint, create_model
from recombinator.study import figures
from recombinator.study.plan import FIGURES, STUDIES
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, save_weights


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Small untrained ones, by name."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    nets = {n: create_model(n, 5, width=0.2) for n in ("sumnet-4", "rcn-4", "sumnet-5", "rcn-5")}
    nets["tcdcn"] = create_model("tcdcn")
    paths = {}
    for name, net in nets.items():
        paths[name] = str(folder / f"{name}.safetensors")
        save_weights(folder / f"{name}.safetensors", Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    joint = Joint(create_model("rcn-68", width=0.1), create_model("denoiser-lite", width=8, layers=1, heads=1))
    joint.config["image"]["width"] = 0.1
    paths["joint"] = str(folder / "joint.safetensors")
    save_weights(folder / "joint.safetensors", Weights(joint, FACE_68, "300w", [[0.5, 0.5]] * 68, {}))
    return paths


SHOWN = {
    "fig1": (), "fig2": (), "fig3": ("sumnet-4", "sumnet-5", "rcn-4", "rcn-5"), "fig4": ("sumnet-4", "rcn-4"),
    "fig5": ("rcn-4", "rcn-5"), "fig6": ("tcdcn", "sumnet-4", "rcn-4"), "fig7": ("joint",),
    "figS1": ("sumnet-4", "rcn-4"), "figS2": ("sumnet-4", "sumnet-5", "rcn-4", "rcn-5"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(name, networks, faces5, faces68, tmp_path):
    command = ["study", name, "--out", str(tmp_path)]
    if SHOWN[name]:
        data = faces68 if name == "fig7" else faces5
        command += ["--data", str(data / "test.parquet")]
        command += [part for n in SHOWN[name] for part in ("--weights", networks[n])]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    for kind, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert (tmp_path / f"{name}.{kind}").read_bytes().startswith(begins)


def test_figures_name_runs_that_the_studies_have():
    for name, (_, weights) in FIGURES.items():
        assert len(weights) == len(SHOWN[name])
        for w in (w for w in weights if "/" in w):
            study, run = w.split("/")
            assert run in {r.name for r in STUDIES[study].runs}


def test_choosing_images(faces68):
    table = load_table(faces68 / "train.parquet")
    n, rng = len(table), np.random.default_rng(0)
    errors = rng.random((3, n))
    errors[0, 5], errors[-1, 5] = 9.0, 0.0
    errors[0, 6], errors[-1, 6] = 0.0, 9.0
    changed = figures._most_changed(errors, table, rng)
    assert changed[0] == (5, "better") and changed[-1] == (6, "worse")
    seven = figures._as_fig_7(errors, table, rng)
    assert [text for _, text in seven] == ["easy"] * 2 + ["better"] * 5 + ["worse"] + ["wrong"] * 2
    assert seven[2][0] == 5 and seven[7][0] == 6
    by = [i for i, _ in figures._by_difficulty(errors, table, rng)]
    mean = errors.mean(axis=0)[by]
    assert (np.diff(mean) >= 0).all()  # bins do not overlap


def test_a_figure_that_cannot_be_drawn(networks, faces5, tmp_path):
    with pytest.raises(InputError, match="--data"):
        CliRunner().invoke(app, ["study", "fig3", "--out", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(InputError, match="SumNet, then"):
        figures.draw("figS1", tmp_path, faces5 / "test.parquet", tmp_path, [networks["rcn-4"]] * 2)
    with pytest.raises(InputError, match="runs/study/table2/sumnet-5"):
        figures.draw("fig3", tmp_path, faces5 / "test.parquet", tmp_path / "runs" / "study")


def test_columns_say_why_they_were_chosen(networks, faces5, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, folder, name: drawn.append(figure) or [])
    table = load_table(faces5 / "test.parquet")
    figures.faces_grid("fig3", [networks["sumnet-4"], networks["rcn-4"]], table, tmp_path)
    titles = [axes.get_title() for axes in drawn[0].axes]
    columns = len(titles) // 2
    assert all(t.endswith(" %") for t in titles[:columns]) and not any(titles[columns:])
    assert [axes.get_ylabel() for axes in drawn[0].axes[::columns]] == ["sumnet-4.safetensors", "rcn-4.safetensors"]
