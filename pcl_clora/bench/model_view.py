"""What a record of `bench_model` says: tables, the targets that were met, and what to keep in mind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from pcl_clora.bench.harness import thread_remarks
from pcl_clora.bench.model import FULL_AGAINST_CLORA, NETWORKS, SAVED, SHARES, TARGETS, WIDE
from pcl_clora.bench.sides import PLAIN, PLAIN_FULL
from pcl_clora.report.shapes import Shape

Table = tuple[str, list[str], list[list[str]]]

SPREAD = 1.15  # median / minimum of the repeats above which a time is not to be trusted
BATCH = 8  # that of the targets


class SideShape(Shape):
    """A form of a network."""

    against: str
    difference: float | None
    min_ms: float
    median_ms: float
    gflops: float
    ratio: float | None


class MemoryShape(Shape):
    """What a training step holds."""

    saved_mib: float
    peak_mib: float


class ModelRowShape(Shape):
    """Forward passes, steps or the profile of a network."""

    network: str
    kind: Literal["forward", "step", "profile"]
    batch: int
    threads: int
    route: str
    clock: str
    load: float | None
    peak_gflops: dict[str, float]
    sides: dict[str, SideShape] = Field(default_factory=dict)
    memory: dict[str, MemoryShape] = Field(default_factory=dict)
    profiles: dict[str, dict[str, float]] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)


def model_line(row: Mapping[str, Any]) -> str:
    """Say in a line what a row found."""
    text = f"{row['network']}, {row['kind']}, batch {row['batch']}, {row['threads']} thread(s): "
    if row["kind"] == "profile":
        return text + "done"
    shown = [
        f"{name} {side['min_ms']:.1f} ms ({side['ratio']:.2f} times {side['against']})"
        for name, side in row["sides"].items()
        if side["ratio"] is not None
    ]
    return text + "; ".join(shown)


def is_wide(result: Mapping[str, Any]) -> bool:
    """Whether oneDNN is so much faster than torch's own here that the higher targets hold."""
    peaks = [row["peak_gflops"] for row in result["rows"]]
    ratios = sorted(peak.get("onednn", 0.0) / peak["torch"] for peak in peaks if peak["torch"])
    return bool(ratios) and ratios[len(ratios) // 2] >= WIDE


def share(row: Mapping[str, Any], name: str) -> float | None:
    """Return the share of the better matmul peak that a form reaches; None for int8, which has another."""
    if "int8" in name:
        return None
    peak = row["peak_gflops"]
    best = peak["bfloat16"] if "bfloat16" in name else max(peak["torch"], peak.get("onednn", 0.0))
    return float(row["sides"][name]["gflops"] / best)


def targets(result: Mapping[str, Any]) -> list[tuple[str, str, float, float, bool]]:
    """List what is aimed at: network, what, value, target, and whether a larger value is better."""
    wide = is_wide(result)
    found: list[tuple[str, str, float, float, bool]] = []
    for row in result["rows"]:
        if row["threads"] != 1 or row["kind"] == "profile" or row["batch"] != BATCH:
            continue
        network, sides = row["network"], row["sides"]
        for (of, name), (against, *goals) in TARGETS.items():
            goal = goals[0] if wide else goals[1]
            if of == network and goal and name in sides and against in sides:
                kind = "inference" if row["kind"] == "forward" else "step"
                ratio = sides[against]["min_ms"] / sides[name]["min_ms"]
                found.append((network, f"{name} {kind}, times {against}", ratio, goal, True))
        if network == "point_mae" and {"clora", PLAIN_FULL} <= sides.keys():
            ratio = sides[PLAIN_FULL]["min_ms"] / sides["clora"]["min_ms"]
            goal = FULL_AGAINST_CLORA[0 if wide else 1]
            found.append((network, f"clora step, times {PLAIN_FULL}", ratio, goal, True))
        for name, goal in SHARES.items():
            if name in sides:
                found.append(
                    (network, f"{name}: share of the matmul peak", share(row, name) or 0.0, goal, True)
                )
        for name, goal in SAVED.items():
            if network == "point_mae" and name in row.get("memory", {}):
                saved = row["memory"][name]["saved_mib"]
                found.append((network, f"{name}: saved activations, MiB a cloud", saved, goal, False))
    return found


def model_tables(result: Mapping[str, Any]) -> list[Table]:
    """Make title, header and rows of every table."""
    made: list[Table] = []
    goals = targets(result)
    if goals:
        body = [
            [network, what, _number(value), _number(goal), "yes" if (value >= goal) == more else "no"]
            for network, what, value, goal, more in goals
        ]
        title = f"What is aimed at, one thread, batches of {BATCH}"
        made.append((title, ["network", "", "measured", "target", "reached"], body))
    for threads in dict.fromkeys(row["threads"] for row in result["rows"]):
        for network in dict.fromkeys(row["network"] for row in result["rows"]):
            rows = [row for row in result["rows"] if (row["network"], row["threads"]) == (network, threads)]
            number = "one thread" if threads == 1 else f"{threads} threads"
            made += _of_network(f"{network}, {number}", rows)
    return made


def _of_network(title: str, rows: list[Mapping[str, Any]]) -> Iterator[Table]:
    forward = [row for row in rows if row["kind"] == "forward"]
    if forward:
        names = list(dict.fromkeys(name for row in forward for name in row["sides"]))
        header = ["", *(f"batch {row['batch']}" for row in forward), "difference", "share of the peak"]
        last = forward[min(1, len(forward) - 1)]
        body = [
            [
                name,
                *(_time(row["sides"].get(name)) for row in forward),
                _difference(last["sides"].get(name)),
                _percent(share(last, name)) if name in last["sides"] else "",
            ]
            for name in names
        ]
        clock = forward[0]["clock"]
        yield f"Inference of {title}: ms a cloud, {clock} time (times as fast as published)", header, body
    for row in rows:
        if row["kind"] == "step":
            yield _step_table(title, row)
        if row["kind"] == "profile":
            yield _profile_table(title, row)


def _step_table(title: str, row: Mapping[str, Any]) -> Table:
    memory = row.get("memory", {})
    body = []
    for name in dict.fromkeys([*row["sides"], *memory]):
        side = row["sides"].get(name)
        held = memory.get(name)
        body.append(
            [
                name,
                _time(side),
                side["against"] if side else "",
                _percent(share(row, name)) if side else "",
                f"{held['saved_mib']:.1f}" if held else "",
                f"{held['peak_mib']:.0f}" if held else "",
            ]
        )
    header = ["", "ms a cloud", "compared with", "share of the peak", "saved, MiB a cloud", "peak, MiB"]
    return f"Training step of {title}, batch {row['batch']}, {row['clock']} time", header, body


def _profile_table(title: str, row: Mapping[str, Any]) -> Table:
    profiles = row["profiles"]
    parts = list(dict.fromkeys(part for profile in profiles.values() for part in profile))
    body = [
        [part, *(f"{profile[part]:.1f}" if part in profile else "" for profile in profiles.values())]
        for part in parts
    ]
    body.append(["sum", *(f"{sum(profile.values()):.1f}" for profile in profiles.values())])
    return f"Where the time goes, {title}, batch {row['batch']}: ms a cloud", ["", *profiles], body


def model_remarks(result: Mapping[str, Any]) -> list[str]:
    """Say what was compared, how fast products are here, what was not there, and whether it was busy."""
    rows = result["rows"]
    lines = ["Ratios are those of the minima of interleaved runs; a cloud's share of a batch is given."]
    for threads in dict.fromkeys(row["threads"] for row in rows):
        here = [row for row in rows if row["threads"] == threads]
        names = sorted({name for row in here for name in row["peak_gflops"]})
        best = {name: max(row["peak_gflops"].get(name, 0.0) for row in here) for name in names}
        told = ", ".join(f"{name} {value:.0f}" for name, value in best.items())
        routes = ", ".join(dict.fromkeys(row["route"] for row in here))
        lines.append(f"{threads} thread(s): product route {routes}; matmul peak in GFLOP/s: {told}.")
    lines += thread_remarks(
        {
            (f"{row['network']}, {row['kind']}, batch {row['batch']}, {name}", row["threads"]): side["min_ms"]
            for row in rows
            for name, side in row.get("sides", {}).items()
            if not name.startswith(PLAIN)
        }
    )
    for name, why in dict.fromkeys(item for row in rows for item in row.get("absent", {}).items()):
        lines.append(f"{name}: absent ({why})")
    unseen = [name for name in NETWORKS if name not in {row["network"] for row in rows}]
    if unseen and not result.get("quick"):
        lines.append(f"Not measured in this run: {'; '.join(unseen)}.")
    return lines + warnings(result)


def warnings(result: Mapping[str, Any]) -> list[str]:
    """Say where the machine was busy, and where repeats differ so much that a time is not to be trusted."""
    rows, lines = result["rows"], []
    loads = [row["load"] for row in rows if (row["load"] or 0) > row["threads"] + 1]
    if loads:
        lines.append(
            f"The machine was busy with other work in {len(loads)} of {len(rows)} rows (load up to "
            f"{max(loads):.1f}); caches and clock rates are shared. Measure again before quoting."
        )
    spread = [
        (side["median_ms"] / side["min_ms"], f"{row['network']}, {name}")
        for row in rows
        for name, side in row.get("sides", {}).items()
    ]
    wide = [item for item in spread if item[0] > SPREAD]
    if wide:
        worst, where = max(wide)
        lines.append(
            f"Repeats differ by more than {SPREAD - 1:.0%} in {len(wide)} of {len(spread)} times (median "
            f"{worst:.2f} times the minimum for {where})."
        )
    return lines


def _time(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return ""
    text = f"{side['min_ms']:.2f}" if side["min_ms"] < 10 else f"{side['min_ms']:.1f}"
    return text if side["ratio"] is None else f"{text} ({side['ratio']:.2f})"


def _difference(side: Mapping[str, Any] | None) -> str:
    return "" if side is None or side["difference"] is None else f"{side['difference']:.1e}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
