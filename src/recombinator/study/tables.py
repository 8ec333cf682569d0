"""Tables of networks measured on faces, and of the paper's studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recombinator.study.markdown import POSES, Results, interval, link, markdown
from recombinator.study.plan import QUOTED, QUOTED_COMMON, STUDIES, Run, run_at

# SPEC 8, Table 2: AFLW errors with occlusion, six branches.
PAPER_AFLW = {"rcn-6": 5.60, "sumnet-6": 6.27}


def evaluations(results: Results, dataset: str, split: str) -> Results:
    return {
        name: r
        for name, r in results.items()
        if r.get("kind") == "evaluation" and (r["data"]["dataset"], r["data"]["split"]) == (dataset, split)
    }


def _before(training: dict[str, Any]) -> str:
    start = Path(training.get("start") or "")
    name = start.stem if start.parent.name == "weights_data" else start  # one that shipped
    return f" more, from the weights of {name}" if training.get("start") else ""


def _length(training: dict[str, Any]) -> str:
    """Epochs and minutes; of each part where the weights are a mean."""
    parts = training.get("averaged", [training])
    told = [f"{p['epoch']} of {p['recipe']['epochs']}, {p['seconds'] / 60:.0f} min{_before(p)}" for p in parts]
    return ("mean of: " if len(parts) > 1 else "") + "; ".join(told)


def _options(model: dict[str, Any]) -> str:
    """What of a network differs from its name's, such as " (size 128, width 1.5, mirror)"."""
    told = [k if k == "mirror" else f"{k} {v}" for k, v in model.items() if k not in ("name", "keypoints")]
    return f" ({', '.join(told)})" if told else ""


def aflw_table(results: Results, ending: str = "-mtfl") -> str:
    """AFLW beside the paper's Table 2; `ending` of the results' names: "-mtfl" marks the finished networks."""
    rows = []
    found = {n: r for n, r in evaluations(results, "mtfl", "test").items() if n.endswith(ending)}
    for name, r in sorted(found.items(), key=lambda item: item[1]["nme_paper"]):
        model, training = r["model"]["name"] + _options(r["model"]), r["training"]
        low, high = r["nme_paper_ci95"]
        c_low, c_high = r["nme_ci95"]
        paper = PAPER_AFLW.get(model)
        rows.append(
            [
                f"[{name}](results/{name}.json): {model}, {training['recipe']['name']} recipe",
                f"{paper:.2f}" if paper else "-",
                f"**{r['nme_paper']:.2f}** [{low:.2f}, {high:.2f}]",
                f"{r['nme']:.2f} [{c_low:.2f}, {c_high:.2f}]",
                f"{r['nme_without_offset']:.2f}" if "nme_without_offset" in r else "-",
                f"{100 * r['failure_rate_10']:.1f} %",
                f"{r['auc_10']:.3f}",
                _length(training),
            ]
        )
    header = [
        "network",
        "paper",
        "ours, paper's protocol",
        "ours, continuous",
        "without the offset",
        "over 10 %",
        "AUC to 10 %",
        "epochs, time",
    ]
    return markdown(header, rows)


BEYOND = ("rcn-6-mtfl", "rcn-6-mirror-mtfl", "rcn-6-shift-mtfl", "rcn-6-fast-mtfl", "rcn-6-wide", "rcn-6-wide-mirror")


