"""Tables of networks measured on faces, and of the paper's studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recombinator.study.markdown import POSES, Result, Results, figure, interval, link, markdown
from recombinator.study.plan import QUOTED, QUOTED_COMMON, STUDIES, Run, run_at
from recombinator.utils.text import plural

# The paper's Table 2: AFLW errors of the networks with six branches, trained with occlusion.
PAPER_AFLW = {"rcn-6": 5.60, "sumnet-6": 6.27}


def evaluations(results: Results, dataset: str, split: str) -> Results:
    """Return the results of `evaluate` on one table, by name."""
    return {
        name: r
        for name, r in results.items()
        if r.get("kind") == "evaluation" and (r["data"]["dataset"], r["data"]["split"]) == (dataset, split)
    }


def _started_from(training: dict[str, Any]) -> str:
    """Say where the weights came from at the start: an earlier version of a shipped network, or an earlier stage."""
    if not training.get("start"):
        return ""
    start = Path(training["start"])
    return f", started from an earlier {start.stem if start.parent.name == 'weights_data' else 'stage'}"


def _budget(training: dict[str, Any]) -> str:
    """Describe epochs and minutes of a training; of each one where the weights are a mean of several."""
    parts = training.get("averaged", [training])
    texts = [f"epoch {p['epoch']} of {p['recipe']['epochs']} ({p['seconds'] / 60:.0f} min)" for p in parts]
    return (
        (f"mean of {len(parts)} trainings: " if len(parts) > 1 else "") + " and ".join(texts) + _started_from(parts[0])
    )


def _minutes(training: dict[str, Any]) -> str:
    """Describe the time of a training, summed where the weights are a mean of several."""
    parts = training.get("averaged", [training])
    total = f"{sum(p['seconds'] for p in parts) / 60:.0f} min"
    return total + (f" (mean of {len(parts)} trainings)" if len(parts) > 1 else "") + _started_from(parts[0])


def _images(training: dict[str, Any]) -> str:
    """Return the number of training images; those that a network labeled are counted apart."""
    predicted = training.get("pseudo_labels", 0)
    return f"{training['images'] - predicted:,}" + (f", and {predicted:,} with pseudo-labels" if predicted else "")


# columns of a result of `evaluate`, by their titles
COLUMNS: dict[str, Callable[[Result], str]] = {
    "paper's protocol": lambda r: interval(r, "nme_paper", bold=True),
    "here": lambda r: interval(r, "nme_paper", bold=True),
    "continuous": lambda r: interval(r, "nme"),
    "without the offset": lambda r: figure(r, "nme_without_offset"),
    "outer eye corners": lambda r: figure(r, "nme_outer"),
    "49 points": lambda r: figure(r, "nme_paper_49"),
    "over 10 %": lambda r: f"{100 * r['failure_rate_10']:.1f} %",
    "AUC to 10 %": lambda r: f"{r['auc_10']:.3f}",
    "training images": lambda r: _images(_training(r)),
    "training time": lambda r: _minutes(_training(r)),
    "kept epoch, time": lambda r: _budget(_training(r)),
}


def _training(r: Result) -> dict[str, Any]:
    """Return how a network was trained; of a joint model, how its network for images was."""
    return r["training"].get("image", r["training"])


def _table(first: list[str], rows: list[tuple[list[str], Result]], columns: list[str]) -> str:
    """Return a table in Markdown.

    Args:
        first: Titles of the columns that are not measured.
        rows: Cells of these columns, and the result that the others come from.
        columns: Titles of the others, keys of COLUMNS.
    """
    return markdown([*first, *columns], [[*cells, *(COLUMNS[c](r) for c in columns)] for cells, r in rows])


def _options(model: dict[str, Any]) -> str:
    """List the options that differ from the name's defaults, such as " (size 128, width 1.5, mirror)"."""
    texts = [k if k == "mirror" else f"{k} {v}" for k, v in model.items() if k not in ("name", "keypoints")]
    return f" ({', '.join(texts)})" if texts else ""


def aflw_table(results: Results, suffix: str = "-mtfl") -> str:
    """Compare networks on AFLW with the paper's Table 2.

    Args:
        suffix: End of the results' names; "-mtfl" selects the finished networks.
    """
    rows = []
    selected = {n: r for n, r in evaluations(results, "mtfl", "test").items() if n.endswith(suffix)}
    for name, r in sorted(selected.items(), key=lambda item: item[1]["nme_paper"]):
        model = r["model"]["name"] + _options(r["model"])
        paper = PAPER_AFLW.get(model)
        rows.append(([f"{link(name)}: {model}", f"{paper:.2f}" if paper else "-"], r))
    return _table(["network", "paper"], rows, ["paper's protocol", "continuous", "without the offset", "over 10 %",
                                               "AUC to 10 %", "kept epoch, time"])  # fmt: skip


