"""README's and docs' tables from results/*.json.

A document marks a table's place with `<!-- results: NAME -->` and `<!-- end -->`; what stands between is
written here and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from recombinator.errors import InputError
from recombinator.files import write_text
from recombinator.study.plan import QUOTED, QUOTED_COMMON, STUDIES, Run, run_at

DOCUMENTS = ("README.md", "docs/*.md")
_BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# SPEC 8, Table 2: AFLW errors with occlusion, six branches.
PAPER_AFLW = {"rcn-6": 5.60, "sumnet-6": 6.27}


def load_results(root: Path) -> dict[str, dict[str, Any]]:
    """results/NAME.json and results/STUDY/RUN.json by name."""
    found = {}
    folder = root / "results"
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        try:
            found[path.relative_to(folder).with_suffix("").as_posix()] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: not JSON ({error})") from None
    return found


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def evaluations(results: dict[str, dict[str, Any]], dataset: str, split: str) -> dict[str, dict[str, Any]]:
    return {
        name: r
        for name, r in results.items()
        if r.get("kind") == "evaluation" and (r["data"]["dataset"], r["data"]["split"]) == (dataset, split)
    }


def _before(training: dict[str, Any]) -> str:
    start = Path(training.get("start") or "")
    name = start.stem if start.parent.name == "weights_data" else start  # one that shipped
    return f" more, from the weights of {name}" if training.get("start") else ""


def _options(model: dict[str, Any]) -> str:
    """What of a network differs from its name's, such as " (size 128, width 1.5, mirror)"."""
    told = [k if k == "mirror" else f"{k} {v}" for k, v in model.items() if k not in ("name", "keypoints")]
    return f" ({', '.join(told)})" if told else ""


def aflw_table(results: dict[str, dict[str, Any]], ending: str = "-mtfl") -> str:
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
                f"{training['epoch']} of {training['recipe']['epochs']}, {training['seconds'] / 60:.0f} min"
                + _before(training),
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
    return _markdown(header, rows)


BEYOND = ("rcn-6-mtfl", "rcn-6-mirror-mtfl", "rcn-6-fast-mtfl", "rcn-6-wide", "rcn-6-wide-mirror")


def beyond_table(results: dict[str, dict[str, Any]]) -> str:
    """Our own networks beside the paper's, with what they cost."""
    from recombinator.models import create_model

    rows = []
    for name, r in ((n, results[n]) for n in BEYOND if n in results):
        net = create_model(**r["model"])
        count = sum(p.numel() for p in net.parameters())
        rows.append([
            f"[{name}](results/{name}.json): {r['model']['name']}{_options(r['model'])}", f"{net.size}x{net.size}",
            f"{count:,}", f"{net.multiply_adds() / 1e6:.0f}",
            "**{:.2f}** [{:.2f}, {:.2f}]".format(r["nme_paper"], *r["nme_paper_ci95"]),
            f"{r['nme']:.2f}", f"{r['nme_without_offset']:.2f}",
        ])  # fmt: skip
    header = ["network", "input, grid", "parameters", "million multiply-adds", "AFLW, paper's protocol",
              "continuous", "without the offset"]  # fmt: skip
    return _markdown(header, rows)


CARDS = {
    "rcn-6-mtfl": "AFLW",
    "rcn-6-fast-mtfl": "AFLW",
    "rcn-68-300w": "300-W Common",
    "joint-68-300w": "300-W Common",
}


def _trained(training: dict[str, Any]) -> list[list[str]]:
    recipe = training["recipe"]
    rows = [
        [
            "the denoiser's validation: mean of the mended and the uniformly corrupted error"
            if str(training["model"]["name"]).startswith("denoiser")
            else "validation, jittered and occluded, paper's protocol",
            f"{training['validation_nme_paper']:.2f} %",
        ],
        [
            "training",
            f"recipe {recipe['name']}, seed {training['seed']}, epoch {training['epoch']} of {recipe['epochs']}"
            f"{_before(training)}, {training['seconds'] / 60:.0f} minutes on {training['machine']['threads']} thread "
            f"of {training['machine']['processor']}, commit {training['commit']}",
        ],
        *([["averaged", _averaged(training["averaged"])]] if "averaged" in training else []),
        ["data", f"{training['dataset']}, {training['images']} images, fingerprint {training['data']}"],
    ]
    return rows


