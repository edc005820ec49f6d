"""The page of a run: report.md beside its result, with the learning curve as csv and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcl_clora.io import write_text
from pcl_clora.report import units
from pcl_clora.report.curve import curve_csv, plot_curve, read_curve
from pcl_clora.report.records import RunRecord, read_run, run_cost
from pcl_clora.report.tables import protocol_name

MAX_CURVE_ROWS = 20
MAX_CONFUSIONS = 10


def write_report(run_dir: str | Path) -> Path:
    """Write report.md, curve.csv and, with matplotlib, curve.png into the folder of a finished run.

    Returns:
        The path of report.md.

    Raises:
        ReportError: if the run is not finished, or its number may not be printed (see `read_run`).
    """
    run = read_run(run_dir)
    folder = run.files.path
    curve = read_curve(run.files.metrics) if run.files.metrics.is_file() else []
    sections = [
        _head(run),
        _result(run),
        _cost(run),
        _classes(run.result),
        _curve(curve, folder),
        _repeat(run),
    ]
    write_text(folder / "curve.csv", curve_csv(curve))
    path = folder / "report.md"
    write_text(path, "\n\n".join(sections) + "\n")
    return path


def _head(run: RunRecord) -> str:
    result = run.result
    data = result["data"]
    held = f", {data['num_validation']:,} held out for validation" if data.get("num_validation") else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    facts = [
        ("method", result["method"]),
        ("backbone", result["model"]),
        ("weights", run.cfg.weights.path or "random, from the seed"),
        (
            "data",
            f"{data['name']}: {data['num_train']:,} training{held} and {data['num_test']:,} test clouds of "
            f"{data['num_points']:,} points",
        ),
        ("augmentation", result["augment"]),
        ("protocol", protocol_name(result["protocol"])),
        ("seed", str(result["seed"])),
        ("epochs, steps", f"{result['epochs']}, {result['steps']:,}"),
        ("time", units.duration(result["train_seconds"])),
        ("settings", f"{result['config_hash']} (config.yaml)"),
        ("code", str(result["git"] or "not a git checkout")),
        ("versions", versions),
    ]
    return f"# {result['name']}\n\n" + units.markdown_table(("", ""), facts)


def _result(run: RunRecord) -> str:
    metrics, best = run.result["metrics"], run.result["best"]
    chosen = {"last": "the last one", "test": "the best on the test set"}
    how = chosen.get(best["selected_on"], f"the best on {best['selected_on']}")
    return (
        "## Result on the test set\n\n"
        f"Overall accuracy **{units.percent(metrics['oa'])} %**, mean class accuracy "
        f"{units.percent(metrics['macc'])} %, cross entropy {metrics['loss']:.4f}. "
        f"Epoch {best['epoch'] + 1}: {how}."
    )


def _cost(run: RunRecord) -> str:
    cost, params = run_cost(run.cfg), run.result["params"]
    macs = cost["macs"]
    size = run.adapter_bytes
    rows = [(f"parameters, {name}", f"{value:,}") for name, value in params.items()]
    rows += [
        ("adapter file", "?" if size is None else units.file_size(size)),
        ("GMACs, papers' convention", units.giga(macs["published"])),
        ("GMACs executed, attention included", units.giga(macs["executed"])),
        ("the same, adapter merged", units.giga(macs["executed_merged"])),
    ]
    return "## Cost of one cloud\n\n" + units.markdown_table(("", ""), rows)


def _classes(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    recall: Mapping[str, float | None] = metrics["per_class"]
    known = sorted(((value, name) for name, value in recall.items() if value is not None))
    rows = [(name, units.percent(value)) for value, name in known]
    text = "## Classes, hardest first\n\n" + units.markdown_table(("class", "recall, percent"), rows)
    confusions = _confusions(metrics["confusion"], list(recall))
    if confusions:
        text += "\n\nMost frequent confusions:\n\n"
        text += units.markdown_table(("true", "said", "clouds"), confusions)
    return text


def _confusions(counts: Sequence[Sequence[int]], names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Largest cells off the diagonal, as (true class, predicted class, count)."""
    cells = [
        (count, names[true], names[said])
        for true, row in enumerate(counts)
        for said, count in enumerate(row)
        if count and true != said
    ]
    cells.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    return [(true, said, str(count)) for count, true, said in cells[:MAX_CONFUSIONS]]


def _curve(curve: Sequence[dict[str, Any]], folder: Path) -> str:
    if plot_curve(curve, folder / "curve.png"):
        picture = "![loss and accuracy over the epochs](curve.png)"
    else:
        picture = "No picture: `pip install matplotlib` and `pcl-clora report run` again to get one."
    every = max(1, -(-len(curve) // MAX_CURVE_ROWS))
    shown = [row for row in curve if row["epoch"] % every == 0 or row is curve[-1]]
    columns = ("train_loss", "train_oa", "validation_oa", "test_oa")
    used = [name for name in columns if any(row[name] is not None for row in curve)]
    rows = [[str(row["epoch"]), *(_cell(name, row[name]) for name in used)] for row in shown]
    header = ["epoch", *(name.replace("_oa", " OA").replace("_", " ") for name in used)]
    return f"## Learning curve\n\n{picture}\n\n{units.markdown_table(header, rows)}\n\nAll epochs: curve.csv."


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return units.percent(value) if name.endswith("_oa") else f"{value:.4f}"


def _repeat(run: RunRecord) -> str:
    return (
        "## Again\n\n"
        "```\n"
        f"pcl-clora train --config {run.files.config} name={run.cfg.name}-again\n"
        f"pcl-clora eval --run {run.files.path}\n"
        "```"
    )
