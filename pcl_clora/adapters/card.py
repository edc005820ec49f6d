"""The card of an adapter: markdown that says what a file is, what it was trained on and how well it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pcl_clora.adapters.files import AdapterHeader
from pcl_clora.io.text import markdown

MAX_CLASSES = 60  # that a card names
SHOWN_METRICS = {  # key of result.json -> what the card calls it, in percent
    "oa": "overall accuracy",
    "macc": "mean class accuracy",
    "instance_miou": "instance mIoU",
    "class_miou": "class mIoU",
    "ece": "expected calibration error",
}


def make_card(
    header: AdapterHeader,
    *,
    name: str,
    file_bytes: int,
    picture: str = "",
    novelty: Mapping[str, Any] | None = None,
) -> str:
    """Write the card of an adapter from what its file says of itself; what it does not say is left out.

    Args:
        header: of the file.
        name: title of the card.
        file_bytes: size of the file.
        picture: file name of a picture beside the card.
        novelty: what the calibration of its novelty score says of itself.

    Returns:
        Markdown with the yaml head that model hubs read.
    """
    lines = [
        f"---\n{yaml.safe_dump(_front(header), sort_keys=False)}---",
        f"# {markdown(name)}",
        f"A {markdown(str(header.adapter.get('method', '')))} adapter of pcl_clora for a frozen "
        f"{markdown(header.base_id)} ({file_bytes / 1024:,.0f} KiB). It holds what training changed and "
        "nothing else: the backbone's weights are needed besides.",
        "## Use",
        '```python\nimport pcl_clora\n\nmodel = pcl_clora.load("adapter.safetensors")'
        f'{_weights_hint(header)}\nprint(model("scan.ply").name)\n```',
    ]
    if picture:
        lines.append(f"![figures of this adapter]({picture})")
    lines += ["## Figures", _table(_figures(header, novelty or {}))]
    if header.classes:
        listed = ", ".join(markdown(each) for each in header.classes[:MAX_CLASSES])
        more = len(header.classes) - MAX_CLASSES
        lines += [f"## Classes ({len(header.classes)})", listed + (f" and {more} more" if more > 0 else "")]
    lines += ["## Settings", _table(_settings(header))]
    lines += ["## What it stands on", _table(_base(header))]
    return "\n\n".join(lines) + "\n"


def _front(header: AdapterHeader) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "pcl_clora", "tags": ["point-cloud", "adapter"]}
    method = header.adapter.get("method")
    if method:
        front["tags"].append(str(method))
    front["base_model"] = header.base_id
    if header.licence:
        front["license"] = header.licence
    return front


def _weights_hint(header: AdapterHeader) -> str:
    said = header.base_weights.get("source")
    return "" if said else "  # add weights=..., which this file does not say"


def _figures(header: AdapterHeader, score: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, title in SHOWN_METRICS.items():
        value = header.metrics.get(key)
        if isinstance(value, int | float):
            yield title, f"{100 * value:.2f} %"
    if header.protocol:
        yield "protocol", _short(header.protocol)
    if header.computed:
        yield "computed in", _short(header.computed)
    novelty = score or header.extra.get("novelty")
    if isinstance(novelty, Mapping) and "threshold" in novelty:
        of = f" of {novelty['score']}, 1 on the scale of predictions" if "score" in novelty else ""
        yield "novelty threshold", f"{_short(novelty['threshold'])}{of}"
    if "held_out" in score:
        yield "novelty calibrated on", f"{score.get('known')} known and {score['held_out']} held-out clouds"


def missing_from(header: AdapterHeader, *, picture: str = "", novelty: bool = False) -> list[str]:
    """Say what a card would lack, each with how to get it."""
    found = {
        "figures: train a run, whose file has them": any(key in header.metrics for key in SHOWN_METRICS),
        "names of the classes: train on data that name them": bool(header.classes),
        "a licence: train with weights that state theirs": bool(header.licence),
        "weights it stands on: save it from a run": bool(header.base_weights.get("source")),
        "a novelty threshold: pcl-clora novelty RUN": novelty
        or "part_segmentation" in str(header.base_model),
        "a picture: name the folder of its run; pcl-clora report run RUN draws it": bool(picture),
    }
    return [what for what, is_there in found.items() if not is_there]


def _settings(header: AdapterHeader) -> Iterator[tuple[str, str]]:
    for key, value in header.adapter.items():
        yield str(key), _short(value)
    for key in ("num_points", "frame", "up"):
        if key in header.input_rule:
            yield f"input: {key}", _short(header.input_rule[key])


def _base(header: AdapterHeader) -> Iterator[tuple[str, str]]:
    yield "backbone", header.base_id
    for key, value in header.base_weights.items():
        yield f"weights: {key}", _short(value)
    yield "SHA-256 of its frozen tensors", header.base_sha256
    if header.git:
        yield "made by commit", _short(header.git)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(rows: Iterator[tuple[str, str]]) -> str:
    lines = [f"| {markdown(key)} | {markdown(value)} |" for key, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else "The file says none."
