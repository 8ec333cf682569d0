"""Tables of speeds, comparisons, calibration, robustness, trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recombinator.study.markdown import POSES, TEST_SETS, Result, Results, interval, link, markdown, table_name


def comparison_table(results: Results, prefix: str) -> str:
    """Compare networks on the same images: differences with the interval of the paired bootstrap."""
    rows = []
    for name, r in results.items():
        if r.get("kind") != "comparison" or not name.startswith(prefix):
            continue
        for part, text in (("all", "all"), ("worst_tenth", "the first network's worst tenth")):
            for row in r["rows"]:
                low, high = row[f"nme_paper_{part}_difference_ci95"]
                difference = f"{row[f'nme_paper_{part}_difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
                images = ("occluded" if r["occluded"] else "plain") + f", {text}"
                network, error = Path(row["weights"]).stem, f"{row[f'nme_paper_{part}']:.2f}"
                first = row is r["rows"][0]
                rows.append([f"[{images}](results/{name}.json)", network, error, "" if first else difference])
    return markdown(["images", "network", "paper's protocol", "difference from the first"], rows)


def denoiser_table(results: Results) -> str:
    """Compare denoisers with simple baselines on corrupted points."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "denoising":
            for who, row in r["rows"].items():
                label = link(name) if who == "denoiser" else who
                error = interval(row, "nme_paper")
                t = r["training"]
                budget = (f"{t['images']:,}", f"{t['epoch']} of {t['recipe']['epochs']}, {t['seconds'] / 60:.0f} min")
                cells = [label, f"{r['corrupted']}", error, f"{row['nme']:.2f}"]
                cells += budget if who == "denoiser" else ("-", "-")
                rows += [cells] if cells not in rows else []  # every denoiser's file repeats the baselines
    return markdown(
        ["model", "corrupted of 68", "paper's protocol", "continuous", "training images", "best epoch, time"], rows
    )


def speed_table(results: Results) -> str:
    """List the benchmark's rows, with ratios to the plain form."""
    rows = []
    for r in (r for name, r in results.items() if name == "bench"):
        for name, row in r["rows"].items():
            ratio = f"{row['ratio_to_plain']:.2f}" if "ratio_to_plain" in row else ""
            other = f"{row['ratio_to_plain_channels_last']:.2f}" if ratio else ""
            median, low, high = (
                f"{v:.3g}" if v < 1000 else f"{v:,.0f}" for v in (row["median"], row["low"], row["high"])
            )
            speed = f"{median} {row['unit']} [{low}, {high}]"
            dense = f"{row['times_faster_than_dense']:.1f}" if "times_faster_than_dense" in row else ""
            label = name.replace(" by onnx,", ", ONNX Runtime,").replace(" by torch,", ", torch,")
            label = label.replace(", by FFT", " by FFT").replace("training, ours", "training, this package")
            rows.append([label, speed, ratio, other, dense])
    header = ["measurement", "median [lowest, highest]", "× plain", "× plain channels-last", "× dense"]
    return markdown(header, rows)


def machine_line(results: Results) -> str:
    """Name the machine and the settings of the benchmark."""
    lines = []
    for r in (r for name, r in results.items() if name == "bench"):
        p = r["provenance"]
        lines.append(
            f"{p['machine']['processor']}, {r['threads']} threads, torch {p['versions']['torch']}, {p['date']}, "
            f"median of {r['rounds']} interleaved rounds, training batch {r['batch']}.\n"
        )
    return "".join(lines)


