"""Tables of what happens on whole images: faces found, time per image, other tools."""

from __future__ import annotations

from typing import Any

from recombinator.study.markdown import DATASETS, TEST_SETS, Result, Results, interval, link, markdown, table_name

# by the names of their classes
_DETECTORS = {"FinderDetector": "face finder", "FaceFramer": "face finder and five points"}
_TEST_SETS = {DATASETS[dataset]: name for dataset, name in TEST_SETS.items()}


def _detector(row: Result) -> str:
    name: str = row["detector"]
    return _DETECTORS.get(name, name)


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / whole:.1f} %)"


def pipeline_table(results: Results) -> str:
    """Show the milliseconds from an image to points, for each part and network."""
    r = results.get("pipeline")
    if r is None:
        return ""
    whole = [name for name in r["rows"] if ": " not in name or name == r["reference"]]
    models = list(dict.fromkeys(name.split(": ")[0] for name in r["rows"] if name not in whole))
    parts = list(dict.fromkeys(name.split(": ", 1)[1] for name in r["rows"] if name not in whole))

    def cell(name: str) -> str:
        row = r["rows"].get(name)
        return f"{row['median']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" if row else "-"

    first = markdown([link("pipeline", "part"), "ms"], [[name, cell(name)] for name in whole])
    second = markdown(["ms", *models], [[part, *(cell(f"{m}: {part}") for m in models)] for part in parts])
    about = r["provenance"]["machine"]
    return (
        f"{first}\n{second}\n{about['processor']}, threads: {r['threads']}, {r['passes']} passes (68 points: one), "
        f"median [lowest, highest] of {r['rounds']} interleaved rounds.\n"
    )


def finder_figures(r: Result) -> dict[str, str]:
    """Return the figures of one result of `study finder`, by what they measure."""
    cells: dict[str, str] = {}
    if "mosaics" in r:
        m = r["mosaics"]
        cells["mosaics of 2 to 16 faces, 24 to 200 pixels, ±30 degrees: found"] = _share(m["found"], m["faces"])
        cells["false detections per mosaic"] = f"{m['false_per_image']:.3f}"
        cells |= {
            f"faces of {s['from']} to {s['to']} pixels: found": _share(s["found"], s["faces"]) for s in m["sizes"]
        }
    for row in r.get("turned", {}).get("by_angle", ()):
        cells[f"photographs rotated by {row['degrees']} degrees: found"] = _share(row["found"], row["photographs"])
    if "without_faces" in r:
        e = r["without_faces"]
        cells["images without faces: false detections"] = f"{e['false']} in {e['images']}"
        cells["images without faces: detections of the finder alone"] = f"{e['false_before_confidence']}"
    if "portrait" in r:
        p = r["portrait"]
        cells["portrait at every angle: found"] = _share(p["found"], p["angles"])
        cells["portrait: distance from the upright portrait's points, median and largest mean"] = (
            f"{p['median']:.1f}, {p['largest_mean']:.1f} pixels at an eye distance of {p['eye_distance']:.0f}"
        )
    if "smallest" in r:
        s = r["smallest"]
        cells[f"one small face in {s['width']}x{s['height']} pixels: found"] = ", ".join(
            f"{row['side']}: {100 * row['share']:.0f} %" for row in s["rows"]
        )
    for row in r.get("cut", {}).get("rows", ()):
        where = row["cut"].replace("above", "cut above").replace("below", "cut below")
        cells[f"face, {where}: found, unsure, rejected, confident and wrong"] = ", ".join(
            f"{100 * row[k] / row['faces']:.1f} %" for k in ("found", "unsure", "rejected", "wrong")
        )
    for row in (*r.get("passes", ()), *r.get("final", ())):
        passes = "1 pass" if row["passes"] == 1 else f"{row['passes']} passes"
        what = f"{table_name(row['data'])}, {row['weights']}, {passes}: found, error"
        error = f"{row['nme']:.2f} [{row['nme_ci95'][0]:.2f}, {row['nme_ci95'][1]:.2f}]" if row["found"] else "-"
        cells[what] = f"{_share(row['found'], row['faces'])}, {error}"
    return cells


def finder_table(results: Results) -> str:
    """Show what `study finder` measured, one column per detector."""
    columns: dict[str, dict[str, str]] = {}
    for name, r in sorted(results.items()):
        if r.get("kind") == "finder":
            columns[link(name, f"{_detector(r['finder'])}, {r['weights']}")] = finder_figures(r)
    titles: dict[str, Any] = dict.fromkeys(what for cells in columns.values() for what in cells)
    return markdown(
        ["measurement", *columns], [[what, *(cells.get(what, "-") for cells in columns.values())] for what in titles]
    )


def _error(row: Result, key: str) -> str:
    return "-" if row[key] is None else interval(row, key)


def tools_errors(r: Result) -> str:
    """Show the errors and times of one result of `study tools`."""
    times = {(t["set"], t["tool"]): t for t in r["times"]}
    rows = []
    for row in r["rows"]:
        t = times[row["set"], row["tool"]]
        rows.append([
            _TEST_SETS[row["set"]] if row["split"] == "test" else f"{row['set']} validation", row["tool"],
            _share(row["found"], row["faces"]), *(_error(row, k) for k in ("nme", "nme_shared", "nme_corrected")),
            _error(row, "nme_68"), f"{t['median']:.1f} ({t['ratio']:.2f})" if row["split"] == "valid" else "-",
        ])  # fmt: skip
    header = ["photographs", "tool", "faces found", "error of those found", "error on faces that all tools found",
              "the same, offsets removed", "68 points", "ms per photograph (ratio)"]  # fmt: skip
    return markdown(header, rows)


def tools_about(r: Result) -> str:
    """Show versions, licenses and training data of one result of `study tools`."""
    rows = []
    for title, tool in r["tools"].items():
        versions = ", ".join(f"{name} {version}" for name, version in tool["versions"].items())
        rows.append([title, versions or f"this package, {_detector(tool)}", tool["license"], tool["training"]])
    return markdown(["tool", "versions", "license", "training data"], rows)


def tools_table(results: Results) -> str:
    """Show what `study tools` measured, with its date and machine."""
    parts = []
    for name, r in sorted(results.items()):
        if r.get("kind") == "tools":
            made = r["provenance"]
            parts.append(
                f"{link(name)}, {made['date']}, {made['machine']['processor']}:\n\n{tools_errors(r)}\n{tools_about(r)}"
            )
    return "\n".join(parts)
