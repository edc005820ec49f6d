"""Which method for me: the best row within a budget, and the cheapest that is not told apart from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from pcl_clora.compare.results import RowResult, StudyResults
from pcl_clora.report import units

BUDGETS = (5_000, 35_000, 100_000)  # trained parameters without head and tokens


@dataclass(frozen=True)
class Advice:
    """What to take within a budget.

    Attributes:
        budget: in words.
        best: the row with the highest mean within it.
        cheapest: the row that needs least among those that are not told apart from the best.
        within: how many rows the budget allows.
    """

    budget: str
    best: RowResult
    cheapest: RowResult
    within: int


def advise(results: StudyResults) -> list[Advice]:
    """Go through budgets of parameters, and of memory and latency where these were measured."""
    found = []

    def parameters(row: RowResult) -> float | None:
        return row.sizes["without_head"]

    def memory(row: RowResult) -> float | None:
        value = (row.measured.get("memory_mib") or {}).get("training_step")
        return None if value is None else float(value)

    def latency(row: RowResult) -> float | None:
        value = (row.measured.get("latency_ms") or {}).get("merged")
        return None if value is None else float(value)

    limits: tuple[float | None, ...] = (*BUDGETS, None)
    for limit in limits:
        words = "any number of parameters" if limit is None else f"at most {units.count(limit)} parameters"
        found.append(_within(results, words, parameters, limit))
    for cost, what, unit in (
        (memory, "memory of a training step", "MiB"),
        (latency, "latency, merged", "ms"),
    ):
        values = sorted(value for row in results.finished if (value := cost(row)) is not None)
        if len(values) > 1:
            limit = values[(len(values) - 1) // 2]
            found.append(_within(results, f"{what} at most {limit:.4g} {unit}", cost, limit))
    return [advice for advice in found if advice is not None]


def _within(
    results: StudyResults, words: str, cost: Callable[[RowResult], float | None], limit: float | None
) -> Advice | None:
    key = results.headlines[0].key
    costs = {row.name: cost(row) for row in results.finished}
    rows = [
        row
        for row in results.finished
        if (c := costs[row.name]) is not None and (limit is None or c <= limit)
    ]
    scored = [(value[0], row) for row in rows if (value := row.metric(key)) is not None]
    if not scored:
        return None
    best = max(scored, key=lambda pair: pair[0])[1]
    alike = [best]
    for row in rows:
        apart = results.compare(best, row) if row is not best else None
        if apart is not None and not apart.is_told_apart:
            alike.append(row)
    return Advice(words, best, min(alike, key=lambda row: costs[row.name] or 0.0), len(rows))


def overrides_of(results: StudyResults, row: RowResult) -> str:
    """Write the settings of a row as `key=value` words for `pcl-clora train`, over the base of the study."""
    given: Mapping[str, Any] = (
        results.content["settings"]["rows"].get(row.row.split(",")[0], {}).get("settings", {})
    )
    words = _words("", given)
    words += [
        f"{key}={_short(value)}" for key, value in results.content["rows"][row.row].get("varied", {}).items()
    ]
    if row.choice is not None:
        words.append(f"{row.choice['setting']}={row.choice['value']:g}")
    return " ".join(words)


def _words(prefix: str, values: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        words += _words(name, value) if isinstance(value, Mapping) else [f"{name}={_short(value)}"]
    return words


def _short(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True).strip()
    return text.removesuffix("...").strip().replace(", ", ",")


def advice_cells(results: StudyResults, advices: Sequence[Advice]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return header and cells of the advice as a table."""
    key = results.headlines[0].key
    rows = []
    for advice in advices:
        best, cheapest = ((row.metric(key) or (0.0, None))[0] for row in (advice.best, advice.cheapest))
        rows.append(
            [
                advice.budget,
                f"{advice.best.name} ({units.percent(best)})",
                f"{advice.cheapest.name} ({units.percent(cheapest)})",
                f"{advice.cheapest.sizes['without_head']:,}",
                overrides_of(results, advice.cheapest),
            ]
        )
    header = (
        "budget",
        "best",
        "cheapest that is not told apart from it",
        "its parameters",
        f"its settings over {PurePath(results.content['settings'].get('base', 'the base')).name}",
    )
    return header, rows
