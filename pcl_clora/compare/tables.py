"""The table of a study as markdown, csv, LaTeX and json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcl_clora.compare.advice import advice_cells, advise
from pcl_clora.compare.results import RowResult, StudyResults
from pcl_clora.compare.statistics import Difference
from pcl_clora.io import write_json, write_text
from pcl_clora.io.text import markdown
from pcl_clora.report import units

NOTES = (
    "mean +- standard deviation (n - 1) over n seeds; [low, high]: 95 % interval of the paired difference to "
    "the baseline, by a bootstrap over seeds and test clouds, one comparison at a time. **Bold**: the best "
    "row, and rows whose paired difference to it is not clear of zero."
)
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
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
    return [_line(results, row, baseline, near, errors, terms) for row in results.rows]


def _has_runs(results: StudyResults, name: str) -> bool:
    return any(row.records and name in (row.name, row.row) for row in results.rows)


def _line(
    results: StudyResults,
    row: RowResult,
    baseline: RowResult | None,
    near: Mapping[str, frozenset[str]],
    errors: Sequence[str],
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
    write_text(path / "table.tex", latex_table(results, lines))
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


def percent(value: float | None, digits: int = 2) -> str:
    """Write a share in percent; "-" where it is not known."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _with_sd(line: Line, key: str) -> str:
    """Write a mean, whose column is KEY_mean or "KEY_mean of what", with its deviation."""
    mean, deviation = line.values[key], line.values[key.replace("_mean", "_sd")]
    return percent(mean) + (f" +- {percent(deviation)}" if deviation is not None else "")


def _difference(low: float | None, mean: float | None, high: float | None) -> str:
    if low is None or mean is None or high is None:
        return "-"
    return f"{100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _ahead(ahead: int | None, seeds: int | None) -> str:
    return "-" if ahead is None or seeds is None else f"{ahead} of {seeds}"


def _or_dash(write: Callable[[float], str], value: float | None) -> str:
    return "-" if value is None else write(value)


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
            *(_with_sd(line, f"{head.key}_mean") for head in heads),
        ]
        cells.append(_difference(*(line.values[f"difference_{end}"] for end in ("low", "mean", "high"))))
        cells.append(_ahead(line.values["difference_ahead"], line.values["difference_seeds"]))
        cells.append(percent(line.values["ece_mean"]))
        cells += [_or_dash(lambda value: f"{value:.3g}", line.values[term]) for term in terms]
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
                *((_difference(d.low, d.mean, d.high), _ahead(d.ahead, d.seeds)) if d else ("-", "-")),
            ]
            for one, other, d in asked_pairs(results)
        ]
        header = ("row", "against", "difference", "seeds ahead")
        text += ["\n## Asked pairs\n", units.markdown_table(header, cells)]
    if results.finished:
        header, cells = advice_cells(results, advise(results))
        text += ["\n## Which method for me\n", units.markdown_table(header, cells)]
    text += ["\n## Cost\n", units.markdown_table(*_cost_cells(lines))]
    names = [key for key in lines[0].values if key.startswith("error_mean ")]
    if names:
        rates = [
            [line.values["row"], *(percent(line.values[name]) for name in names), *_families(line)]
            for line in lines
        ]
        families = family_labels(lines[0])
        header = ("row", *(name.removeprefix("error_mean ") for name in names), *families.values())
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
    heads, families = results.headlines, family_labels(lines[0])
    extra = {"training_memory_mib": "training MiB", "step_ms": "step ms", "latency_merged_ms": "merged ms"}
    extra = {key: label for key, label in extra.items() if any(line.values[key] for line in lines)}
    cells = []
    for line in shown:
        values = line.values
        row = [values["row"], str(values["n"]), *(_with_sd(line, f"{head.key}_mean") for head in heads)]
        row.append(_difference(*(values[f"difference_{end}"] for end in ("low", "mean", "high"))))
        row.append(_ahead(values["difference_ahead"], values["difference_seeds"]))
        row.append("-" if values["chosen"] is None else f"{values['chosen']:g}")
        row.append(_or_dash(lambda n: f"{n:,}", values["params_without_head"]))
        row += [percent(values["ece_mean"]), *(_with_sd(line, key) for key in families)]
        row += [_or_dash(lambda n: f"{n:.1f}", values[key]) for key in extra]
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
        f"{markdown(one)} against {markdown(other)}: {_difference(d.low, d.mean, d.high)}, "
        f"{_ahead(d.ahead, d.seeds)} seeds ahead"
        for one, other, d in asked_pairs(results)
        if d and other != results.baseline
    ]
    text += ["\n".join(f"* {pair}" for pair in pairs)] if pairs else []
    missing = [markdown(line.values["row"]) for line in lines if line not in shown]
    text += (
        [f"Not computed yet ({len(missing)} of {len(lines)} rows): {', '.join(missing)}."] if missing else []
    )
    return "\n" + "\n\n".join(text) + "\n\n"


