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

MAX_MISTAKES = 60
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left}"
    "img{max-width:100%}pre{background:#f5f5f5;padding:.6rem;overflow-x:auto}.big{font-size:1.6rem}"
    "iframe{width:100%;height:640px;border:1px solid #ccc}"
)


def write_page(out: Path, content: Mapping[str, Any]) -> Path:
    """Write fit.html, and mistakes.html with a picture of every wrong cloud, the surest first.

    Args:
        out: folder of the run.
        content: of fit.json.
    """
    names = list(content["classes"])
    mistakes = _mistakes(out, names)
    low, high = content["interval"]
    how = (
        f"every cloud was judged once, by one of {content['folds']} models that had not seen it"
        if content["folds"]
        else "the clouds of the test split"
    )
    parts = [
        f"<h1>{_text(out.name)}</h1>",
        f"<p class='big'>{100 * content['accuracy']:.1f} % right</p>",
        f"<p>{content['right']} of {content['judged']} clouds ({how}). With so many clouds the true share "
        f"lies between {100 * low:.1f} and {100 * high:.1f} % in 95 of 100 cases.</p>",
        _warnings(content["warnings"]),
        "<h2>What is confused</h2>",
        _confusion(out, content["confusion"], names),
        "<h2>The worst mistakes</h2>",
        _shown(mistakes),
        "<h2>What next</h2>",
        _next(out, content),
    ]
    head = f"<meta charset='utf-8'><title>{_text(out.name)}</title><style>{_STYLE}</style>"
    body = "\n".join(parts)
    path = out / "fit.html"
    write_text(path, f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n")
    return path


def _text(text: str) -> str:
    return escape(visible(text))


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    listed = "".join(f"<li>{_text(each)}</li>" for each in warnings)
    return f"<h2>Before you trust it</h2><ul>{listed}</ul>"


def _confusion(out: Path, counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
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
    table = (
        f"<table><tr><th>is</th><th>taken for</th><th>clouds</th></tr>{lines}</table>" if rows else "Nothing."
    )
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
    if not items:
        return None
    items.sort(key=lambda item: item.score or 0.0)
    path = out / "mistakes.html"
    render_gallery(path, items[:MAX_MISTAKES], title=f"Mistakes of {out.name}")
    return path


def _shown(mistakes: Path | None) -> str:
    if mistakes is None:
        return "<p>None among the clouds that were held out of the final model.</p>"
    return (
        f"<p>Clouds that the final model had not seen and gets wrong, the surest first "
        f"(<a href='{mistakes.name}'>on a page of its own</a>).</p><iframe src='{mistakes.name}'></iframe>"
    )


def _next(out: Path, content: Mapping[str, Any]) -> str:
    run = shell(str(out))
    advice = []
    counts = content["classes"]
    fewest = min(counts, key=lambda name: counts[name])
    if content["interval"][1] - content["interval"][0] > 0.15:
        advice.append("The interval is wide: more clouds make it narrower before anything else does.")
    advice.append(f"{_text(fewest)} has the fewest clouds ({counts[fewest]}); add there first.")
    commands = (
        f"pcl-clora predict new_scans --run {run} --out answers.csv\n"
        f"pcl-clora view scan.ply --run {run} --out scan.html\n"
        f"pcl-clora adapters card {run} --out shared\n"
        f"pcl-clora export {run} --out model.onnx"
    )
    listed = "".join(f"<li>{each}</li>" for each in advice)
    return f"<ul>{listed}</ul><pre>{escape(commands)}</pre>"
