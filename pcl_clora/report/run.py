"""The page of a run: report.md beside its result, with the learning curve as csv and picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcl_clora.config import ConfigError, parse_overrides
from pcl_clora.engine import headlines
from pcl_clora.engine.precision import precision_of
from pcl_clora.engine.run.result import describe_data
from pcl_clora.io import write_text
from pcl_clora.io.text import markdown, shell
from pcl_clora.report import units
from pcl_clora.report.curve import curve_csv, curve_metric, plot_curve, read_curve
from pcl_clora.report.pictures import plot_bars, plot_confusion, plot_reliability_of
from pcl_clora.report.records import RunRecord, read_run, run_cost, task_of
from pcl_clora.report.tables import CLASS_TABLES, data_name, protocol_name

MAX_CURVE_ROWS = 20
MAX_CONFUSIONS = 10


def write_report(run_dir: str | Path) -> Path:
    """Write report.md, curve.csv and, with matplotlib, pictures into the folder of a finished run.

    The pictures are curve.png, confusion.png, reliability.png, and per_class.png or per_category.png and
    per_part.png. A result that was written before confidences were measured has no reliability plot, one of
    parts also no confusion matrix. The page shows calibration.png too, where `pcl-clora eval --calibration`
    has drawn it.

    Returns:
        The path of report.md.

    Raises:
        ReportError: if the run is not finished, or its number may not be printed (see `read_run`).
    """
    run = read_run(run_dir)
    folder = run.files.path
    run.files.check_metrics()
    curve = read_curve(run.files.metrics) if run.files.metrics.is_file() else []
    sections = [
        _head(run),
        _result(run),
        _cost(run),
        *_classes(run.result, folder),
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
    name = data_name(describe_data(run.cfg.data))
    held = f", {data['num_validation']:,} held out for validation" if data.get("num_validation") else ""
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    facts = [
        ("method", result["method"]),
        ("backbone", result["model"]),
        ("weights", run.cfg.weights.path or "random, from the seed"),
        (
            "data",
            f"{name}: {data['num_train']:,} training{held} and {data['num_test']:,} test "
            f"{units.samples(data)}",
        ),
        ("augmentation", result["augment"]),
        ("protocol", protocol_name(result["protocol"])),
        ("seed", str(result["seed"])),
        ("epochs, steps", f"{result['epochs']}, {result['steps']:,}"),
        ("time", units.duration(result["train_seconds"])),
        ("precision", precision_of(run.cfg, result)),
        ("settings", f"{result['config_hash']} (config.yaml)"),
        ("code", str(result["git"] or "not a git checkout")),
        ("versions", versions),
    ]
    return f"# {markdown(result['name'])}\n\n" + units.markdown_table(("", ""), facts)


def _result(run: RunRecord) -> str:
    metrics, best = run.result["metrics"], run.result["best"]
    chosen = {"last": "the last one", "test": "the best on the test set"}
    how = chosen.get(best.get("selected_on", "last"), f"the best on {markdown(best['selected_on'])}")
    numbers = [
        f"{head.title} **{units.percent(metrics[head.key])} %**" for head in headlines(task_of(run.result))
    ]
    loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
    text = f"{', '.join(numbers)}, cross entropy {loss}"
    return f"## Result on the test set\n\n{text[0].upper()}{text[1:]}. Epoch {best['epoch'] + 1}: {how}."


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
        *_votes(run, macs["executed"]),
    ]
    return "## Cost of one cloud\n\n" + units.markdown_table(("", ""), rows)


def _votes(run: RunRecord, macs: int) -> list[tuple[str, str]]:
    """Say what voting cost, if there was any."""
    votes = run.result["protocol"]["votes"]
    if votes == 1:
        return []
    seconds = run.result.get("evaluation", {}).get("seconds")
    return [
        ("votes: forward passes of a test cloud", str(votes)),
        ("GMACs executed, all votes", units.giga(votes * macs)),
        ("time of the evaluation on test", "?" if seconds is None else units.duration(seconds)),
    ]


def _classes(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Say what every class, category and part reached, what was confused, and how true confidences are."""
    metrics = result["metrics"]
    sections = []
    for key, name, quantity in CLASS_TABLES:
        if key in metrics:
            known = sorted((value, label) for label, value in metrics[key].items() if value is not None)
            rows = [(label, units.percent(value)) for value, label in known]
            plural = {"class": "Classes", "category": "Categories", "part": "Parts"}[name]
            table = units.markdown_table((name, f"{quantity}, percent"), rows)
            picture = ""
            if plot_bars(metrics[key], quantity, folder / f"{key}.png"):
                picture = f"![{quantity} of every {name}]({key}.png)\n\n"
            sections.append(f"## {plural}, hardest first\n\n{picture}{table}")
    if "confusion" in metrics:
        of_parts = "per_part" in metrics
        names = list(metrics["per_part" if of_parts else "per_class"])
        confusions = _confusions(metrics["confusion"], names)
        text = "Nothing was confused."
        if confusions:
            header = ("true", "said", "points" if of_parts else "clouds")
            text = f"Most frequent confusions:\n\n{units.markdown_table(header, confusions)}"
        if plot_confusion(metrics["confusion"], names, folder / "confusion.png"):
            text += "\n\n![confusion matrix](confusion.png)"
        sections.append(f"## What was confused\n\n{text}")
    return [*sections, *_reliability(metrics.get("reliability"), folder)]


def _reliability(content: Mapping[str, Any] | None, folder: Path) -> list[str]:
    """Say whether confidences are true, as far as it was measured."""
    lines = []
    if content is not None:
        lines.append(
            f"Expected calibration error of the {content['unit']} of the test set: "
            f"{units.percent(content['ece'])} percent, in {len(content['bins'])} bins."
        )
        if plot_reliability_of(content, folder / "reliability.png"):
            lines.append("![reliability](reliability.png)")
    if (folder / "calibration.png").is_file():
        lines.append("Before and after scaling by a temperature:\n\n![calibration](calibration.png)")
    return ["\n\n".join(["## Are confidences true?", *lines])] if lines else []


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
    metric = curve_metric(curve)
    columns = ("train_loss", *(f"{split}_{metric}" for split in ("train", "validation", "test")))
    used = [name for name in columns if any(row[name] is not None for row in curve)]
    rows = [[str(row["epoch"]), *(_cell(name, row[name]) for name in used)] for row in shown]
    label = {"oa": "OA"}.get(metric, "inst. mIoU")
    header = ["epoch", *(name.replace(f"_{metric}", f" {label}").replace("_", " ") for name in used)]
    return f"## Learning curve\n\n{picture}\n\n{units.markdown_table(header, rows)}\n\nAll epochs: curve.csv."


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if name.endswith("_loss") else units.percent(value)


def _repeat(run: RunRecord) -> str:
    again = f"{run.cfg.name}-again"
    plain = f"name={again}"
    try:
        is_plain = parse_overrides([plain]) == {"name": again}
    except ConfigError:
        is_plain = False
    override = plain if is_plain else f"name={json.dumps(again)}"
    return (
        "## Again\n\n"
        "```\n"
        f"pcl-clora train --config {shell(str(run.files.config))} {shell(override)}\n"
        f"pcl-clora eval --run {shell(str(run.files.path))}\n"
        "```"
    )