# README's small table: (method, test set, the paper's figure, our result)
SUMMARY = (
    ("RCN, 6 branches", "AFLW, 5 points", PAPER_AFLW["rcn-6"], "rcn-6-mtfl"),
    ("RCN, 6 branches, the paper's recipe", "AFLW, 5 points", PAPER_AFLW["rcn-6"], "rcn-6-paper"),
    ("SumNet, 6 branches", "AFLW, 5 points", PAPER_AFLW["sumnet-6"], "sumnet-6-mtfl"),
    ("RCN, 5 branches", "300-W Common, 68 points", QUOTED_COMMON["rcn-68"][0], "rcn-68-300w"),
    ("RCN + denoiser", "300-W Common, 68 points", QUOTED_COMMON["joint"][0], "joint-68-300w"),
)


def summary_table(results: Results) -> str:
    """Compare the main networks with the paper, one row per network."""
    rows = [
        ([link(name, method), where, f"{paper:.2f}"], results[name])
        for method, where, paper, name in SUMMARY
        if name in results
    ]
    return _table(["network", "test set", "paper"], rows, ["here", "training images", "training time"])


FASTEST = "rcn-6-fast-mtfl-int8"
MOST_PRECISE_68 = "joint-68-160-300w"


def headline(results: Results) -> str:
    """State README's figures: five points, 68 points, time to train, time per face, and other tools."""
    lines = []
    for _, where, paper, name in (SUMMARY[0], (*SUMMARY[-1][:-1], MOST_PRECISE_68)):
        if name in results:
            r = results[name]
            lines.append(f"{interval(r, 'nme_paper', bold=True, unit=' %')} mean error on {where} ({link(name)}); the "
                         f"paper: {paper:.2f} %.")  # fmt: skip
    short = results.get("speedrun/rcn-6-half-hour")
    if short:
        minutes, where = short["curve"][-1]["seconds"] / 60, link("speedrun/rcn-6-half-hour", "rcn-6")
        lines.append(f"**{minutes:.0f} minutes** of training on two CPU cores, from random weights, give "
                     f"{short['nme_paper']:.2f} % on AFLW ({where}).")  # fmt: skip
    row = results.get("bench-engines", {"rows": {}})["rows"].get(f"{FASTEST} by onnx, 1 thread, batch 1")
    if row and FASTEST in results:
        lines.append(f"**{row['median']:.1f} ms** per face on one CPU thread, without face detection "
                     f"({link('bench-engines', FASTEST)}, {results[FASTEST]['nme_paper']:.2f} % on AFLW).")  # fmt: skip
    tools = results.get("tools", {"rows": [], "tools": {}})
    rows = [row for row in tools["rows"] if (row["set"], row["split"]) == ("MTFL", "test")]
    others = [row for row in rows if "detector" not in tools["tools"][row["tool"]]]
    if rows and others:
        ours, names = rows[0], (row["tool"].replace(", 68 points", "") for row in others)
        named = ", ".join(f"{name} {row['nme_corrected']:.2f} %" for name, row in zip(names, others, strict=True))
        where = link("tools", f"the {ours['shared']:,} faces of AFLW that all of them find")
        lines.append(f"**{ours['nme_corrected']:.2f} %** on whole photographs, with face detection; {named} ({where}).")
    return "".join(f"- {line}\n" for line in lines)


BEYOND = ("rcn-6-mtfl", "rcn-6-mirror-mtfl", "rcn-6-shift-mtfl", "rcn-6-fast-mtfl", "rcn-6-wide", "rcn-6-wide-mirror")


def beyond_table(results: Results) -> str:
    """Compare networks that are not in the paper with rcn-6, with their cost."""
    from recombinator.models import create_model

    rows = []
    for name, r in ((n, results[n]) for n in BEYOND if n in results):
        net = create_model(**r["model"])
        count = sum(p.numel() for p in net.parameters())
        rows.append([
            f"{link(name)}: {r['model']['name']}{_options(r['model'])}", f"{net.size}x{net.size}",
            f"{count:,}", f"{net.multiply_adds() / 1e6:.0f}",
            interval(r, "nme_paper", bold=True), figure(r, "nme"), figure(r, "nme_without_offset"),
        ])  # fmt: skip
    header = ["network", "input, grid", "parameters", "million multiply-adds", "AFLW, paper's protocol",
              "continuous", "without the offset"]  # fmt: skip
    return markdown(header, rows)


CARDS = {
    "rcn-6-mtfl": "AFLW",
    "rcn-6-shift-mtfl": "AFLW",
    "rcn-6-fast-mtfl": "AFLW",
    "rcn-68-300w": "300-W Common",
    "joint-68-300w": "300-W Common",
    "rcn-68-160-300w": "300-W Common",
    "joint-68-160-300w": "300-W Common",
}


