"""The tutorial's blocks run, in order, in an empty folder."""

import re
import shutil
from pathlib import Path

import matplotlib

ROOT = Path(__file__).resolve().parent.parent


def test_every_block_of_the_tutorial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", "photo.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S)
    assert len(blocks) == 7
    names = {}
    for block in blocks:
        exec(compile(block, "tutorial.md", "exec"), names)
    assert names["faces"][0].covered.shape == (5,) and names["report"]["images"] == 6
    assert sum(v for k, v in names["counts"].items() if k != "dropped") == 3
    assert (tmp_path / "drawn.png").is_file()
