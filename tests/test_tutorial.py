"""The code of the documents and examples runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

import recombinator

ROOT = Path(__file__).resolve().parent.parent


def blocks_of(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)


def test_every_block_of_the_quick_start_and_of_the_page_on_own_keypoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", "photo.jpg")
    blocks = [(page, block) for page in ("tutorial.md", "own-keypoints.md") for block in blocks_of(page)]
    assert len(blocks) == 8
    names = {}
    for page, block in blocks:
        exec(compile(block, page, "exec"), names)
    assert names["faces"][0].occluded.shape == (5,) and names["report"]["images"] == 6
    assert sum(v for k, v in names["counts"].items() if k != "dropped") == 3
    assert (tmp_path / "drawn.png").is_file()


def test_every_cell_of_the_notebook(tmp_path):
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert len(code) == 4 and not any(c.get("outputs") for c in cells)
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "left_eye" in done.stdout and "% of the eye distance, on 4 images" in done.stdout


def test_the_portrait_of_the_readme(tmp_path):
    script, picture = ROOT / "examples" / "portrait.py", tmp_path / "portrait.png"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, script, picture], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in (picture, ROOT / "docs" / "images" / "grace_hopper.png"):
        assert 50_000 < path.stat().st_size < 400_000


def test_the_api_page_has_every_public_name():
    listed = re.findall(r"^::: recombinator\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted([*listed, "__version__"]) == sorted(recombinator.__all__)


def test_links_between_the_documents_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    missing = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert missing == []