def beyond_table(results: Results) -> str:
    """Our own networks beside the paper's, with what they cost."""
    from recombinator.models import create_model

    rows = []
    for name, r in ((n, results[n]) for n in BEYOND if n in results):
        net = create_model(**r["model"])
        count = sum(p.numel() for p in net.parameters())
        rows.append([
            f"[{name}](results/{name}.json): {r['model']['name']}{_options(r['model'])}", f"{net.size}x{net.size}",
            f"{count:,}", f"{net.multiply_adds() / 1e6:.0f}",
            interval(r, "nme_paper", bold=True),
            f"{r['nme']:.2f}", f"{r['nme_without_offset']:.2f}",
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
}


def _trained(training: dict[str, Any]) -> list[list[str]]:
    recipe = training["recipe"]
    judged = (
        "the denoiser's validation: mean of the mended and the uniformly corrupted error"
        if str(training["model"]["name"]).startswith("denoiser")
        else "validation, jittered and occluded, paper's protocol"
    )
    told = (
        f"recipe {recipe['name']}, seed {training['seed']}, epoch {training['epoch']} of {recipe['epochs']}"
        f"{_before(training)}, {training['seconds'] / 60:.0f} minutes on {training['machine']['threads']} thread "
        f"of {training['machine']['processor']}, commit {training['commit']}"
    )
    rows = [
        # an average was not judged by its parts' own validation
        ["averaged", _averaged(training["averaged"])]
        if "averaged" in training
        else [judged, f"{training['validation_nme_paper']:.2f} %"],
        ["training" if "averaged" not in training else "training of the last part", told],
        ["data", f"{training['dataset']}, {training['images']} images, fingerprint {training['data']}"],
    ]
    return rows


def _averaged(parts: list[dict[str, Any]]) -> str:
    return "the mean of the weights of " + " and ".join(f"`{p['command']}` (epoch {p['epoch']})" for p in parts)


def card_table(results: Results, name: str) -> str:
    """A shipped network: what it reaches and how it was trained."""
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
        told = [f"{POSES[p['class']]} {p['nme_paper']:.2f} ({p['images']:,})" for p in r["by"]["pose"]]
        rows.append(["by the head's pose (images), paper's protocol, %", ", ".join(told)])
    more = {
        "nme_outer": "by the outer eye corners, continuous", "nme_paper_49": "49 points, paper's protocol",
        "nme_paper_oracle": "with the authors' border oracle",
    }  # fmt: skip
    for key, text in more.items():
        if key in r:
            rows.append([text, f"{r[key]:.2f} %"])
    for part in r["training"].values() if "image" in r["training"] else [r["training"]]:
        rows += _trained(part)
    if r["model"]["name"] == "joint":
        rows.append(["denoiser", f"weight {r['model']['weight']:g}, {r['model']['iterations']} pass(es)"])
    return markdown([name, ""], rows)


def _on_common(results: Results) -> Results:
    found = evaluations(results, "300w", "test")
    return {n: r for n, r in found.items() if not r.get("occluded") and not r.get("int8")}


def common_table(results: Results) -> str:
    """300-W's Common set beside the paper's Table 4."""
    rows = []
    for name, r in sorted(_on_common(results).items(), key=lambda item: -item[1]["nme_paper"]):
        model = r["model"]["name"]
        training = r["training"].get("image", r["training"])
        paper = QUOTED_COMMON.get(model, (None, None))[0]
        rows.append([
            link(name), f"{paper:.2f}" if paper else "-",
            interval(r, "nme_paper", bold=True),
            interval(r, "nme"), f"{r['nme_outer']:.2f}",
            f"{r['nme_paper_49']:.2f}", f"{100 * r['failure_rate_10']:.1f} %", f"{r['auc_10']:.3f}",
            f"{training['images']:,}",
        ])  # fmt: skip
    header = ["network", "paper", "ours, paper's protocol", "ours, continuous", "outer eye corners", "49 points",
              "over 10 %", "AUC to 10 %", "training images"]  # fmt: skip
    return markdown(header, rows)


def table4(results: Results) -> str:
    """Common beside the paper's Table 4; rows of others are quoted from it. The paper had twice the training images."""
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
    header = ["method", "68 points: paper", "ours", "difference", "49 points: paper", "ours", "difference"]
    return markdown(header, rows)


def _study_rows(results: Results, name: str) -> list[tuple[str, Run, dict[str, Any]]]:
    """(result's name, run, result) of what a study's table shows and is done, in the paper's order."""
    plan = STUDIES[name]
    runs = [(f"{name}/{r.name}", r) for r in plan.runs]
    runs += [(other, run_at(other)[1]) for other in plan.beside]
    return [(key, run, results[key]) for key, run in runs if key in results]


def _against_the_paper(rows: list[tuple[str, Run, dict[str, Any]]]) -> dict[str, list[str]]:
    """For each row, the rows that the paper has the other way round: ours differ beyond both 95 % intervals."""
    found: dict[str, list[str]] = {}
    for key, run, r in rows:
        for _, other, s in rows:
            better_there = run.paper and other.paper and run.paper[0] < other.paper[0]
            if better_there and r["nme_paper_ci95"][0] > s["nme_paper_ci95"][1]:
                found.setdefault(key, []).append(other.name)
    return found


def study_table(results: Results, name: str) -> str:
    """A study beside the paper: its figure, ours with the interval over images, the difference, and what contradicts
    the paper's order."""
    rows, table = _study_rows(results, name), []
    contradicted = _against_the_paper(rows)
    for key, run, r in rows:
        low, high = r["nme_paper_ci95"]
        paper = run.paper[0] if run.paper else None
        training = r["training"]
        table.append([
            f"[{run.name}](results/{key}.json)", f"{paper:.2f}" if paper else "-",
            f"**{r['nme_paper']:.2f}** [{low:.2f}, {high:.2f}]", f"{r['nme_paper'] - paper:+.2f}" if paper else "-",
            f"{r['nme']:.2f}", f"{training['epoch']} of {training['recipe']['epochs']}",
            ", ".join(f"worse than {other}" for other in contradicted.get(key, [])),
        ])  # fmt: skip
    if name == "table3":
        table += [[f"{who} (quoted)", f"{aflw:.2f}", "-", "-", "-", "-", ""] for who, (aflw, _) in QUOTED.items()]
    header = ["run", "paper", "ours, paper's protocol", "difference", "ours, continuous", "epoch", "against the paper"]
    return markdown(header, table)


def convergence_table(results: Results) -> str:
    """Epochs and minutes until the weights chosen on validation are below 7 % on AFLW, and the way there."""
    table, shown = [], (1, 2, 4, 8, 12)
    for key, run, r in _study_rows(results, "convergence"):
        curve = {point["epoch"]: point for point in r["curve"]}
        below = next((p for p in r["curve"] if (p.get("test") or 100) < 7), None)
        reached = f"{below['epoch']} epochs, {below['seconds'] / 60:.1f} min" if below else "not reached"
        errors = [f"{curve[e]['test']:.2f}" if e in curve and curve[e].get("test") else "-" for e in shown]
        table.append([f"[{run.name}](results/{key}.json)", reached, *errors])
    return markdown(["run", "below 7 %", *(f"epoch {e}" for e in shown)], table)


def speedrun_table(results: Results) -> str:
    """Time to an error, the clock of training and validation; what finished networks took below."""
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
            f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}",
        ])  # fmt: skip
    return markdown(["run", "epochs", "seconds", "images/s", "AFLW, paper's protocol", "machine"], table)
