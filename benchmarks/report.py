"""What a run of the benchmark tells: ratios, the table of targets, Markdown, the roofline, and what became slower."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.rows import LAYER_TARGETS, SCALING, WORKLOADS
from minidl.checkpoint import atomic_write

Row = dict[str, Any]
BEGIN, END = "<!-- results: written by python -m benchmarks.cpu --out benchmarks -->\n", "<!-- end of results -->\n"
PEERS = {"tuned": "torch tuned", "default": "torch"}  # with its allocator tuned, and as it comes


def ratios(times: dict[str, dict[str, float]]) -> Row:
    """PyTorch's best mode over minidl's, by medians and by minima, for its tuned and for its default allocator."""
    found: Row = {}
    ours = best_mode(times, "minidl")
    for key, rival in PEERS.items():
        best = best_mode(times, rival)
        if best:
            found[key] = {
                "best": best,
                "ratio": times[best]["median"] / times[ours]["median"],
                "ratio_of_minima": _least(times, rival) / _least(times, "minidl"),
                "spread": math.hypot(times[best]["spread"], times[ours]["spread"]),
            }
    return found


def best_mode(times: Row, rival: str) -> str:
    """The name of a rival in its fastest mode; "" where it has none."""
    return min(_modes(times, rival), key=lambda name: times[name]["median"], default="")


def _modes(times: Row, rival: str) -> list[str]:
    return [name for name in times if name.split(",")[0] == rival]


def _least(times: Row, rival: str) -> float:
    return min(times[name]["min"] for name in _modes(times, rival))


def geometric_mean(rows: list[Row], key: str, value: str = "ratio") -> float:
    """The geometric mean of the ratios of some rows, each as often as it stands in its network."""
    weights = [row.get("count", 1) for row in rows]
    logs = [math.log(row[key][value]) for row in rows]
    return math.exp(sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights))


def targets(results: Row) -> list[Row]:
    """Each target beside what was reached against PyTorch, tuned and default."""
    found = []
    for threads in reversed(results["threads"]):
        rows = [row for row in results["rows"] if row["threads"] == threads and any(key in row for key in PEERS)]
        layers = [row for row in rows if row["kind"] == "layer"]
        if layers:
            keys = [key for key in PEERS if all(key in row for row in layers)]
            what = f"geometric mean of {sum(row['count'] for row in layers)} convolution passes"
            line = {"what": what, "threads": threads, "target": LAYER_TARGETS["mean"], "remark": ""}
            found.append(line | {key: geometric_mean(layers, key) for key in keys})
            worst = min(layers, key=lambda row: row[keys[0]]["ratio"])
            line = {"what": "slowest layer and pass", "threads": threads, "target": LAYER_TARGETS["worst"]}
            below = sum(row[keys[0]]["ratio"] < LAYER_TARGETS["worst"][0] for row in layers)
            line["remark"] = f"{worst['name']}, {worst['pass']}; {below} of {len(layers)} below 1"
            found.append(line | {key: worst[key]["ratio"] for key in keys})
        for workload in WORKLOADS:
            for row in rows:
                if row["kind"] == "step" and row["name"] == workload.name:
                    keys = [key for key in PEERS if key in row]
                    line = {"what": row["name"], "threads": threads, "target": (workload.floor, workload.aim)}
                    line["remark"] = " / ".join([row[keys[0]]["best"], best_mode(row["times"], "minidl")])
                    found.append(line | {key: row[key]["ratio"] for key in keys})
    steps = {row["threads"]: row["times"] for row in results["rows"] if row["name"] == SCALING}
    if len(steps) > 1:
        few, many = min(steps), max(steps)
        line = {"what": f"{SCALING}: {few} to {many} threads", "threads": many, "target": LAYER_TARGETS["scaling"]}
        line["reached"] = steps[few]["minidl"]["median"] / steps[many]["minidl"]["median"]
        for name in ("torch tuned, channels-last", "torch, channels-last"):
            if name in steps[few] and name in steps[many]:
                line["remark"] = f"{name}: {steps[few][name]['median'] / steps[many][name]['median']:.2f}"
                break
        found.append(line)
    return found


def summary(results: Row) -> str:
    """The targets as a Markdown table."""
    lines = [
        "| what | threads | at least | aim | reached | against default PyTorch | verdict | |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for t in targets(results):
        reached = t.get("reached", t.get("tuned", t.get("default")))
        floor, aim = t["target"]
        verdict = "aim" if reached >= aim else "reached" if reached >= floor else "**missed**"
        default = f"{t['default']:.2f}" if "default" in t else ""
        cells = [t["what"], t["threads"], floor, aim, f"**{reached:.2f}**", default, verdict, t.get("remark", "")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) if len(lines) > 2 else "No peer took part, so there are no ratios."


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, scale = next((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= s or u == "µs")
    value = seconds / scale
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def _time(times: Row, name: str | None) -> str:
    if name not in times:
        return ""
    t = times[name]
    return duration(t["median"]) + (f" ± {100 * t['spread']:.0f} %" if t["turns"] > 1 else " (once)")


def _ratio(row: Row | None, key: str) -> str:
    return f"{row[key]['ratio']:.2f}" if row and key in row else ""


def _mode(times: Row, rival: str) -> str:
    """A rival's time in its best mode, and that mode."""
    best = best_mode(times, rival)
    return ", ".join(filter(None, [_time(times, best), best.partition(", ")[2]]))


