"""The package's layout: no import runs upward, no module is long, the public API is what `dir()` shows."""

import ast
import subprocess
import sys
from pathlib import Path

import recombinator

SOURCE = Path(recombinator.__file__).parent
# each package may import those before it
ORDER = (
    "utils", "keypoints", "data", "transforms", "models", "weights", "predict", "evaluation", "deploy", "training",
    "fit", "study", "cli",
)  # fmt: skip


def imports(path):
    """(module imported, line) of the package's own imports in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "recombinator":
            names = [node.module] if "." in node.module else [f"recombinator.{a.name}" for a in node.names]
            yield from ((name, node.lineno) for name in names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names if a.name.startswith("recombinator."))


def test_no_import_runs_upward():
    upward = []
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if place in ("__init__", "__main__"):
            continue
        for module, line in imports(path):
            target = module.split(".")[1]
            assert target in ORDER, f"{path}:{line}: {target} is not in the layout"
            if ORDER.index(target) > ORDER.index(place):
                upward.append(f"{path.relative_to(SOURCE)}:{line} imports {module}")
    assert upward == []


def test_top_level_entries():
    entries = {
        p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert entries == {*ORDER, "__init__", "__main__"}


def test_modules_are_short():
    assert [p.name for p in SOURCE.rglob("*.py") if len(p.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_the_public_api_is_in_dir_and_importing_it_is_light():
    for name in dir(recombinator):
        assert getattr(recombinator, name) is not None
    assert set(recombinator._HOMES) | {"__version__"} == set(dir(recombinator))
    code = "import sys, recombinator; print({'torch', 'cv2', 'onnxruntime', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