def _training_rows(training: dict[str, Any]) -> list[list[str]]:
    """Describe one network's training. An average has no validation error of its own."""
    if str(training["model"]["name"]).startswith("denoiser"):
        criterion = "denoiser, validation: mean of the joint model's error and the error with uniform corruption"
    else:
        criterion = "validation, jittered and occluded, paper's protocol"
    parts = training.get("averaged", [training])
    rows = [] if "averaged" in training else [[criterion, f"{training['validation_nme_paper']:.2f} %"]]
    for number, part in enumerate(parts, 1):
        label = f"training {number} of {len(parts)}, averaged" if len(parts) > 1 else "training"
        rows.append([label, _run_text(part)])
    return [*rows, ["data", f"{training['dataset']}, {training['images']:,} images, fingerprint {training['data']}"]]


def _run_text(training: dict[str, Any]) -> str:
    recipe, machine = training["recipe"], training["machine"]
    return (
        f"recipe {recipe['name']}, seed {training['seed']}, best epoch {training['epoch']} of {recipe['epochs']}"
        f"{_started_from(training)}, {training['seconds'] / 60:.0f} minutes on {plural(machine['threads'], 'thread')} "
        f"of {machine['processor']}, commit {training['commit']}"
    )


def card_table(results: Results, name: str) -> str:
    """Describe a shipped network: its errors and its training."""
    r = results.get(name)
    if r is None:
        return ""
    where = CARDS[name]
    rows = [
        [f"{where}, paper's protocol", interval(r, "nme_paper", unit=" %")],
        [f"{where}, continuous", interval(r, "nme", unit=" %")],
        ["images over 10 %", f"{100 * r['failure_rate_10']:.1f} %"],
        ["AUC to 10 %", f"{r['auc_10']:.3f}"],
    ]
    if len(r["keypoints"]) <= 10:
        by_point = ", ".join(f"{n} {e:.2f}" for n, e in zip(r["keypoints"], r["per_keypoint"], strict=True))
        rows.append(["by keypoint, continuous, %", by_point])
    if "pose" in r.get("by", {}):
        texts = [f"{POSES[p['class']]} {p['nme_paper']:.2f} ({p['images']:,})" for p in r["by"]["pose"]]
        rows.append(["by head pose (images), paper's protocol, %", ", ".join(texts)])
    more = {
        "nme_outer": "normalized by the outer eye corners, continuous", "nme_paper_49": "49 points, paper's protocol",
        "nme_paper_oracle": "paper's protocol with the authors' border oracle",
    }  # fmt: skip
    for key, text in more.items():
        if key in r:
            rows.append([text, f"{r[key]:.2f} %"])
    for part in r["training"].values() if "image" in r["training"] else [r["training"]]:
        rows += _training_rows(part)
    if r["model"]["name"] == "joint":
        rows.append(["denoiser", f"weight {r['model']['weight']:g}, {r['model']['iterations']} passes"])
    return markdown([name, ""], rows)


def _on_common(results: Results) -> Results:
    return {
        n: r for n, r in evaluations(results, "300w", "test").items() if not r.get("occluded") and not r.get("int8")
    }


def common_table(results: Results) -> str:
    """Compare networks on 300-W's Common set with the paper's Table 4."""
    rows = []
    for name, r in sorted(_on_common(results).items(), key=lambda item: -item[1]["nme_paper"]):
        paper = QUOTED_COMMON.get(r["model"]["name"], (None, None))[0]
        rows.append(([link(name), f"{paper:.2f}" if paper else "-"], r))
    return _table(["network", "paper"], rows, ["paper's protocol", "continuous", "outer eye corners", "49 points",
                                               "over 10 %", "AUC to 10 %", "training images"])  # fmt: skip


def table4(results: Results) -> str:
    """Compare with the paper's Table 4. Rows marked (quoted) are the paper's; it had twice the training images."""
    ours = {r["model"]["name"]: (name, r) for name, r in _on_common(results).items()}
    rows = []
    for who, figures in QUOTED_COMMON.items():
        paper = [f"{v:.2f}" if v else "-" for v in figures]
        if who in ours:
            name, r = ours[who]
            own = interval(r, "nme_paper", bold=True)
            own_49 = f"{r['nme_paper_49']:.2f}"
            rows.append([link(name), paper[0], own, f"{r['nme_paper'] - (figures[0] or 0):+.2f}",
                         paper[1], own_49, f"{r['nme_paper_49'] - (figures[1] or 0):+.2f}"])  # fmt: skip
        else:
            rows.append([f"{who} (quoted)", paper[0], "-", "-", paper[1], "-", "-"])
    header = ["method", "68 points: paper", "here", "difference", "49 points: paper", "here", "difference"]
    return markdown(header, rows)


