"""The page of a fit: how well it does, how sure that is, what it confuses, its worst mistakes, what next."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pcl_clora.io import write_text
from pcl_clora.io.text import shell, visible
from pcl_clora.predict import Predictor
from pcl_clora.report.pictures import plot_confusion
from pcl_clora.vis.html import Item, render_gallery
from pcl_clora.vis.predictions import prediction_item
from pcl_clora.vis.segmentation import segment_test_set

MAX_MISTAKES = 60
WIDE = 0.15  # width of an interval above which the number says little
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left}"
    "img{max-width:100%}pre{background:#f5f5f5;padding:.6rem;overflow-x:auto}.big{font-size:1.6rem}"
    "iframe{width:100%;height:640px;border:1px solid #ccc}"
)


def write_page(out: Path, content: Mapping[str, Any]) -> Path:
    """Write fit.html, and mistakes.html with a picture of every wrong cloud, the surest or worst first.

    Args:
        out: folder of the run.
        content: of fit.json.
    """
    of_parts = content["task"] == "part_segmentation"
    names = list(content["per_part" if of_parts else "classes"])
    mistakes = _badly_cut(out) if of_parts else _mistakes(out, names)
    parts = [
        f"<h1>{_text(out.name)}</h1>",
        _result(content),
        _forgotten(content.get("forgetting")),
        _warnings(content["warnings"]),
        _per_part(content) if of_parts else "",
        "<h2>What is confused</h2>",
        _confusion(out, content["confusion"], names, "points" if of_parts else "clouds"),
        "<h2>The worst mistakes</h2>",
        _shown(mistakes, of_parts),
        "<h2>What next</h2>",
        _next(out, content),
    ]
    head = f"<meta charset='utf-8'><title>{_text(out.name)}</title><style>{_STYLE}</style>"
    body = "\n".join(part for part in parts if part)
    path = out / "fit.html"
    write_text(path, f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n")
    return path


def _text(text: str) -> str:
    return escape(visible(text))


def _result(content: Mapping[str, Any]) -> str:
    """Say the number, how it was found and how sure it is."""
    low, high = (f"{100 * each:.1f}" for each in content["interval"])
    how = (
        f"every cloud was judged once, by one of {content['folds']} models that had not seen it"
        if content["folds"]
        else "the clouds of the test split"
    )
    if content["task"] == "classification":
        return (
            f"<p class='big'>{100 * content['accuracy']:.1f} % right</p>"
            f"<p>{content['right']} of {content['judged']} clouds ({how}). With so many clouds the true "
            f"share lies between {low} and {high} % in 95 of 100 cases.</p>"
        )
    return (
        f"<p class='big'>{100 * content['miou']:.1f} % mean IoU</p>"
        f"<p>{content['judged']} clouds ({how}); {100 * content['point_accuracy']:.1f} % of their points "
        "have the right label. The IoU of a part is what truth and prediction share of all points that "
        f"either has. With so many clouds the mean lies between {low} and {high} % in 95 of 100 cases.</p>"
    )


def _forgotten(found: Mapping[str, Any] | None) -> str:
    """Show what the old classes lost by the new ones."""
    if not found:
        return ""
    lines = "".join(
        f"<tr><td>{_text(name)}</td>{''.join(f'<td>{_percent(value)}</td>' for value in both)}</tr>"
        for name, both in found["per_class"].items()
    )
    return (
        "<h2>What was forgotten</h2>"
        f"<p>On the {found['files']} files of the old classes that were held out of "
        f"{_text(found['run'])}: {_percent(found['before'])} right before, {_percent(found['after'])} after. "
        "The backbone, the spaces and the old classes' rows of the head are the same, bit for bit.</p>"
        f"<table><tr><th>class</th><th>before</th><th>after</th></tr>{lines}</table>"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    listed = "".join(f"<li>{_text(each)}</li>" for each in warnings)
    return f"<h2>Before you trust it</h2><ul>{listed}</ul>"


def _per_part(content: Mapping[str, Any]) -> str:
    """Show every part, the hardest first."""
    points = content["points"]
    total = max(sum(points.values()), 1)
    known = content["per_part"]
    lines = "".join(
        f"<tr><td>{_text(name)}</td><td>{_percent(known[name])}</td>"
        f"<td>{_percent(points[name] / total)}</td></tr>"
        for name in sorted(known, key=lambda name: (known[name] is None, known[name] or 0.0))
    )
    header = "<tr><th>part</th><th>mean IoU</th><th>of the points</th></tr>"
    return f"<h2>Parts, hardest first</h2><table>{header}{lines}</table>"


def _confusion(out: Path, counts: Sequence[Sequence[int]], names: Sequence[str], unit: str) -> str:
    rows = [
        (counts[true][said], names[true], names[said])
        for true in range(len(names))
        for said in range(len(names))
        if true != said and counts[true][said]
    ]
    rows.sort(reverse=True)
    lines = "".join(
        f"<tr><td>{_text(true)}</td><td>{_text(said)}</td><td>{count}</td></tr>"
        for count, true, said in rows[:15]
    )
    header = f"<tr><th>is</th><th>taken for</th><th>{unit}</th></tr>"
    table = f"<table>{header}{lines}</table>" if rows else "Nothing."
    picture = out / "fit_confusion.png"
    if plot_confusion(counts, names, picture):
        code = b64encode(picture.read_bytes()).decode()
        table += f"<p><img alt='confusion matrix' src='data:image/png;base64,{code}'></p>"
    return table


def _mistakes(out: Path, names: Sequence[str]) -> Path | None:
    """Write the gallery of the test clouds that the model gets wrong; None if it gets all right."""
    predictor = Predictor(out)
    dataset = predictor.dataset()
    items: list[Item] = []
    for number in range(len(dataset)):
        sample = dataset[number]
        said = predictor.predict_sample(sample)
        if int(said.label) != sample.label:
            item = prediction_item(predictor, sample.path, said)
            title = f"{names[sample.label]}: {item.title}"
            items.append(
                Item(title, item.panels, item.thumbnail, 1 - float(said.confidence), names[sample.label])
            )
    return _gallery(out, items, "doubt")


def _badly_cut(out: Path) -> Path | None:
    """Write the gallery of the labelled test clouds, the smallest IoU first; None if all are right."""
    found = segment_test_set(Predictor(out))
    items = [answer.item() for answer in found if answer.miou is not None and answer.miou < 1.0]
    return _gallery(out, items, "IoU")


def _gallery(out: Path, items: list[Item], score_name: str) -> Path | None:
    if not items:
        return None
    items.sort(key=lambda item: item.score or 0.0)
    path = out / "mistakes.html"
    render_gallery(path, items[:MAX_MISTAKES], title=f"Mistakes of {out.name}", score_name=score_name)
    return path


def _shown(mistakes: Path | None, of_parts: bool) -> str:
    if mistakes is None:
        return "<p>None among the clouds that were held out of the final model.</p>"
    which = (
        "held out of the final model, truth beside prediction, the smallest IoU first"
        if of_parts
        else "that the final model had not seen and gets wrong, the surest first"
    )
    return (
        f"<p>Clouds {which} (<a href='{mistakes.name}'>on a page of its own</a>).</p>"
        f"<iframe src='{mistakes.name}'></iframe>"
    )


def _next(out: Path, content: Mapping[str, Any]) -> str:
    run, advice = shell(str(out)), []
    if content["interval"][1] - content["interval"][0] > WIDE:
        advice.append("The interval is wide: more clouds make it narrower before anything else does.")
    if content["task"] == "part_segmentation":
        known = {name: value for name, value in content["per_part"].items() if value is not None}
        worst = min(known, key=lambda name: known[name])
        advice.append(
            f"{_text(worst)} is the hardest part ({_percent(known[worst])}): label more clouds that show it, "
            "and look in the gallery whether its labels agree with one another."
        )
        advice.append(
            "Answers too coarse? Let the model see more points: the same command with --points 2048."
        )
    else:
        counts = content["classes"]
        fewest = min(counts, key=lambda name: counts[name])
        advice.append(f"{_text(fewest)} has the fewest clouds ({counts[fewest]}); add there first.")
        advice.append("Another class later: pcl-clora fit NEW_FILES --extend " + _text(run))
    advice.append(f"{content['steps']} steps were trained; --steps says how many there are at least.")
    commands = (
        f"pcl-clora predict new_scans --run {run} --out answers.csv\n"
        f"pcl-clora view scan.ply --run {run} --out scan.html\n"
        f"pcl-clora adapters card {run} --out shared"
    )
    if content["task"] == "classification":
        commands += f"\npcl-clora export {run} --out model.onnx"
    listed = "".join(f"<li>{each}</li>" for each in advice)
    return f"<ul>{listed}</ul><pre>{escape(commands)}</pre>"
