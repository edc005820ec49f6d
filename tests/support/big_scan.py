"""Measure the memory that a scan of very many points takes: `python -m tests.support.big_scan .laz 5000000`.

With the folder of a run, `--run RUN`, the scan is predicted, too. Prints MiB: before, at most, and at most of
the process of the parsers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from pcl_clora.io import child, format_of, read_points, write_points
from pcl_clora.io.formats import ANY


def write_scan(file: Path, count: int) -> None:
    """Write a flat piece of ground in map coordinates, to millimetres, with colours and labels."""
    random = np.random.default_rng(0)
    points = np.empty((count, 3))
    points[:, :2] = random.random((count, 2)) * 500 + [4.3e5, 5.4e6]
    points[:, 2] = 300 + 10 * np.sin(points[:, 0] / 30)
    fields = {"colors": random.integers(0, 256, (count, 3)).astype(np.uint8),
              "intensity": random.integers(0, 60_000, count).astype(np.uint16),
              "labels": random.integers(0, 9, count).astype(np.int32)}  # fmt: skip
    kind = format_of(file)
    assert kind is not None
    held = {name: values for name, values in fields.items() if kind.fields == ANY or name in kind.fields}
    near = points - points.mean(axis=0)
    write_points(file, np.round(points, 3) if kind.exact else near.astype(np.float32), held)


def peak(process: int | str) -> int:
    """Read how much memory a process has had at most, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Read, and perhaps predict, a scan that was written by another process before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suffix")
    parser.add_argument("count", type=int)
    parser.add_argument("--run")
    parser.add_argument("--file", help="A scan that is there, instead of a new one.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(options.file or f"{folder}/scan{options.suffix}")
        if not options.file:
            import multiprocessing

            writer = multiprocessing.get_context("spawn").Process(
                target=write_scan, args=(file, options.count)
            )
            writer.start()
            writer.join()
        before = peak("self")
        if options.run:
            from pcl_clora.predict import Predictor

            predictor = Predictor(options.run)
            before = peak("self")
            said = predictor.predict_file(file)
            assert said.label.shape in ((), (options.count,))
        else:
            assert len(read_points(file).points) == options.count
        parsers = child._running.process.pid if child._running is not None else 0
        print(before, peak("self"), peak(parsers) if parsers else 0)


if __name__ == "__main__":
    main()
