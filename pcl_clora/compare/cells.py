"""The cells of a study's tables: a row in plain numbers, and how numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcl_clora.report import units

NOTES = (
    "mean +- standard deviation (n - 1) over n seeds; [low, high]: 95 % interval of the paired difference to "
    "the baseline, by a bootstrap over seeds and test clouds, one comparison at a time. **Bold**: the best "
    "row, and rows whose paired difference to it is not clear of zero."
)
COST: tuple[tuple[str, str, Callable[[Any], str]], ...] = (  # column, label, how it is written
    ("params_trained", "trained", "{:,}".format),
    ("params_without_head", "without head", "{:,}".format),
    ("adapter_bytes", "adapter file", units.file_size),
    ("macs_published", "GMACs published", units.giga),
    ("macs_executed", "executed", units.giga),
    ("macs_merged", "merged", units.giga),
    ("training_memory_mib", "training step MiB", "{:.1f}".format),
    ("step_ms", "step ms", "{:.2f}".format),
    ("latency_unmerged_ms", "latency ms", "{:.2f}".format),
    ("latency_merged_ms", "merged ms", "{:.2f}".format),
)


@dataclass(frozen=True)
class Line:
    """A row of the table in plain numbers; None where something is not known.

    Attributes:
        values: column -> number or text, units in the names.
        near_best: headlines in which the row is the best one or not told apart from it.
    """

    values: Mapping[str, Any]
    near_best: frozenset[str]


def percent(value: float | None, digits: int = 2) -> str:
    """Write a share in percent; "-" where it is not known."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def with_sd(line: Line, key: str) -> str:
    """Write a mean, whose column is KEY_mean or "KEY_mean of what", with its deviation."""
    mean, deviation = line.values[key], line.values[key.replace("_mean", "_sd")]
    return percent(mean) + (f" +- {percent(deviation)}" if deviation is not None else "")


def difference(line: Line, prefix: str, of: str = "") -> str:
    """Write a paired difference with its interval, from the columns prefix + mean, low and high."""
    low, mean, high = (line.values[f"{prefix}{end}{of}"] for end in ("low", "mean", "high"))
    return "-" if low is None or mean is None or high is None else interval(low, mean, high)


def interval(low: float, mean: float, high: float) -> str:
    """Write a difference with its interval, in percent."""
    return f"{100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def seeds_ahead(ahead: int | None, seeds: int | None) -> str:
    """Say in how many of the common seeds a row is above another."""
    return "-" if ahead is None or seeds is None else f"{ahead} of {seeds}"


def or_dash(write: Callable[[Any], str], value: float | None) -> str:
    """Write a value; "-" where it is not known."""
    return "-" if value is None else write(value)


def family_labels(line: Line) -> dict[str, str]:
    """Label the mean errors: column -> which family, and of how many measured corruptions and severities."""
    found = {}
    for key in line.values:
        kind, _, family = key.partition(" ")
        if kind == "family_error_mean":
            measured = sum(name.startswith(f"error_mean {family}.") for name in line.values)
            found[key] = f"mean of {measured} of {family}"
    return found


def difference_labels(baseline: str, line: Line) -> dict[str, str]:
    """Label the paired differences of mean errors: column of the mean -> which family, against what."""
    kind = "family_error_difference_mean "
    return {
        key: f"{key.removeprefix(kind)} against {baseline}" for key in line.values if key.startswith(kind)
    }


def family_cells(line: Line) -> list[str]:
    """Write the mean errors of the families, and their differences to the baseline."""
    apart = [key.rpartition(" ")[2] for key in difference_labels("", line)]
    differences = [difference(line, "family_error_difference_", f" {family}") for family in apart]
    return [*(with_sd(line, key) for key in family_labels(line)), *differences]


def cost_cells(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Write what the rows cost: header and cells, "-" where something was not measured."""
    header = ("row", *(label for _, label, _ in COST))
    return header, [
        [line.values["row"], *(or_dash(write, line.values[key]) for key, _, write in COST)] for line in lines
    ]