def _study_rows(results: Results, name: str) -> list[tuple[str, Run, dict[str, Any]]]:
    """Return (result's name, run, result) of a study's finished rows, in the paper's order."""
    plan = STUDIES[name]
    runs = [(f"{name}/{r.name}", r) for r in plan.runs]
    runs += [(other, run_at(other)[1]) for other in plan.also]
    return [(key, run, results[key]) for key, run in runs if key in results]


def _contradictions(rows: list[tuple[str, Run, dict[str, Any]]]) -> dict[str, list[str]]:
    """Find, for each row, the rows that it should beat by the paper's figures and does not, beyond both intervals."""
    worse: dict[str, list[str]] = {}
    for key, run, r in rows:
        for _, other, s in rows:
            better_there = run.paper and other.paper and run.paper[0] < other.paper[0]
            if better_there and r["nme_paper_ci95"][0] > s["nme_paper_ci95"][1]:
                worse.setdefault(key, []).append(f"worse than {other.name}")
    return worse


STILL_IMPROVING = 0.01  # relative gain in validation error over the last quarter of the epochs


def _converged(r: dict[str, Any]) -> bool:
    """Return whether the best validation error gained less than 1 % in the last quarter of the epochs."""
    errors = [point["valid"] for point in r.get("curve", [])]
    cut = len(errors) - len(errors) // 4
    return cut in (0, len(errors)) or min(errors) > (1 - STILL_IMPROVING) * min(errors[:cut])


def study_table(results: Results, name: str) -> str:
    """Compare a study's trainings with the paper: error with its interval, difference, budget, and remarks."""
    rows, table = _study_rows(results, name), []
    contradictions = _contradictions(rows)
    for key, run, r in rows:
        paper = run.paper[0] if run.paper else None
        training = r["training"]
        minutes = f", {training['seconds'] / 60:.0f} min" if "seconds" in training else ""
        remarks = contradictions.get(key, []) + ["not converged"] * (not _converged(r))
        table.append([
            link(key, run.name), f"{paper:.2f}" if paper else "-",
            interval(r, "nme_paper", bold=True), f"{r['nme_paper'] - paper:+.2f}" if paper else "-",
            f"{r['nme']:.2f}", f"{training['epoch']} of {training['recipe']['epochs']}{minutes}", "; ".join(remarks),
        ])  # fmt: skip
    if name == "table3":
        table += [[f"{who} (quoted)", f"{aflw:.2f}", "-", "-", "-", "-", ""] for who, (aflw, _) in QUOTED.items()]
    header = ["run", "paper", "paper's protocol", "difference", "continuous", "best epoch, time", "remarks"]
    return markdown(header, table)


def convergence_table(results: Results) -> str:
    """List epochs and minutes until the weights chosen on validation are below 7 % on AFLW, and errors by epoch."""
    table, shown = [], (1, 2, 4, 8, 12)
    for key, run, r in _study_rows(results, "convergence"):
        curve = {point["epoch"]: point for point in r["curve"]}
        below = next((p for p in r["curve"] if (p.get("test") or 100) < 7), None)
        reached = f"{below['epoch']} epochs, {below['seconds'] / 60:.1f} min" if below else "not reached"
        errors = [f"{curve[e]['test']:.2f}" if e in curve and curve[e].get("test") else "-" for e in shown]
        table.append([f"[{run.name}](results/{key}.json)", reached, *errors])
    return markdown(["run", "below 7 %", *(f"epoch {e}" for e in shown)], table)


def speedrun_table(results: Results) -> str:
    """Compare training times with the errors reached; the finished network comes last."""
    runs = [(key, r) for key, _, r in _study_rows(results, "speedrun")]
    table = []
    for key, r in runs + [(name, r) for name, r in results.items() if name == "rcn-6-mtfl"]:
        training, (low, high) = r["training"], r["nme_paper_ci95"]
        speed = [p["images_per_second"] for p in r.get("curve", []) if "images_per_second" in p]
        machine = training["machine"]
        table.append([
            f"[{key.split('/')[-1]}](results/{key}.json)", str(training["recipe"]["epochs"]),
            f"{training['seconds']:.0f} s", f"{sum(speed) / len(speed):.0f}" if speed else "-",
            f"**{r['nme_paper']:.2f}** [{low:.2f}, {high:.2f}]",
            f"{machine['processor']}, {plural(machine['threads'], 'thread')}",
        ])  # fmt: skip
    return markdown(["run", "epochs", "seconds", "images/s", "AFLW, paper's protocol", "machine"], table)
