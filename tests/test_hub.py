"""Upload to the Hub and download from it, with a folder in its place."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import recombinator
from recombinator.deploy.hub import from_pretrained, push_to_hub
from recombinator.utils.errors import InputError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    def upload_folder(repo_id, folder_path, token):
        shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    def hf_hub_download(repo_id, filename, revision):
        if not (tmp_path / repo_id / filename).is_file():
            raise OSError(f"404 {repo_id}\nmore")
        return str(tmp_path / repo_id / filename)

    def create_repo(repo_id, private, token, exist_ok):
        if repo_id.startswith("somebody-else"):
            raise OSError("403 Forbidden")

    fake = SimpleNamespace(upload_folder=upload_folder, hf_hub_download=hf_hub_download, create_repo=create_repo)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return tmp_path


def test_there_and_back(hub):
    assert push_to_hub("rcn-6-mtfl", "me/eyes") == "https://huggingface.co/me/eyes"
    card = (hub / "me/eyes/README.md").read_text()
    assert "library_name: recombinator" in card and 'from_pretrained("me/eyes")' in card and "images 9000" in card
    image, box = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8), [(50, 50, 90, 90)]
    (wanted,) = recombinator.load("rcn-6-mtfl").predict(image, boxes=box)
    for engine in (None, "torch"):
        (found,) = from_pretrained("me/eyes", engine=engine).predict(image, boxes=box)
        np.testing.assert_allclose(found.points, wanted.points, atol=0.05)
        assert found.occluded.tolist() == wanted.occluded.tolist()


def test_what_the_hub_refuses(hub, monkeypatch):
    with pytest.raises(InputError, match=r"me/nothing: not available from the Hub \(404 me/nothing\)"):
        from_pretrained("me/nothing")
    with pytest.raises(InputError, match="refused the upload"):
        push_to_hub("rcn-6-mtfl", "somebody-else/eyes")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[hub\]'"):
        from_pretrained("me/eyes")
    assert not list(Path(hub).glob("somebody-else*"))
