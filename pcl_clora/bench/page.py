"""Benchmarks of pages in a browser: of clouds (size, writing, time of a frame), and of a study (opening)."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcl_clora.bench.harness import load, record
from pcl_clora.errors import UserValueError
from pcl_clora.vis import Panel, render_html

SIZES = (2_048, 100_000, 1_000_000)
WINDOW = (1280, 600)  # pixels of the browser's window
# Without a display and without a GPU: WebGL is drawn by software, which every machine has.
BROWSER_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--window-size={WINDOW[0]},{WINDOW[1]}",
)


def bench_page(*, sizes: Sequence[int] = SIZES, repeats: int = 3) -> dict[str, Any]:
    """Write pages of one panel with labels and one number a point, and draw them in chromium.

    Args:
        sizes: points of the clouds.
        repeats: how often a page is written and a frame drawn.

    Returns:
        The record; a row has "points", "mib" of the file, "write_s" (best), "frame_ms" and "moving_frame_ms"
        (medians; None where chromium, chromedriver or selenium is missing).
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        browser = _browser()
        try:
            for size in sizes:
                rows.append(_measure(size, Path(folder) / f"{size}.html", browser, repeats))
        finally:
            if browser is not None:
                browser.quit()
    shown = None if browser is None else str(browser.capabilities["browserVersion"])
    return record("page", (), rows) | {"chromium": shown, "window": list(WINDOW), "load": load()}


def bench_study_page(folder: str | Path, *, repeats: int = 5) -> dict[str, Any]:
    """Open the page of a study in chromium, until its table is there.

    Args:
        folder: of the study, with index.html; `pcl-clora compare table` writes it.
        repeats: how often it is opened, each time from an empty page.

    Returns:
        The record; its row has "study", "rows" of the table, finished runs of "seeds" and "trials",
        "mib" of the page and "open_s", all times.

    Raises:
        UserValueError: if there is no page, or no browser that can be driven.
    """
    path = Path(folder) / "index.html"
    if not path.is_file():
        raise UserValueError(f"{folder} has no page; write it with `pcl-clora compare table {folder}`.")
    browser = _browser()
    if browser is None:
        raise UserValueError("A page is opened in a browser: install chromium, chromedriver and selenium.")
    times = []
    try:
        for _ in range(repeats):
            browser.get("about:blank")
            start = time.perf_counter()
            browser.get(path.resolve().as_uri())
            rows = browser.execute_script(
                "return window.pclStudy.ready && document.querySelectorAll('#table tbody tr').length"
            )
            times.append(time.perf_counter() - start)
        shown = str(browser.capabilities["browserVersion"])
    finally:
        browser.quit()
    records = [file.name for file in Path(folder).glob("rows/*/*.json") if ".failed" not in file.name]
    found = {f"{kind}s": sum(name.startswith(kind) for name in records) for kind in ("seed", "trial")}
    row = {"study": path.parent.name, "rows": rows, **found, "mib": path.stat().st_size / 2**20}
    return record("study_page", (), [{**row, "open_s": times}]) | {"chromium": shown, "load": load()}


def study_page_line(result: dict[str, Any]) -> str:
    """Say in a sentence what a record of `bench_study_page` holds."""
    (row,) = result["rows"]
    return (
        f"The page of {row['seeds']} runs and {row['trials']} trials in {row['rows']} rows ({row['study']}, "
        f"{row['mib']:.1f} MiB) opens in {statistics.median(row['open_s']):.2f} s"
    )


def _measure(size: int, path: Path, browser: Any, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(size, 3, generator=generator)
    points = (points / points.norm(dim=1, keepdim=True)).numpy()
    labels = torch.randint(0, 4, (size,), generator=generator).numpy()
    number = torch.rand(size, generator=generator).numpy()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        render_html(path, [Panel(points, labels=labels, scalars={"confidence": number})])
        times.append(time.perf_counter() - start)
    row = {"points": size, "mib": path.stat().st_size / 2**20, "write_s": min(times)}
    if browser is None:
        return row | {"frame_ms": None, "moving_frame_ms": None}
    browser.get(path.as_uri())
    for _ in range(2):  # the first frames compile shaders and decide how much is thinned
        browser.execute_script("return [pclViewer.frameTime(1), pclViewer.frameTime(1, true)]")
    frames = browser.execute_script(f"return pclViewer.frameTime({repeats})")
    moving = browser.execute_script(f"return pclViewer.frameTime({repeats}, true)")
    return row | {"frame_ms": statistics.median(frames), "moving_frame_ms": statistics.median(moving)}


def _browser() -> Any:
    """Start chromium, or give None where it cannot be driven."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if chromium is None or driver is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in BROWSER_OPTIONS:
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def page_table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return header and cells of a record."""

    def milliseconds(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.0f} ms"

    cells = [
        [
            f"{row['points']:,}",
            f"{row['mib']:.2f} MiB",
            f"{row['write_s']:.3f} s",
            milliseconds(row["frame_ms"]),
            milliseconds(row["moving_frame_ms"]),
        ]
        for row in result["rows"]
    ]
    return ("points", "file", "made in", "a frame", "a frame while it moves"), cells
