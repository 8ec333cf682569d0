"""Tables of speeds, comparisons, calibration, robustness, trials."""

from __future__ import annotations

from pathlib import Path

from recombinator.study.markdown import POSES, Results, interval, link, markdown


def joint_table(results: Results) -> str:
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
    return markdown(["images", "network", "paper's protocol", "difference from the first"], rows)


def denoiser_table(results: Results) -> str:
    """Corrupted points found again, beside simple rivals."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "denoising":
            for who, row in r["rows"].items():
                label = link(name) if who == "denoiser" else who
                error = interval(row, "nme_paper")
                told = [label, f"{r['corrupted']}", error, f"{row['nme']:.2f}"]
                rows += [told] if told not in rows else []  # the rivals are the same beside every denoiser
    return markdown(["model", "corrupted of 68", "error, paper's grid", "continuous"], rows)


def speed_table(results: Results) -> str:
    rows = []
    for r in (r for name, r in results.items() if name == "bench"):
        for name, row in r["rows"].items():
            ratio = f"{row['ratio_to_plain']:.2f}" if "ratio_to_plain" in row else ""
            other = f"{row['ratio_to_plain_channels_last']:.2f}" if ratio else ""
            speed = f"{row['median']:.3g} {row['unit']} [{row['low']:.3g}, {row['high']:.3g}]"
            dense = f"{row['times_faster_than_dense']:.1f}" if "times_faster_than_dense" in row else ""
            rows.append([name, speed, ratio, other, dense])
    header = ["what", "median [lowest, highest]", "× plain", "× plain channels-last", "× dense"]
    return markdown(header, rows)


def machine_line(results: Results) -> str:
    lines = []
    for r in (r for name, r in results.items() if name == "bench"):
        p = r["provenance"]
        lines.append(
            f"{p['machine']['processor']}, {r['threads']} threads, torch {p['versions']['torch']}, {p['date']}, "
            f"median of {r['rounds']} interleaved rounds, training batch {r['batch']}.\n"
        )
    return "".join(lines)


def engines_table(results: Results) -> str:
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
    return markdown(header, rows)


def photographs_table(results: Results) -> str:
    """Whole photographs, detection included."""
    rows = []
    for name, r in results.items():
        if r.get("kind") == "photographs":
            error = interval(r, "nme") if r["found"] else "-"
            true_crop = f"{r['nme_true_crop']:.2f}" if r["found"] else "-"
            faces = f"{r['found']:,} of {r['faces']:,} ({100 * r['found'] / r['faces']:.1f} %)"
            rows.append([f"[{r['data']['dataset']}, {r['data']['split']}](results/{name}.json)", r["weights"],
                         str(r["passes"]), faces, str(r["others"]), error, true_crop])  # fmt: skip
    header = ["photographs", "network", "passes", "faces found", "other detections", "error of those found",
              "the same faces, true crop"]  # fmt: skip
    return markdown(header, sorted(rows))


def reliability_table(results: Results) -> str:
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
    return markdown(header, sorted(rows))


def robustness_table(results: Results) -> str:
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
    return markdown([*header, "error, continuous, at these ends (and undisturbed, between)"], rows)


def explorations_table(results: Results) -> str:
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
    return markdown(header, rows)


def legs_table(results: Results) -> str:
    """Candidates for a shipped network on the validation faces: plain, the mean over the classes of pose, and with a
    rectangle."""
    rows = []
    for name, r in ((n, r) for n, r in results.items() if n.startswith("legs/") and f"{n}-occluded" in results):
        poses = [p["nme_paper"] for p in r["by"]["pose"]]
        covered = results[f"{name}-occluded"]
        rows.append([
            link(name, name.removeprefix("legs/")), f"{r['nme_paper']:.2f}", f"{r['nme']:.2f}",
            f"{sum(poses) / len(poses):.2f}", f"{covered['nme_paper']:.2f}",
        ])  # fmt: skip
    header = ["validation faces", "paper's protocol", "continuous", "mean over five poses", "with a rectangle"]
    return markdown(header, sorted(rows, key=lambda row: -float(row[1])))


def trials_table(results: Results) -> str:
    """Short trainings on from one network, each told by what of its recipe differs; errors by the head's pose."""
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
    """Every network by name, counted from its definition."""
    from recombinator.models import catalogue

    rows = [
        [m["name"], f"{m['parameters']:,}", f"{m['multiply_adds'] / 1e6:,.0f}", str(m["keypoints"])]
        for m in catalogue()
    ]
    return markdown(["network", "parameters", "million multiply-adds", "keypoints"], rows)
