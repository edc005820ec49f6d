"""The tables of a study for a paper: accuracy and cost, with the rules of booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pcl_clora.compare.cells import (
    NOTES,
    Line,
    cost_cells,
    difference,
    difference_labels,
    family_cells,
    family_labels,
    percent,
)
from pcl_clora.compare.results import StudyResults

_ESCAPED = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def latex_tables(results: StudyResults, lines: Sequence[Line]) -> str:
    """Write two tables, so that each fits a page: what the rows reach, and what they cost."""
    title = _escape(results.title)
    note = re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", NOTES).replace("%", r"\%").replace("+-", r"$\pm$")
    trained = _made(lines, ("precision", "processor", "torch"))
    measured = _made(lines, ("cost_precision", "cost_processor", "cost_threads"))
    what = "Trained: with head and tokens, and without; multiply-adds of a cloud, executed and after merging."
    measured = f" Memory and times: {measured}." if measured else ""
    header, cells = cost_cells(lines)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            *_table(
                f"{title}. Percent; {note}" + (f" {trained}." if trained else ""), *_accuracy(results, lines)
            ),
            *_table(f"{title}: cost. {what}{measured}", header, [[*map(_escape, row)] for row in cells]),
            "",
        ]
    )


def _made(lines: Sequence[Line], keys: Sequence[str]) -> str:
    """Say how the rows were made: "float32; AMD EPYC; torch 2.15.0"; nothing where it is not known."""
    found = [
        " and ".join(dict.fromkeys(str(line.values[key]) for line in lines if line.values[key]))
        for key in keys
    ]
    *others, last = found
    last = f"{keys[-1].removeprefix('cost_')} {last}"
    return _escape("; ".join([*others, last])) if all(found) else ""


def _accuracy(results: StudyResults, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    heads = results.headlines
    families = {**family_labels(lines[0]), **difference_labels(results.baseline, lines[0])}
    baseline = rf"$\Delta$ {_escape(results.baseline)}"
    errors = [f"error, {_escape(label)}" for label in families.values()]
    header = ["row", "n", *(head.label for head in heads), baseline, "ECE", *errors]
    rows = []
    for line in lines:
        failed = " (failed)" if line.values["state"].startswith("failed") else ""
        cells = [_escape(line.values["row"]) + failed, str(line.values["n"])]
        for head in heads:
            mean, deviation = line.values[f"{head.key}_mean"], line.values[f"{head.key}_sd"]
            shown = percent(mean)
            shown = rf"\textbf{{{shown}}}" if head.key in line.near_best else shown
            cells.append(shown + (rf" $\pm$ {percent(deviation)}" if deviation is not None else ""))
        cells += [_minus(difference(line, "difference_")), percent(line.values["ece_mean"])]
        rows.append([*cells, *map(_minus, family_cells(line))])
    return header, rows


def _minus(cell: str) -> str:
    return cell if cell == "-" else cell.replace("+-", r"$\pm$").replace("-", "$-$")


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join("--" if cell == "-" else cell for cell in row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _escape(text: str) -> str:
    return text.translate(_ESCAPED)