def table(results: Row, kind: str, threads: int) -> str:
    """The rows of a kind for a number of threads; layers also carry the ratio with one thread."""
    peak = results["ceilings"][str(threads)]["flops"]
    rows = [row for row in results["rows"] if row["kind"] == kind and row["threads"] == threads]
    head = ["what", *(["pass"] if kind != "step" else []), "minidl", "least", "PyTorch, tuned", "PyTorch, default",
            "numpy", "numba", "tuned / minidl", "default / minidl", "of minima", "GFLOP/s", "of peak"]  # fmt: skip
    head += ["peak memory, MB: minidl", "tuned", "default"] if kind == "step" else []
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in rows:
        times = row["times"]
        speed = row["operations"] / times[best_mode(times, "minidl")]["median"]
        cells = [row["name"], *([row["pass"]] if kind != "step" else []), _mode(times, "minidl")]
        cells += [duration(_least(times, "minidl")), *(_mode(times, rival) for rival in PEERS.values())]
        cells += [
            _time(times, "numpy"),
            _time(times, "numba"),
            _ratio(row, "tuned"),
            _ratio(row, "default"),
        ]
        cells += [f"{row['tuned']['ratio_of_minima']:.2f}" if "tuned" in row else ""]
        cells += [f"{speed / 1e9:.3g}", f"{100 * speed / peak:.0f} %"]
        if kind == "step":
            names = ["minidl", *(_eager(row, key) for key in PEERS)]
            memory = [row["memory"].get(name) for name in names]
            cells += ["" if m is None else f"{m / 1e6:.0f}" for m in memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _eager(row: Row, key: str) -> str:
    """The fastest mode whose memory is known: compiling takes memory of its own."""
    known = [name for name, m in row["memory"].items() if m is not None and name.split(",")[0] == PEERS[key]]
    return min((name for name in known if name in row["times"]), key=lambda n: row["times"][n]["median"], default="")


def markdown(results: Row, picture: bool) -> str:
    """Everything: where it was measured, the targets, steps, layers, cases."""
    lines = [f"- machine: {results['machine']}"]
    for threads, ceiling in results["ceilings"].items():
        lines.append(
            f"- measured ceilings, {threads} threads: {ceiling['flops'] / 1e9:.0f} GFLOP/s (2048² matrices), "
            f"{ceiling['bandwidth'] / 1e9:.1f} GB/s (a copy of 128 MB a thread, read and written)"
        )
    lines += [f"- {name}: {text}" for name, text in results["versions"].items() if name != "torch tuned"]
    lines += [f"- date: {results['date']}, commit {results['commit']}, {results['minutes']:.1f} minutes"]
    lines += [f"- command: `{results['command']}`", *(f"- note: {note}" for note in results["notes"])]
    lines += [f"- **wrong**: {wrong}" for wrong in results["wrong"]]
    lines += ["", "### Targets", "", summary(results), ""]
    if picture:
        lines += ["![Roofline: speed of every layer and pass over operations a byte](roofline.png)", ""]
    titles = {"step": "Whole steps", "layer": "Convolutions of the networks", "case": "The table of cases of the tests"}
    for kind, title in titles.items():
        for threads in reversed(results["threads"]):
            if any(row["kind"] == kind and row["threads"] == threads for row in results["rows"]):
                lines += [f"### {title}, {threads} threads", "", table(results, kind, threads), ""]
    return "\n".join(lines)


def roofline(results: Row, path: Path) -> None:
    """Draw the layers' speeds, by their definition's operations, under the machine's ceilings."""
    from examples.drawing import BLUE, GREEN, ORANGE, save, subplots

    threads = results["threads"][-1]
    ceiling = results["ceilings"][str(threads)]
    rows = [row for row in results["rows"] if row["kind"] == "layer" and row["threads"] == threads]
    figure, axes = subplots(8, 5)
    marks = {"forward": "o", "grad_x": "<", "grad_w": "s"}
    for which, mark in marks.items():
        for key, colour, name in (("tuned", ORANGE, "PyTorch's best, tuned"), ("minidl", BLUE, "minidl")):
            here = [row for row in rows if row["pass"] == which and (key == "minidl" or key in row)]
            best = [row["times"]["minidl" if key == "minidl" else row[key]["best"]]["median"] for row in here]
            axes.scatter(
                [row["operations"] / row["bytes"] for row in here],
                [row["operations"] / t / 1e9 for row, t in zip(here, best, strict=True)],
                marker=mark, s=22, color=colour, alpha=0.75, label=f"{name}, {which}" if here else None,
            )  # fmt: skip
    reach = [row["operations"] / row["bytes"] for row in rows] or [1.0]
    line = [min(reach) / 1.5, ceiling["flops"] / ceiling["bandwidth"], max(2 * max(reach), 100)]
    axes.plot(
        line,
        [min(x * ceiling["bandwidth"], ceiling["flops"]) / 1e9 for x in line],
        color=GREEN,
        label="measured ceilings",
    )
    axes.set(
        xscale="log", yscale="log", xlabel="operations a byte (x, w, y once each)", ylabel="GFLOP/s by the definition"
    )
    axes.set_title(f"Convolutions, {threads} threads: {results['machine']}; above the roof: Winograd")
    axes.legend(fontsize=8)
    save(figure, path)


def section(folder: Path, begin: str = BEGIN, end: str = END) -> tuple[str, str] | None:
    """What stands before and after the results in a folder's README.md, None if it has no place for them."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    before, mark, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    return (before + mark, closing + after) if mark and closing else None


def write(results: Row, folder: Path) -> list[Path]:
    """Write the JSON, the picture if matplotlib is here, and the Markdown; give the paths."""
    written = [folder / "cpu.json"]
    with atomic_write(written[0]) as part:
        part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        roofline(results, folder / "roofline.png")
        written.append(folder / "roofline.png")
    except ImportError as error:
        print(f"no picture: {error}")
    text = markdown(results, picture=len(written) > 1)
    around = section(folder)
    path = folder / ("README.md" if around else "cpu.md")
    with atomic_write(path) as part:
        part.write_text(f"{around[0]}\n{text}\n{around[1]}" if around else text, encoding="utf-8")
    return [*written, path]


def compare(now: Row, before: Row) -> list[str]:
    """Say which ratios to PyTorch fell by more than both runs' spreads explain: three of them, and 5 % besides."""
    lines = []
    if now["machine"] != before["machine"]:
        lines.append(f"other machine: the table was measured on {before['machine']}")
    known = {(row["name"], row["pass"], row["threads"]): row for row in before["rows"]}
    compared = 0
    for row in now["rows"]:
        old = known.get((row["name"], row["pass"], row["threads"]))
        key = next((key for key in PEERS if key in row and old and key in old), None)
        if not old or not key:
            continue
        compared += 1
        room = 0.05 + 3 * math.hypot(row[key]["spread"], old[key]["spread"])
        if row[key]["ratio"] < old[key]["ratio"] * (1 - min(room, 0.5)):
            lines.append(
                f"SLOWER {row['name']}, {row['pass']}, {row['threads']} threads: {row[key]['ratio']:.2f} times "
                f"{PEERS[key]}'s speed, was {old[key]['ratio']:.2f} (± {100 * min(room, 0.5):.0f} % is noise)"
            )
    if not compared:
        return [*lines, "nothing to compare: no row of this run stands in the table with a ratio to PyTorch"]
    slower = sum(line.startswith("SLOWER") for line in lines)
    return [*lines, f"compared {compared} ratios with those of {before['commit']}: {slower} became slower"]
