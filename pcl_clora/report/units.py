"""Numbers as people read them. Percent exists only here: everywhere else an accuracy lies in [0, 1]."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pcl_clora.io.text import markdown, spreadsheet


def count(value: float) -> str:
    """Write a number of parameters: 329,743 -> "0.330 M", 61,440 -> "61.4 k"."""
    if value >= 100_000:
        return f"{value / 1e6:.3f} M"
    return f"{value / 1e3:.1f} k" if value >= 1000 else f"{value:.0f}"


def giga(value: float) -> str:
    """Write multiply-adds or FLOPs in units of 1e9, with enough digits: 4,760,588,032 -> "4.761"."""
    return f"{value / 1e9:.3f}" if value >= 1e7 else f"{value / 1e9:.6f}"


def percent(value: float) -> str:
    """Write an accuracy in [0, 1] in percent: 0.9381 -> "93.81"."""
    return f"{100 * value:.2f}"


def samples(data: Mapping[str, Any]) -> str:
    """Say what the samples of a data set are, as result.json describes it: "clouds of 1,024 points"."""
    one, many = ("images", "pixels") if data.get("kind") == "images" else ("clouds", "points")
    return f"{one} of {data['num_points']:,} {many}"


def file_size(num_bytes: float) -> str:
    """Write bytes as KiB or MiB."""
    return f"{num_bytes / 2**20:.2f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


def duration(seconds: float) -> str:
    """Write a duration: 12.3 -> "12.3 s", 754 -> "12.6 min", 12345 -> "3.43 h"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in markdown; what a cell says is text, not markup."""
    lines = [map(markdown, header), ["---"] * len(header), *(map(markdown, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table as csv text; None becomes an empty cell, and no text is a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([spreadsheet(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()
