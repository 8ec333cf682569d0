"""Write the tables of README and docs from results/*.json.

A document marks a table's place with `<!-- results: NAME -->` and `<!-- end -->`. The text between the two marks is
written here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from recombinator.study import measurements, tables, whole_images
from recombinator.study.labels import labels_table
from recombinator.study.markdown import Results
from recombinator.study.plan import STUDIES
from recombinator.study.result import read_result
from recombinator.study.unlabeled import unlabeled_table
from recombinator.utils.errors import InputError, unknown
from recombinator.utils.files import write_text

DOCUMENTS = ("README.md", "docs/*.md")
_BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load_results(root: Path) -> Results:
    """Read results/NAME.json and results/STUDY/RUN.json, by name."""
    results = {}
    folder = root / "results"
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        results[path.relative_to(folder).with_suffix("").as_posix()] = read_result(path)
    return results


TABLES: dict[str, Callable[[Results], str]] = {
    "aflw": tables.aflw_table,
    "beyond": tables.beyond_table,
    "aflw-all": partial(tables.aflw_table, suffix=""),
    **{f"card-{name}": partial(tables.card_table, name=name) for name in tables.CARDS},
    "trials": measurements.trials_table,
    "stages": measurements.stages_table,
    **{f"runs-{n}": partial(measurements.runs_table, name=f"runs-{n}") for n in ("tcdcn", "rate", "denoiser")},
    "explorations": measurements.explorations_table,
    "speed": measurements.speed_table,
    "common": tables.common_table,
    "table4": tables.table4,
    "joint": partial(measurements.comparison_table, prefix="joint-"),
    "attributes": partial(measurements.comparison_table, prefix="tcdcn-attributes"),
    "denoisers": measurements.denoiser_table,
    **{name: partial(tables.study_table, name=name) for name in STUDIES},
    "models": measurements.models_table,
    "convergence": tables.convergence_table,
    "engines": measurements.engines_table,
    "robustness": measurements.robustness_table,
    "speedrun": tables.speedrun_table,
    "machine": measurements.machine_line,
    "photographs": measurements.photographs_table,
    "finder": whole_images.finder_table,
    "tools": whole_images.tools_table,
    "pipeline": whole_images.pipeline_table,
    "reliability": measurements.reliability_table,
    "web": measurements.web_table,
    "headline": tables.headline,
    "summary": tables.summary_table,
    "offset": measurements.offset_table,
    "memory": measurements.memory_table,
    "ray": measurements.ray_table,
    "unlabeled": unlabeled_table,
    "labels": labels_table,
    "folds": measurements.folds_table,
    "noise-aflw": partial(measurements.noise_table, name="robustness-aflw"),
    "noise-common": partial(measurements.noise_table, name="robustness-common"),
}


def render_text(text: str, results: Results, where: str) -> str:
    """Return the document with every marked table rewritten.

    Args:
        text: The document in Markdown.
        results: Contents of the result files, by name.
        where: The document's path from the root; links of a document in docs/ start with ../results/.

    Raises:
        InputError: A mark names an unknown table.
    """

    def table(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise InputError(f"{where}: {unknown('table', name, TABLES)}")
        try:
            text = TABLES[name](results)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: table {name}: a result file lacks a value or has another ({error!r})") from None
        if Path(where).parent.name == "docs":  # links start from the document
            text = text.replace("](results/", "](../results/")
        return f"{match[1]}{text}{match[3]}"

    return _BLOCK.sub(table, text)


def render_documents(root: Path, write: bool) -> list[Path]:
    """Return the documents whose tables differ from results/, and rewrite them if `write`."""
    results, changed = load_results(root), []
    documents = [p for pattern in DOCUMENTS for p in sorted(root.glob(pattern))]
    if not documents:
        raise InputError(f"{root}: no README.md or docs/*.md here; run in the checkout or give --root")
    for path in documents:
        text = path.read_text(encoding="utf-8")
        rendered = render_text(text, results, path.relative_to(root).as_posix())
        if rendered != text:
            changed.append(path)
            if write:
                write_text(path, rendered)
    return changed