def family_labels(line: Line) -> dict[str, str]:
    """Label the mean errors: column -> which family, and of how many measured corruptions and severities."""
    found = {}
    for key in line.values:
        kind, _, family = key.partition(" ")
        if kind == "family_error_mean":
            measured = sum(name.startswith(f"error_mean {family}.") for name in line.values)
            found[key] = f"mean of {measured} of {family}"
    return found


def _families(line: Line) -> list[str]:
    return [_with_sd(line, key) for key in family_labels(line)]


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


def _cost_cells(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[list[str]]]:
    header = (
        "row",
        "trained",
        "without head",
        "adapter file",
        "GMACs published",
        "executed",
        "merged",
        "training step MiB",
        "step ms",
        "latency ms",
        "merged ms",
    )
    cells = []
    for line in lines:
        values = line.values
        cells.append(
            [
                values["row"],
                *(
                    _or_dash(lambda n: f"{n:,}", values[key])
                    for key in ("params_trained", "params_without_head")
                ),
                _or_dash(units.file_size, values["adapter_bytes"]),
                *(_or_dash(units.giga, values[f"macs_{key}"]) for key in ("published", "executed", "merged")),
                _or_dash(lambda n: f"{n:.1f}", values["training_memory_mib"]),
                *(
                    _or_dash(lambda n: f"{n:.2f}", values[key])
                    for key in ("step_ms", "latency_unmerged_ms", "latency_merged_ms")
                ),
            ]
        )
    return header, cells


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


def latex_table(results: StudyResults, lines: Sequence[Line]) -> str:
    """Write a table for a paper, with the rules of booktabs."""
    heads, families = results.headlines, family_labels(lines[0])
    names = [
        "row",
        "n",
        *(head.label for head in heads),
        f"$\\Delta$ {_latex(results.baseline)}",
        "params",
        "GMACs",
        "ECE",
        *(f"error, {_latex(label)}" for label in families.values()),
    ]
    rows = []
    for line in lines:
        failed = " (failed)" if line.values["state"].startswith("failed") else ""
        cells = [_latex(line.values["row"]) + failed, str(line.values["n"])]
        for head in heads:
            mean, deviation = line.values[f"{head.key}_mean"], line.values[f"{head.key}_sd"]
            shown = percent(mean)
            shown = f"\\textbf{{{shown}}}" if head.key in line.near_best else shown
            cells.append(shown + (f" $\\pm$ {percent(deviation)}" if deviation is not None else ""))
        ends = [line.values[f"difference_{end}"] for end in ("low", "mean", "high")]
        cells.append(_difference(*ends).replace("-", "$-$") if ends[0] is not None else "--")
        cells.append(_or_dash(lambda n: f"{n:,}", line.values["params_without_head"]))
        cells.append(_or_dash(units.giga, line.values["macs_merged"]))
        cells.append(percent(line.values["ece_mean"]))
        cells += [_with_sd(line, key).replace("+-", r"$\pm$") for key in families]
        rows.append(" & ".join("--" if cell == "-" else cell for cell in cells) + r" \\")
    note = re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", NOTES).replace("%", r"\%").replace("+-", r"$\pm$")
    made = [
        " and ".join(dict.fromkeys(line.values[key] for line in lines if line.values[key]))
        for key in ("precision", "processor", "torch")
    ]
    note += " params: without head, tokens; GMACs: merged."
    note += f" {_latex('; '.join(made[:2]))}; torch {made[2]}." if all(made) else ""
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(results.title)}. Percent; {note}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
            r"\toprule",
            " & ".join(names) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex(text: str) -> str:
    return text.translate(_LATEX)
