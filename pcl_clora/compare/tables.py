"""The table of a study as markdown, csv, LaTeX and json."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pcl_clora.compare.advice import advice_cells, advise
from pcl_clora.compare.cells import (
    NOTES,
    Line,
    cost_cells,
    difference,
    difference_labels,
    family_cells,
    family_labels,
    interval,
    or_dash,
    percent,
    seeds_ahead,
    with_sd,
)
from pcl_clora.compare.latex import latex_tables
from pcl_clora.compare.results import RowResult, StudyResults
from pcl_clora.compare.statistics import Difference
from pcl_clora.io import write_json, write_text
from pcl_clora.io.text import markdown
from pcl_clora.report import units


def table_lines(results: StudyResults) -> list[Line]:
    """Gather the numbers of every row, those without a finished run too."""
    baseline = results.row(results.baseline) if _has_runs(results, results.baseline) else None
    near = {
        headline.key: results.near_best(by_class=number > 0)
        for number, headline in enumerate(results.headlines)
        if number == 0 or results.task == "classification"
    }
    errors = list(dict.fromkeys(name for row in results.finished for name in row.errors()))
    terms = list(dict.fromkeys(name for row in results.finished for name in row.last_values()))
    # Nothing is paired with a baseline whose runs do not say which corrupted clouds were right.
    known = baseline.right.values() if baseline else ()
    families = {name.partition(".")[0] for one in known for name in one}
    return [_line(results, row, baseline, near, errors, families, terms) for row in results.rows]


def _has_runs(results: StudyResults, name: str) -> bool:
    return any(row.records and name in (row.name, row.row) for row in results.rows)


def _line(
    results: StudyResults,
    row: RowResult,
    baseline: RowResult | None,
    near: Mapping[str, frozenset[str]],
    errors: Sequence[str],
    paired: Collection[str],
    terms: Sequence[str],
) -> Line:
    values: dict[str, Any] = {"row": row.name, "state": row.state, "n": len(row.records)}
    for headline in results.headlines:
        values[f"{headline.key}_mean"], values[f"{headline.key}_sd"] = row.metric(headline.key) or (
            None,
            None,
        )
    baseline = results.like(baseline, row) if baseline else None
    apart = results.compare(row, baseline) if baseline and row.records and row is not baseline else None
    for name in ("mean", "low", "high", "seeds", "ahead"):
        values[f"difference_{name}"] = getattr(apart, name) if apart else None
    values["difference_to"] = baseline.name if apart and baseline else None
    values["ece_mean"], values["ece_sd"] = row.metric("ece") or (None, None)
    found = row.errors() if row.records else {}
    for name in errors:
        values[f"error_mean {name}"], values[f"error_sd {name}"] = found.get(name, (None, None))
    means = row.mean_errors() if row.records else {}
    for family in dict.fromkeys(name.partition(".")[0] for name in errors):
        for key, value in zip(("mean", "sd"), means.get(family, (None, None)), strict=True):
            values[f"family_error_{key} {family}"] = value
        if family in paired:
            worse = results.compare_errors(row, baseline, family) if apart and baseline else None
            for end in ("mean", "low", "high", "seeds"):
                values[f"family_error_difference_{end} {family}"] = getattr(worse, end) if worse else None
    for name in terms:
        values[name] = row.last_values().get(name) if row.records else None
    values |= _cost(row)
    values |= _provenance(row)
    return Line(values, frozenset(key for key, names in near.items() if row.name in names))


def _cost(row: RowResult) -> dict[str, Any]:
    first = row.first if row.records else {}
    memory, latency = row.measured.get("memory_mib") or {}, row.measured.get("latency_ms") or {}
    sizes = row.sizes if row.records else {}
    return {
        "params_trained": sizes.get("trained"),
        "params_without_head": sizes.get("without_head"),
        "adapter_bytes": first.get("adapter_bytes"),
        "macs_published": row.counts.get("published"),
        "macs_executed": row.counts.get("executed"),
        "macs_merged": row.counts.get("executed_merged"),
        "training_memory_mib": memory.get("training_step"),
        "step_ms": row.measured.get("step_ms"),
        "latency_unmerged_ms": latency.get("unmerged"),
        "latency_merged_ms": latency.get("merged"),
        **{f"cost_{key}": row.measured.get(key) for key in ("precision", "processor", "threads", "load")},
    }


def _provenance(row: RowResult) -> dict[str, Any]:
    """Say how a row was made: setting that was chosen, precision, processors, versions, commits."""

    def all_of(key: Callable[[Mapping[str, Any]], Any]) -> str | None:
        return ", ".join(dict.fromkeys(str(key(record)) for record in row.records.values())) or None

    return {
        "method": row.first["method"] if row.records else None,
        "chosen": row.choice["value"] if row.choice else None,
        "chosen_setting": row.choice["setting"] if row.choice else None,
        "seeds": " ".join(map(str, row.seeds)),
        "train_seconds": _mean([record["train_seconds"] for record in row.records.values()]),
        "precision": all_of(lambda record: record["precision"]),
        "product": all_of(lambda record: record["product"]),
        "processor": all_of(lambda record: record["processor"]),
        "torch": all_of(lambda record: record["versions"]["torch"]),
        "versions": all_of(lambda record: " ".join(f"{k}={v}" for k, v in record["versions"].items())),
        "git": all_of(lambda record: (record["git"] or "not recorded")[:12]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def asked_pairs(results: StudyResults) -> list[tuple[str, str, Difference | None]]:
    """Compare the pairs that the study asks for; None where runs are missing or no seed is in both."""
    found = []
    for one, other in results.pairs:
        there = _has_runs(results, one) and _has_runs(results, other)
        found.append((one, other, results.compare(results.row(one), results.row(other)) if there else None))
    return found


def write_tables(results: StudyResults) -> list[Line]:
    """Write table.md, table.csv, table.tex and table.json into the folder of a study."""
    lines = table_lines(results)
    path = results.path
    write_text(path / "table.md", markdown_tables(results, lines))
    write_text(path / "table.csv", csv_lines(results, lines))
    write_text(path / "table.tex", latex_tables(results, lines))
    content = {
        "title": results.title,
        "baseline": results.baseline,
        "rows": [{**line.values, "near_best": sorted(line.near_best)} for line in lines],
        "pairs": [
            {"row": one, "against": other, **(vars(apart) if apart else {"mean": None})}
            for one, other, apart in asked_pairs(results)
        ],
    }
    write_json(path / "table.json", content)
    return lines


def csv_lines(results: StudyResults, lines: Sequence[Line]) -> str:
    """Write table.csv: plain numbers, and 1 where a row is not told apart from the best one."""
    near = [f"{headline.key}_near_best" for headline in results.headlines]
    rows = [
        [*line.values.values(), *(int(head.key in line.near_best) for head in results.headlines)]
        for line in lines
    ]
    return units.csv_table([*lines[0].values, *near], rows)


def markdown_tables(results: StudyResults, lines: Sequence[Line]) -> str:
    """Write the page table.md: accuracy, asked pairs, cost, robustness, and how the rows were made."""
    heads = results.headlines
    text = [f"# {markdown(results.title)}", f"Percent; {NOTES} Baseline: {markdown(results.baseline)}.\n"]
    accuracy: list[list[str]] = []
    terms = [key for key in lines[0].values if key.startswith("value_")]
    for line in lines:
        cells = [
            line.values["row"],
            str(line.values["n"]),
            *(with_sd(line, f"{head.key}_mean") for head in heads),
        ]
        cells.append(difference(line, "difference_"))
        cells.append(seeds_ahead(line.values["difference_ahead"], line.values["difference_seeds"]))
        cells.append(percent(line.values["ece_mean"]))
        cells += [or_dash(lambda value: f"{value:.3g}", line.values[term]) for term in terms]
        accuracy.append([*cells, line.values["state"]])
    shown = [term.removeprefix("value_") for term in terms]
    against = (f"against {results.baseline}", "seeds ahead")
    header = ("row", "n", *(h.label for h in heads), *against, "ECE", *shown, "state")
    text.append(_bold_near_best(units.markdown_table(header, accuracy), lines, heads))
    if results.pairs:
        cells = [
            [
                one,
                other,
                *((interval(d.low, d.mean, d.high), seeds_ahead(d.ahead, d.seeds)) if d else ("-", "-")),
            ]
            for one, other, d in asked_pairs(results)
        ]
        header = ("row", "against", "difference", "seeds ahead")
        text += ["\n## Asked pairs\n", units.markdown_table(header, cells)]
    if results.finished:
        header, cells = advice_cells(results, advise(results))
        text += ["\n## Which method for me\n", units.markdown_table(header, cells)]
    text += ["\n## Cost\n", units.markdown_table(*cost_cells(lines))]
    names = [key for key in lines[0].values if key.startswith("error_mean ")]
    if names:
        rates = [
            [line.values["row"], *(percent(line.values[name]) for name in names), *family_cells(line)]
            for line in lines
        ]
        labels = (*family_labels(lines[0]).values(), *difference_labels(results.baseline, lines[0]).values())
        header = ("row", *(name.removeprefix("error_mean ") for name in names), *labels)
        text += ["\n## Error under corruption, percent\n", units.markdown_table(header, rates)]
    text += ["\n## How the rows were made\n", units.markdown_table(*_provenance_cells(lines))]
    failed = [
        f"* {markdown(row.name)}, {run}: {markdown(why)}"
        for row in results.rows
        for run, why in row.failed.items()
    ]
    if failed:
        text += ["\n## Failed runs\n", *failed]
    return "\n".join(text) + "\n"


def page_section(results: StudyResults, lines: Sequence[Line]) -> str:
    """Write a part of a page: one table of the rows that are there or failed, pairs, and what is missing."""
    shown = [line for line in lines if line.values["n"] or line.values["state"].startswith("failed")]
    heads = results.headlines
    families = {**family_labels(lines[0]), **difference_labels(results.baseline, lines[0])}
    extra = {"training_memory_mib": "training MiB", "step_ms": "step ms", "latency_merged_ms": "merged ms"}
    extra = {key: label for key, label in extra.items() if any(line.values[key] for line in lines)}
    cells = []
    for line in shown:
        values = line.values
        row = [values["row"], str(values["n"]), *(with_sd(line, f"{head.key}_mean") for head in heads)]
        row.append(difference(line, "difference_"))
        row.append(seeds_ahead(values["difference_ahead"], values["difference_seeds"]))
        row.append("-" if values["chosen"] is None else f"{values['chosen']:g}")
        row.append(or_dash(lambda n: f"{n:,}", values["params_without_head"]))
        row += [percent(values["ece_mean"]), *family_cells(line)]
        row += [or_dash(lambda n: f"{n:.1f}", values[key]) for key in extra]
        cells.append([*row, values["state"]])
    chosen = next(
        (line.values["chosen_setting"] for line in lines if line.values["chosen_setting"]), "chosen"
    )
    header = (
        "row",
        "n",
        *(head.label for head in heads),
        f"against {results.baseline}",
        "seeds ahead",
        chosen,
    )
    header = (*header, "without head", "ECE", *(f"error, {x}" for x in families.values()), *extra.values())
    text = [_bold_near_best(units.markdown_table((*header, "state"), cells), shown, heads)]
    pairs = [
        f"{markdown(one)} against {markdown(other)}: {interval(d.low, d.mean, d.high)}, "
        f"{seeds_ahead(d.ahead, d.seeds)} seeds ahead"
        for one, other, d in asked_pairs(results)
        if d and other != results.baseline
    ]
    text += ["\n".join(f"* {pair}" for pair in pairs)] if pairs else []
    missing = [markdown(line.values["row"]) for line in lines if line not in shown]
    text += (
        [f"Not computed yet ({len(missing)} of {len(lines)} rows): {', '.join(missing)}."] if missing else []
    )
    return "\n" + "\n\n".join(text) + "\n\n"


def _bold_near_best(table: str, lines: Sequence[Line], heads: Sequence[Any]) -> str:
    """Make the numbers of the best rows bold; the table's third column is the first headline."""
    written = table.splitlines()
    for number, line in enumerate(lines, start=2):
        cells = written[number].split(" | ")
        for column, head in enumerate(heads, start=2):
            if head.key in line.near_best:
                cells[column] = f"**{cells[column]}**"
        written[number] = " | ".join(cells)
    return "\n".join(written)


def _provenance_cells(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[list[str]]]:
    keys = (
        "method",
        "chosen_setting",
        "chosen",
        "seeds",
        "precision",
        "product",
        "processor",
        "torch",
        "git",
    )
    cells = [
        [line.values["row"], *("-" if line.values[k] is None else str(line.values[k]) for k in keys)]
        for line in lines
    ]
    return ("row", "method", "chosen", "value", *keys[3:]), cells
