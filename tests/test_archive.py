"""Archived weights belong to their result files."""

import json
from pathlib import Path

import pytest
import torch

from recombinator.evaluation.tables import evaluate
from recombinator.keypoints import FACE_5
from recombinator.models import create_model
from recombinator.study.archive import archive_weights, file_fingerprint, largest_change
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, load_weights, save_weights

ROOT = Path(__file__).resolve().parent.parent
ARCHIVED = sorted(
    (path, entry)
    for path in (ROOT / "results").rglob("*.json")
    if (entry := json.loads(path.read_text(encoding="utf-8")).get("archived"))
)


def _parts(training):
    """The trainings of a joint model's two networks, or that of another network."""
    return [training["image"], training["denoiser"]] if "denoiser" in training else [training]


@pytest.mark.parametrize(("path", "entry"), ARCHIVED, ids=lambda v: v.stem if isinstance(v, Path) else "")
def test_each_result_is_tied_to_its_weights(path, entry):
    weights, result = ROOT / entry["file"], json.loads(path.read_text(encoding="utf-8"))
    assert file_fingerprint(weights) == entry["fingerprint"]
    loaded = load_weights(weights)
    assert loaded.net.config == {
        **result["model"],
        **{k: loaded.net.config[k] for k in ("mask",) if k in loaded.net.config},
    }
    for ours, theirs in zip(_parts(loaded.training), _parts(result["training"]), strict=True):
        assert ours["recipe"] == theirs["recipe"]
    assert abs(entry["nme_paper"] - result["nme_paper"]) <= largest_change(result["nme_paper"])


def test_no_archived_weights_without_a_result():
    kept = {p.relative_to(ROOT).as_posix() for p in (ROOT / "results" / "weights").rglob("*.safetensors")}
    assert kept == {entry["file"] for _, entry in ARCHIVED}


def test_archived_in_half_precision_with_the_same_error(tmp_path, faces5):
    torch.manual_seed(0)
    weights = Weights(create_model("rcn-4", width=0.3), FACE_5, "mtfl", [[0.5, 0.5]] * 5, {})
    save_weights(tmp_path / "w.safetensors", weights)
    test = faces5 / "test.parquet"
    error = evaluate(tmp_path / "w.safetensors", test)[1]["nme_paper"]
    entry = archive_weights(tmp_path, "study/run", tmp_path / "w.safetensors", test, error)
    kept = tmp_path / entry["file"]
    assert kept.stat().st_size < 0.6 * (tmp_path / "w.safetensors").stat().st_size
    assert entry["nme_paper"] == evaluate(kept, test)[1]["nme_paper"]
    with pytest.raises(InputError, match="half precision changes the error"):
        archive_weights(tmp_path, "study/run", tmp_path / "w.safetensors", test, error + 1)
    assert not kept.exists()
