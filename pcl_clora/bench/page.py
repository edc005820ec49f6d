"""Benchmark of the page that shows clouds: its size, the time to write it, and the time of a frame."""

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