def _averaged(parts: list[dict[str, Any]]) -> str:
    return "the mean of the weights of " + " and ".join(f"`{p['command']}` (epoch {p['epoch']})" for p in parts)


def card_table(results: dict[str, dict[str, Any]], name: str) -> str:
    """A shipped network: what it reaches and how it was trained."""
    r = results.get(name)
    if r is None:
        return ""
    where = CARDS[name]
    rows = [
        [f"{where}, paper's protocol", "{:.2f} % [{:.2f}, {:.2f}]".format(r["nme_paper"], *r["nme_paper_ci95"])],
        [f"{where}, continuous", "{:.2f} % [{:.2f}, {:.2f}]".format(r["nme"], *r["nme_ci95"])],
        ["images over 10 %", f"{100 * r['failure_rate_10']:.1f} %"],
        ["AUC to 10 %", f"{r['auc_10']:.3f}"],
    ]
    if len(r["keypoints"]) <= 10:
        by_point = ", ".join(f"{n} {e:.2f}" for n, e in zip(r["keypoints"], r["per_keypoint"], strict=True))
        rows.append(["by keypoint, continuous, %", by_point])
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
    return _markdown([name, ""], rows)


def _on_common(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = evaluations(results, "300w", "test")
    return {n: r for n, r in found.items() if not r.get("occluded") and not r.get("int8")}


def common_table(results: dict[str, dict[str, Any]]) -> str:
    """300-W's Common set beside the paper's Table 4."""
    rows = []
    for name, r in sorted(_on_common(results).items(), key=lambda item: -item[1]["nme_paper"]):
        model = r["model"]["name"]
        training = r["training"].get("image", r["training"])
        paper = QUOTED_COMMON.get(model, (None, None))[0]
        rows.append([
            f"[{name}](results/{name}.json)", f"{paper:.2f}" if paper else "-",
            "**{:.2f}** [{:.2f}, {:.2f}]".format(r["nme_paper"], *r["nme_paper_ci95"]),
            "{:.2f} [{:.2f}, {:.2f}]".format(r["nme"], *r["nme_ci95"]), f"{r['nme_outer']:.2f}",
            f"{r['nme_paper_49']:.2f}", f"{100 * r['failure_rate_10']:.1f} %", f"{r['auc_10']:.3f}",
            f"{training['images']:,}",
        ])  # fmt: skip
    header = ["network", "paper", "ours, paper's protocol", "ours, continuous", "outer eye corners", "49 points",
              "over 10 %", "AUC to 10 %", "training images"]  # fmt: skip
    return _markdown(header, rows)


def table4(results: dict[str, dict[str, Any]]) -> str:
    """Common beside the paper's Table 4; rows of others are quoted from it. The paper had twice the training images."""
    ours = {r["model"]["name"]: (name, r) for name, r in _on_common(results).items()}
    rows = []
    for who, figures in QUOTED_COMMON.items():
        paper = [f"{v:.2f}" if v else "-" for v in figures]
        if who in ours:
            name, r = ours[who]
            own = "**{:.2f}** [{:.2f}, {:.2f}]".format(r["nme_paper"], *r["nme_paper_ci95"])
            own_49 = f"{r['nme_paper_49']:.2f}"
            rows.append([f"[{name}](results/{name}.json)", paper[0], own, f"{r['nme_paper'] - (figures[0] or 0):+.2f}",
                         paper[1], own_49, f"{r['nme_paper_49'] - (figures[1] or 0):+.2f}"])  # fmt: skip
        else:
            rows.append([f"{who} (quoted)", paper[0], "-", "-", paper[1], "-", "-"])
    header = ["method", "68 points: paper", "ours", "difference", "49 points: paper", "ours", "difference"]
    return _markdown(header, rows)


def joint_table(results: dict[str, dict[str, Any]]) -> str:
    """Every comparison of networks on the same images: differences with the paired bootstrap's interval."""
    rows = []
    for name, r in results.items():
        if r.get("kind") != "comparison":
            continue
        for part, text in (("all", "all"), ("worst_tenth", "the first one's worst tenth")):
            for row in r["rows"]:
                low, high = row[f"nme_paper_{part}_difference_ci95"]
                difference = f"{row[f'nme_paper_{part}_difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
                images = ("covered" if r["occluded"] else "as they are") + f", {text}"
                rows.append([f"[{images}](results/{name}.json)", row["weights"], f"{row[f'nme_paper_{part}']:.2f}",
                             "" if row is r["rows"][0] else difference])  # fmt: skip
    return _markdown(["images", "network", "paper's protocol", "difference from the first"], rows)


def denoiser_table(results: dict[str, dict[str, Any]]) -> str:
    """Corrupted points found again, beside simple rivals."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "denoising":
            for who, row in r["rows"].items():
                label = f"[{name}](results/{name}.json)" if who == "denoiser" else who
                error = "{:.2f} [{:.2f}, {:.2f}]".format(row["nme_paper"], *row["nme_paper_ci95"])
                told = [label, f"{r['corrupted']}", error, f"{row['nme']:.2f}"]
                rows += [told] if told not in rows else []  # the rivals are the same beside every denoiser
    return _markdown(["model", "corrupted of 68", "error, paper's grid", "continuous"], rows)


def speed_table(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for r in (r for name, r in results.items() if name == "bench"):
        for name, row in r["rows"].items():
            ratio = f"{row['ratio_to_plain']:.2f}" if "ratio_to_plain" in row else ""
            other = f"{row['ratio_to_plain_channels_last']:.2f}" if ratio else ""
            speed = f"{row['median']:.3g} {row['unit']} [{row['low']:.3g}, {row['high']:.3g}]"
            dense = f"{row['times_faster_than_dense']:.1f}" if "times_faster_than_dense" in row else ""
            rows.append([name, speed, ratio, other, dense])
    header = ["what", "median [lowest, highest]", "× plain", "× plain channels-last", "× dense"]
    return _markdown(header, rows)


def photographs_table(results: dict[str, dict[str, Any]]) -> str:
    """Whole photographs, detection included."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "photographs":
            error = "{:.2f} [{:.2f}, {:.2f}]".format(r["nme"], *r["nme_ci95"]) if r["found"] else "-"
            true_crop = f"{r['nme_true_crop']:.2f}" if r["found"] else "-"
            faces = f"{r['found']:,} of {r['faces']:,} ({100 * r['found'] / r['faces']:.1f} %)"
            rows.append([f"[{r['data']['dataset']}, {r['data']['split']}](results/{name}.json)", r["weights"],
                         str(r["passes"]), faces, str(r["others"]), error, true_crop])  # fmt: skip
    header = ["photographs", "network", "passes", "faces found", "other detections", "error of those found",
              "the same faces, true crop"]  # fmt: skip
    return _markdown(header, sorted(rows))


def reliability_table(results: dict[str, dict[str, Any]]) -> str:
    """How well "within 3 pixels" holds, and how well low confidence finds covered points."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "reliability":
            errors = []
            for part in ("plain", "covered"):
                row = next(row for row in r[part] if row["radius"] == 3)
                before, after = 100 * row["error_uncalibrated"], 100 * row["error"]
                errors += [f"{100 * row['right']:.1f} %", f"{before:.1f} to {after:.1f} %"]
            where = f"[{r['data']['dataset']}, {r['data']['split']}](results/{name}.json)"
            shares = [r.get("flagged_covered"), r.get("flagged_visible")]
            flags = " / ".join("-" if v is None else f"{100 * v:.0f} %" for v in shares)
            area = "-" if r["covered_auroc"] is None else f"{r['covered_auroc']:.3f}"
            rows.append([where, r["weights"], f"{r['calibration'].get('temperature', 1):g}", *errors, area, flags])
    header = ["images", "network", "temperature", "plain: true", "calibration error", "covered: true",
              "calibration error", "AUROC of covered points", "called covered: covered / visible"]  # fmt: skip
    return _markdown(header, sorted(rows))


def machine_line(results: dict[str, dict[str, Any]]) -> str:
    lines = []
    for r in (r for name, r in results.items() if name == "bench"):
        p = r["provenance"]
        lines.append(
            f"{p['machine']['processor']}, {r['threads']} threads, torch {p['versions']['torch']}, {p['date']}, "
            f"median of {r['rounds']} interleaved rounds, training batch {r['batch']}.\n"
        )
    return "".join(lines)


def explorations_table(results: dict[str, dict[str, Any]]) -> str:
    """Short runs that chose the recipe, one source after the other, best first."""
    rows = []
    found = results.get("explorations", {}).get("rows", [])
    for r in sorted(found, key=lambda r: (-r["images"], r["epochs"], r["final"]["clean"])):
        photometric = "/".join(f"{r[k]:g}" for k in ("gamma", "blur", "noise"))
        settings = [f"{r[k]:g}" for k in ("learning_rate", "weight_decay", "sigma", "zoom")]
        worst = r["final"].get("worst_tenth_nme")
        final = [f"{r['final'][k]:.2f}" for k in ("valid", "clean")] + [f"{worst:.2f}" if worst else ""]
        turned = ["flips" if r["flip"] else "no flips", f"{r['stretch']:g}"]
        rows.append([r["data"], str(r["epochs"]), *settings, photometric, *turned, *final])
    header = ["data", "epochs", "rate", "decay", "spread", "zoom", "gamma/blur/noise", "flips", "stretch", "jittered",
              "plain", "worst tenth"]  # fmt: skip
    return _markdown(header, rows)


def _study_rows(results: dict[str, dict[str, Any]], name: str) -> list[tuple[str, Run, dict[str, Any]]]:
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


def study_table(results: dict[str, dict[str, Any]], name: str) -> str:
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
    return _markdown(header, table)


def convergence_table(results: dict[str, dict[str, Any]]) -> str:
    """Epochs and minutes until the weights chosen on validation are below 7 % on AFLW, and the way there."""
    table, shown = [], (1, 2, 4, 8, 12)
    for key, run, r in _study_rows(results, "convergence"):
        curve = {point["epoch"]: point for point in r["curve"]}
        below = next((p for p in r["curve"] if (p.get("test") or 100) < 7), None)
        reached = f"{below['epoch']} epochs, {below['seconds'] / 60:.1f} min" if below else "not reached"
        errors = [f"{curve[e]['test']:.2f}" if e in curve and curve[e].get("test") else "-" for e in shown]
        table.append([f"[{run.name}](results/{key}.json)", reached, *errors])
    return _markdown(["run", "below 7 %", *(f"epoch {e}" for e in shown)], table)


def speedrun_table(results: dict[str, dict[str, Any]]) -> str:
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
    return _markdown(["run", "epochs", "seconds", "images/s", "AFLW, paper's protocol", "machine"], table)


def engines_table(results: dict[str, dict[str, Any]]) -> str:
    """Shipped graphs in 32 and in 8 bits: errors of the same images, and milliseconds a face, alone."""
    rows = []
    times = {k: row for _, r in sorted(results.items()) if r.get("kind") == "bench" for k, row in r["rows"].items()}
    for name in sorted(n.removesuffix("-int8") for n, r in results.items() if r.get("int8")):
        for key in (name, f"{name}-int8"):
            r = results.get(key)
            spent = [times.get(f"{key} by onnx, {threads}, batch 1") for threads in ("1 thread", "2 threads")]
            if r:
                rows.append([
                    f"[{key}](results/{key}.json)", f"{r['data']['dataset']}, {r['data']['split']}",
                    f"{r['nme_paper']:.2f}", f"{r['nme']:.2f}",
                    *(f"{t['median']:.1f} ms [{t['low']:.1f}, {t['high']:.1f}]" if t else "-" for t in spent),
                ])  # fmt: skip
    header = ["graph", "images", "paper's protocol", "continuous", "a face, one thread", "two threads"]
    return _markdown(header, rows)


def robustness_table(results: dict[str, dict[str, Any]]) -> str:
    """Error at the smallest, the neutral and the largest value of each disturbance."""
    rows, header = [], ["images", "disturbance"]
    for name, r in ((n, r) for n, r in results.items() if r.get("kind") == "robustness"):
        for kind in dict.fromkeys(row["disturbance"] for row in r["rows"]):
            told = [row for row in r["rows"] if row["disturbance"] == kind]
            values = list(dict.fromkeys(row["value"] for row in told))
            cells = []
            for who in dict.fromkeys(row["weights"] for row in told):
                line = [row["nme"] for row in told if row["weights"] == who]
                shown = dict.fromkeys((0, values.index(1.0) if 1.0 in values and values[0] else 0, len(line) - 1))
                cells.append(f"{Path(who).name}: " + " / ".join(f"{line[i]:.1f}" for i in shown))
            where = f"[{r['data']['dataset']}, {r['images']} images](results/{name}.json)"
            rows.append([where, f"{kind}, {values[0]:g} to {values[-1]:g} {told[0]['unit']}", "; ".join(cells)])
    return _markdown([*header, "error, continuous, at these ends (and undisturbed, between)"], rows)


def models_table(results: dict[str, dict[str, Any]]) -> str:
    """Every network by name, counted from its definition."""
    from recombinator.models import catalogue

    rows = [
        [m["name"], f"{m['parameters']:,}", f"{m['multiply_adds'] / 1e6:,.0f}", str(m["keypoints"])]
        for m in catalogue()
    ]
    return _markdown(["network", "parameters", "million multiply-adds", "keypoints"], rows)


TABLES: dict[str, Callable[[dict[str, dict[str, Any]]], str]] = {
    "aflw": aflw_table,
    "beyond": beyond_table,
    "aflw-all": partial(aflw_table, ending=""),
    **{f"card-{name}": partial(card_table, name=name) for name in CARDS},
    "explorations": explorations_table,
    "speed": speed_table,
    "common": common_table,
    "table4": table4,
    "joint": joint_table,
    "denoisers": denoiser_table,
    **{name: partial(study_table, name=name) for name in STUDIES},
    "models": models_table,
    "convergence": convergence_table,
    "engines": engines_table,
    "robustness": robustness_table,
    "speedrun": speedrun_table,
    "machine": machine_line,
    "photographs": photographs_table,
    "reliability": reliability_table,
}


def render_text(text: str, results: dict[str, dict[str, Any]], where: str) -> str:
    """The document with every marked table written anew. Raises InputError for an unknown table."""

    def table(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise InputError(f"{where}: no table is called {name!r} (known: {', '.join(TABLES)})")
        text = TABLES[name](results)
        if Path(where).parent.name == "docs":  # links start from the document
            text = text.replace("](results/", "](../results/")
        return f"{match[1]}{text}{match[3]}"

    return _BLOCK.sub(table, text)


def render_documents(root: Path, write: bool) -> list[Path]:
    """Documents whose tables differ from results/, rewritten if `write`."""
    results, changed = load_results(root), []
    documents = [p for pattern in DOCUMENTS for p in sorted(root.glob(pattern))]
    if not documents:
        raise InputError(f"{root}: no README.md or docs/*.md here; run in the checkout or give --root")
    for path in documents:
        text = path.read_text(encoding="utf-8")
        rendered = render_text(text, results, str(path))
        if rendered != text:
            changed.append(path)
            if write:
                write_text(path, rendered)
    return changed