def engines_table(results: Results) -> str:
    """Compare shipped graphs, in 32 and 8 bits: errors on the same images, and milliseconds per face."""
    rows = []
    times = {k: row for _, r in sorted(results.items()) if r.get("kind") == "bench" for k, row in r["rows"].items()}
    for name in sorted(results):
        r = results[name]
        measured = [times.get(f"{name} by onnx, {threads}, batch 1") for threads in ("1 thread", "2 threads")]
        if r.get("int8") or any(measured):
            rows.append([
                link(name), TEST_SETS[r["data"]["dataset"]],
                f"{r['nme_paper']:.2f}", f"{r['nme']:.2f}",
                *(f"{t['median']:.1f} ms [{t['low']:.1f}, {t['high']:.1f}]" if t else "-" for t in measured),
            ])  # fmt: skip
    header = ["graph", "test set", "paper's protocol", "continuous", "per face, one thread", "two threads"]
    return markdown(header, rows)


def photographs_table(results: Results) -> str:
    """List errors on whole photographs, detection included."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "photographs":
            error = interval(r, "nme") if r["found"] else "-"
            true_crop = f"{r['nme_true_crop']:.2f}" if r["found"] else "-"
            faces = f"{r['found']:,} of {r['faces']:,} ({100 * r['found'] / r['faces']:.1f} %)"
            rows.append([link(name, table_name(r["data"])), r["weights"],
                         str(r["passes"]), faces, str(r["others"]), error, true_crop])  # fmt: skip
    header = ["photographs", "network", "passes", "faces found", "other detections", "error of those found",
              "same faces, ground-truth crop"]  # fmt: skip
    return markdown(header, sorted(rows))


def reliability_table(results: Results) -> str:
    """Show how well "within 3 pixels" holds, and how well low confidence finds occluded points."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "reliability":
            errors = []
            for part in ("plain", "covered"):
                row = next(row for row in r[part] if row["radius"] == 3)
                before, after = 100 * row["error_uncalibrated"], 100 * row["error"]
                errors += [f"{100 * row['right']:.1f} %", f"{before:.1f} to {after:.1f} %"]
            where = link(name, table_name(r["data"]))
            shares = [r.get("flagged_covered"), r.get("flagged_visible")]
            flags = " / ".join("-" if v is None else f"{100 * v:.0f} %" for v in shares)
            area = "-" if r["covered_auroc"] is None else f"{r['covered_auroc']:.3f}"
            rows.append([where, r["weights"], f"{r['calibration'].get('temperature', 1):g}", *errors, area, flags])
    header = ["images", "network", "temperature", "plain: hit rate", "calibration error", "occluded: hit rate",
              "calibration error", "AUROC of occluded points", "flagged: occluded / visible points"]  # fmt: skip
    return markdown(header, sorted(rows))


def _disturbed(r: Result, kind: str) -> tuple[list[float], str, dict[str, list[float]]]:
    """Return a disturbance's values, their unit, and each network's errors at them."""
    rows = [row for row in r["rows"] if row["disturbance"] == kind]
    errors: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(Path(row["weights"]).name, []).append(row["nme"])
    unit = rows[0]["unit"].replace("grey", "gray")  # earlier files have the other spelling
    return list(dict.fromkeys(row["value"] for row in rows)), unit, errors


def robustness_table(results: Results) -> str:
    """List errors at the smallest, the neutral and the largest value of each disturbance."""
    table = []
    for name, r in ((n, r) for n, r in results.items() if r.get("kind") == "robustness"):
        for kind in dict.fromkeys(row["disturbance"] for row in r["rows"]):
            values, unit, errors = _disturbed(r, kind)
            # the first and the last value, and 1 between them where that is the neutral factor
            shown = dict.fromkeys((0, values.index(1.0) if 1.0 in values and values[0] else 0, len(values) - 1))
            cells = [f"{who}: " + " / ".join(f"{line[i]:.1f}" for i in shown) for who, line in errors.items()]
            where = link(name, f"{TEST_SETS[r['data']['dataset']]}, {r['images']} images")
            table.append([where, f"{kind}: {' / '.join(f'{values[i]:g}' for i in shown)} ({unit})", "; ".join(cells)])
    return markdown(["images", "disturbance: values (unit)", "error at these values, continuous"], table)


