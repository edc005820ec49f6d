"""Benchmark of predictions from files: what share of the time is reading, and the memory of a large scan."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.adapters import attach_adapter
from pcl_clora.bench.harness import in_child, load, record
from pcl_clora.data import InputRule, build_dataset, parse_data_config
from pcl_clora.io import write_points
from pcl_clora.models import create_model
from pcl_clora.predict import Predictor, Times, predict_files

BATCH = 16
CLASSES = tuple(f"class {k}" for k in range(40))
TARGETS = {"loading_share": 0.2, "peak_mib": 2048.0}  # what we aim to stay below


def bench_predict(
    *, files: int = 1000, points: int = 10_000, scan_points: int = 5_000_000, repeats: int = 3
) -> dict[str, Any]:
    """Predict binary ply files with the weights in the package, 40 classes and CLoRA; then one large scan.

    The files hold 1,024 points to the most, log-uniform, of made shapes of any place and size. First all is
    done in one thread, in processor time: reading (the file, and bringing it into the frame of the model) and
    the model, turn by turn. Then as `pcl-clora predict` does it, a thread reading ahead, on the wall.

    Args:
        files: how many.
        points: of the largest file.
        scan_points: of the scan, whose memory is measured in a process of its own.
        repeats: rounds in one thread; the best of each part counts.

    Returns:
        The record. Its first row has "files", "points", "reading_ms" and "model_ms" a file in processor time,
        "loading_share" of both together, "files_per_second" and "waiting_share" of the wall; its second
        "scan_points", "peak_mib" and "before_mib" of the process, "seconds".
    """
    job: dict[str, Any] = {"files": files, "points": points, "repeats": repeats}
    job["scan_points"] = scan_points
    with tempfile.TemporaryDirectory() as folder:
        _write_adapter(Path(folder) / "model.safetensors")
        job["folder"] = folder
        rows = list(in_child("pcl_clora.bench.predict:measure_files", job, 1))
        rows += list(in_child("pcl_clora.bench.predict:write_scan", job, 1))
        rows += list(in_child("pcl_clora.bench.predict:measure_scan", job, 1))
    rows = [row for row in rows if row]
    return record("predict", (), rows) | {"targets": TARGETS, "batch": BATCH, "load": load()}


def _write_adapter(file: Path) -> None:
    """Write an adapter on the weights in the package, untrained: what it says costs the same."""
    model = create_model("point_mae_tiny", weights="builtin", num_classes=len(CLASSES))
    adapted = attach_adapter(model, {"method": "clora"})
    rule = InputRule(num_points=1024, read_points=1024).model_dump(mode="json")
    weights = {"source": "builtin"}
    adapted.save_adapter(file, metadata={"classes": CLASSES, "input_rule": rule, "base_weights": weights})


def measure_files(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Write and predict many files in this process; yields the row."""
    folder = Path(job["folder"])
    files = _write_files(folder / "files", job["files"], job["points"])
    predictor = Predictor(folder / "model.safetensors", device="cpu")
    reading, asking = zip(*(_in_turn(predictor, files) for _ in range(job["repeats"] + 1)), strict=True)
    times, began = Times(), time.perf_counter()
    said = list(predict_files(predictor, files, batch_size=BATCH, times=times))
    wall = time.perf_counter() - began
    assert not any(one.error for one in said)
    read, asked = min(reading[1:]), min(asking[1:])  # the first round warms up
    yield {
        "files": len(files),
        "points": job["points"],
        "mean_points": float(np.mean([len(one.whole.points) for one in said if one.whole is not None])),
        "reading_ms": 1000 * read / len(files),
        "model_ms": 1000 * asked / len(files),
        "loading_share": read / (read + asked),
        "files_per_second": len(files) / wall,
        "waiting_share": times.waiting / wall,
        "load": load(),
    }


def _in_turn(predictor: Predictor, files: list[str]) -> tuple[float, float]:
    """Read and predict in one thread, a batch after another: processor time of both."""
    from pcl_clora.data.readers.whole import read_whole

    reading = asking = 0.0
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        first = time.process_time()
        seen = [predictor.see(read_whole(file), name=predictor.name_of(file)) for file in batch]
        second = time.process_time()
        predictor.answer(seen, [0] * len(seen))
        reading, asking = reading + second - first, asking + time.process_time() - second
    return reading, asking


def _write_files(folder: Path, count: int, most: int) -> list[str]:
    """Write made shapes as binary ply files, each somewhere else and of another size."""
    config = {"name": "procedural", "train_size": 64, "test_size": 1, "num_points": most}
    shapes = build_dataset(parse_data_config(config), "train")
    draw, clouds = np.random.default_rng(0), [shapes[k].points.numpy() for k in range(len(shapes))]
    folder.mkdir()
    names = []
    for number in range(count):
        cloud = clouds[number % len(clouds)]
        size = int(np.exp(draw.uniform(np.log(min(1024, most)), np.log(most))))
        kept = draw.permutation(most)[:size]
        place = cloud[kept] * draw.uniform(0.1, 10) + draw.normal(size=3)
        names.append(str(folder / f"{number:05}.ply"))
        write_points(names[-1], place.astype(np.float32))
    return names


def write_scan(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Write a piece of ground with colours as binary ply, in a process whose memory does not count."""
    draw, count = np.random.default_rng(0), job["scan_points"]
    points = np.empty((count, 3), np.float32)
    points[:, :2] = draw.random((count, 2), np.float32) * 500
    points[:, 2] = 10 * np.sin(points[:, 0] / 30)
    write_points(Path(job["folder"]) / "scan.ply", points, {"colors": np.full((count, 3), 9, np.uint8)})
    yield {}


def measure_scan(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Predict the scan in this process; yields its row."""
    import resource

    folder = Path(job["folder"])
    predictor = Predictor(folder / "model.safetensors", device="cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    predictor.predict_file(folder / "scan.ply")
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield {
        "scan_points": job["scan_points"],
        "before_mib": before / 1024,
        "peak_mib": peak / 1024,
        "seconds": seconds,
    }


def predict_lines(result: Mapping[str, Any]) -> list[str]:
    """Say in words what was measured."""
    files = next(row for row in result["rows"] if "files" in row)
    scan = next(row for row in result["rows"] if "scan_points" in row)
    mean, read, model = files["mean_points"], files["reading_ms"], files["model_ms"]
    share, waiting = 100 * files["loading_share"], 100 * files["waiting_share"]
    return [
        f"{files['files']:,} binary ply files of up to {files['points']:,} points (mean {mean:,.0f}), one "
        f"thread, processor time: reading {read:.2f} ms and the model {model:.2f} ms a file; loading is "
        f"{share:.1f} % of the time.",
        f"With a thread that reads ahead: {files['files_per_second']:.0f} files a second; the model waits "
        f"{waiting:.1f} % of the time.",
        f"A scan of {scan['scan_points']:,} points: {scan['seconds']:.1f} s, at most {scan['peak_mib']:,.0f} "
        f"MiB ({scan['before_mib']:,.0f} MiB before it).",
    ]