def noise_table(results: Results, name: str) -> str:
    """List every network's error by the standard deviation of Gaussian noise."""
    if name not in results:
        return ""
    values, unit, errors = _disturbed(results[name], "noise")
    rows = [[who, *(f"{e:.1f}" for e in line)] for who, line in errors.items()]
    return markdown([link(name, f"noise, {unit}"), *(f"{v:g}" for v in values)], rows)


def explorations_table(results: Results) -> str:
    """List the short trainings that chose the recipe, best first within a source."""
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
    return markdown(header, rows)


def runs_table(results: Results, name: str) -> str:
    """List the trainings of a `study collect` file, worst first: settings that differ from the fast recipe's, and the
    validation errors of the best epoch."""
    rows = []
    for run in results.get(name, {}).get("runs", []):
        best = min(run["curve"], key=lambda point: point["valid"])
        options = {k: v for k, v in run["model"].items() if k not in ("name", "keypoints")}
        settings = ", ".join(f"{k}={_plain(v)}" for k, v in (options | run["changes"]).items() if k != "name")
        minutes = run["curve"][-1]["seconds"] / 60
        rows.append([
            run["model"]["name"], settings or "as the fast recipe", f"{best['epoch']} of {run['epochs']}",
            f"{best['valid']:.2f}", f"{best['clean']:.2f}", f"{minutes:.0f}",
        ])  # fmt: skip
    header = ["network", "settings", "best epoch", "jittered", "plain", "minutes"]
    return markdown(header, sorted(rows, key=lambda row: -float(row[4])))


def _plain(value: Any) -> str:
    return (
        "-".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def stages_table(results: Results) -> str:
    """Compare candidates for a shipped network on validation faces: plain, mean over poses, and occluded."""
    rows = []
    for name, r in ((n, r) for n, r in results.items() if n.startswith("stages/") and f"{n}-occluded" in results):
        poses = [p["nme_paper"] for p in r["by"]["pose"]]
        occluded = results[f"{name}-occluded"]
        rows.append([
            link(name, name.removeprefix("stages/")), f"{r['nme_paper']:.2f}", f"{r['nme']:.2f}",
            f"{sum(poses) / len(poses):.2f}", f"{occluded['nme_paper']:.2f}",
        ])  # fmt: skip
    header = ["validation faces", "paper's protocol", "continuous", "mean over five poses", "occluded"]
    return markdown(header, sorted(rows, key=lambda row: -float(row[1])))


def trials_table(results: Results) -> str:
    """List short trainings continued from one network: recipe settings, and errors by head pose."""
    rows = []
    for name, r in ((n, r) for n, r in results.items() if n.startswith("trials/")):
        recipe = r["training"]["recipe"]
        augment = recipe["augment"]
        rows.append([
            link(name, name.removeprefix("trials/")), f"{augment['degrees']}", f"{augment['turned']:g}",
            recipe["balance"] or "-", f"{recipe['sigma']:g}", f"{augment['stretch']:g}",
            "yes" if r["training"].get("teacher") else "-", f"{r['nme_paper']:.2f}",
            *(f"{p['nme_paper']:.2f} ({p['images']})" for p in r["by"]["pose"]),
        ])  # fmt: skip
    header = ["trial", "+- degrees", "turned", "balance", "spread", "stretch", "teacher", "all faces", *POSES]
    return markdown(header, sorted(rows, key=lambda row: -float(row[7])))


def models_table(results: Results) -> str:
    """List every network with its size, counted from its definition."""
    from recombinator.models import catalogue

    rows = [
        [m["name"], f"{m['parameters']:,}", f"{m['multiply_adds'] / 1e6:,.0f}", str(m["keypoints"])]
        for m in catalogue()
    ]
    return markdown(["network", "parameters", "million multiply-adds", "keypoints"], rows)


# results, and the names of their networks
OFFSETS = {
    "rcn-6-mtfl": "", "rcn-6-fast-mtfl": "", "sumnet-6-mtfl": "", "table2/rcn-6": "", "table2/sumnet-6": "",
    "table3/tcdcn": "", "stages/mean-of-both": "rcn-6-mtfl", "stages/shipped-before": "rcn-6-mtfl, earlier version",
}  # fmt: skip


def offset_table(results: Results) -> str:
    """List the median of (predicted - true) on AFLW and, for comparison, on MTFL's validation faces."""
    rows = []
    for name, network in OFFSETS.items():
        if name in results:
            r = results[name]
            where = "AFLW" if r["data"]["split"] == "test" else "MTFL validation"
            x, y = r["offset"]
            rows.append([where, link(name, network), f"{x:+.1f}", f"{y:+.1f}", f"{r['nme']:.2f}",
                         f"{r['nme_without_offset']:.2f}"])  # fmt: skip
    header = ["images", "network", "median x, %", "median y, %", "error, continuous", "the offset removed"]
    return markdown(header, rows)


def _in_range(row: dict[str, float]) -> str:
    return f"{row['median']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def memory_table(results: Results) -> str:
    """Compare a training from disk with one in memory: peak memory and speed."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "memory":
            for place in ("on disk", "in memory"):
                row, ratios = r[place], [_in_range(r[k]) if place == "on disk" else "1" for k in ("speed", "cpu")]
                rows.append([link(name, f"{r['network']}, crops {place}"), f"{row['crops']:,}",
                             f"{row['peak_bytes'] / 1e9:.2f} GB", *ratios])  # fmt: skip
    return markdown(["training", "crops", "peak memory", "images per second", "CPU time per image"], rows)


def ray_table(results: Results) -> str:
    """Compare the plain prediction of many photographs with that by Ray."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "ray":
            for way, speed in (("plain", "1"), ("with Ray", _in_range(r["speed"]))):
                cpu = r["cpu_seconds"][way]["median"]
                rows.append([link(name, f"{r['weights']}, {way}"), f"{1000 * cpu:.0f} ms", f"{1e8 * cpu / 3600:,.0f}",
                             speed])  # fmt: skip
    header = ["prediction", "CPU time per photograph", "core-hours for 100 million", "relative speed"]
    return markdown(header, rows)


def web_table(results: Results) -> str:
    """Build the table of the browser page's speed."""
    r = results.get("web")
    if r is None:
        return ""
    parts, rate, machine = r["milliseconds"], r["frames_per_second"], r["provenance"]["machine"]
    names = [name for name in parts if name != "frame"]
    cells = [link("web", r["weights"]), f"**{rate['median']:.0f}** ({rate['lowest']:.0f} to {rate['highest']:.0f})"]
    table = markdown(
        ["model", "frames per second", *(f"{name}, ms" for name in names), "other, ms"],
        [[*cells, *(f"{parts[n]:.1f}" for n in names), f"{parts['frame'] - sum(parts[n] for n in names):.1f}"]],
    )
    about = f"{r['browser']}, {machine['processor']}, median of {r['rounds']} runs, load average {r['load'][0]:.1f}"
    return f"{table}\n{about}.\n"


def folds_table(results: Results) -> str:
    """Show the errors of `fit` on the images of folds that it has not seen."""
    radii, rows = ("4", "8"), []
    for name, r in results.items():
        if r.get("kind") != "fit-folds":
            continue
        run = len(r["folds_run"])
        parts = f"{run} of {r['folds']}" if run < r["folds"] else str(run)
        rows.append(
            [link(name, name.removeprefix("fit-")), str(r["images"]), str(len(r["keypoints"])), parts,
             f"{r['minutes_per_fold']:g}", f"{r['median']:.2f}", f"{r['p95']:.1f}",
             *(f"{100 * r['within'][radius]:.1f} %" for radius in radii)]
        )  # fmt: skip
    return markdown(
        ["data", "images", "keypoints", "folds", "minutes per fold", "median error, pixels", "95th percentile",
         *(f"within {radius} pixels" for radius in radii)], rows,
    ) if rows else ""  # fmt: skip
