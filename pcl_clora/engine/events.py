"""Where a run writes what happens: metrics.jsonl always, tensorboard on request, and the terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from pcl_clora.io import finite

logger = logging.getLogger("pcl_clora")

Event = Mapping[str, Any]

PLAIN_EVERY_SECONDS = 30.0  # how often a long epoch says something where there is no terminal


class MetricsLog:
    """metrics.jsonl: one json object a line, written through after every line.

    A resumed run cuts the file back to the length that its checkpoint knows, so no step stands there twice.

    Args:
        path: the file.
        keep_bytes: length to cut back to; 0 starts afresh.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < keep_bytes:
            logger.warning(
                "%s has %d bytes, the checkpoint knows of %d: lines were removed by hand; the run goes on, "
                "the file has a gap.",
                path,
                size,
                keep_bytes,
            )
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(min(size, keep_bytes))
        self._file.seek(0, 2)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one line; nan and infinity are written as null, so that every json reader takes the file."""
        self._file.write((json.dumps(finite(event)) + "\n").encode())
        self._file.flush()

    def size(self) -> int:
        """Length of the file in bytes."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl; a last line that is still being written is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class TensorboardLog:
    """Writes every number of an event to tensorboard, under "<kind>/<name>".

    Args:
        folder: where its files go.
        purge_step: steps from here on that an earlier, interrupted part of the run wrote are hidden.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, event: Mapping[str, Any]) -> None:
        """Add the numbers of one event."""
        kind = "/".join(str(event[key]) for key in ("kind", "split") if key in event)
        for name, value in event.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                self._writer.add_scalar(f"{kind}/{name}", value, event["step"])

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a picture, (H, W, 3) uint8."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def open_tensorboard(folder: Path, purge_step: int | None = None) -> TensorboardLog | None:
    """Open a tensorboard log; where tensorboard is not installed, warn with the remedy and return None."""
    try:
        return TensorboardLog(folder, purge_step)
    except ImportError:
        logger.warning(
            "train.tensorboard is on but tensorboard is not installed: only metrics.jsonl is written. "
            "Remedy: pip install tensorboard, or train.tensorboard=false."
        )
        return None


class RunLog:
    """Sends every event of a run to metrics.jsonl, tensorboard, the terminal and a listener.

    Args:
        metrics: path of metrics.jsonl.
        progress: how it is shown, see `make_progress`.
        listener: called with every event.
    """

    def __init__(self, metrics: Path, progress: str, listener: Callable[[Event], None] | None) -> None:
        self._path, self._listener = metrics, listener
        self._progress = make_progress(progress)
        self._metrics: MetricsLog | None = None
        self._tensorboard: TensorboardLog | None = None

    def open(self, keep_bytes: int, tensorboard: Path | None, step: int) -> None:
        """Open the files, cut back to what a checkpoint after `step` knows."""
        self._metrics = MetricsLog(self._path, keep_bytes)
        if tensorboard is not None:
            self._tensorboard = open_tensorboard(tensorboard, step + 1 if step else None)

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Show that training begins, or goes on after `step`."""
        self._progress.start(epochs, steps_per_epoch, step)

    def emit(self, event: Event) -> None:
        """Write an event to the files and tell it."""
        assert self._metrics is not None
        self._metrics.write(event)
        if self._tensorboard:
            self._tensorboard.write(event)
        self.tell(event)

    @property
    def takes_pictures(self) -> bool:
        """Whether anybody would see a picture."""
        return self._tensorboard is not None

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show a picture, (H, W, 3) uint8, in tensorboard."""
        if self._tensorboard:
            self._tensorboard.picture(name, pixels, step)

    def tell(self, event: Event) -> None:
        """Show an event and give it to the listener, without writing it."""
        self._progress.update(event)
        if self._listener:
            self._listener(event)

    def size(self) -> int:
        """Length of metrics.jsonl in bytes."""
        assert self._metrics is not None
        return self._metrics.size()

    def close(self) -> None:
        """Close files and bar."""
        self._progress.stop()
        for log in (self._metrics, self._tensorboard):
            if log:
                log.close()


class Progress(Protocol):
    """Shows a run to whoever watches it."""

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        """A run begins, or goes on at `step`."""

    def update(self, event: Mapping[str, Any]) -> None:
        """Something happened."""

    def stop(self) -> None:
        """The run ends."""


def make_progress(kind: str, stream: TextIO | None = None) -> Progress:
    """Choose how progress is shown.

    Args:
        kind: "rich" (bar), "plain" (lines), "off", or "auto": a bar on a terminal and lines elsewhere.
        stream: default standard error, so that standard output stays free for results.
    """
    stream = stream or sys.stderr
    if kind == "off":
        return SilentProgress()
    if kind == "rich" or (kind == "auto" and stream.isatty()):
        return RichProgress(stream)
    return PlainProgress(stream)


class SilentProgress:
    """Shows nothing."""

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Do nothing."""

    def update(self, event: Mapping[str, Any]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class Clock:
    """Estimates what is left from the steps done since the start of this process."""

    def __init__(self, total: int, step: int) -> None:
        self.total, self.first = total, step
        self.began = time.monotonic()

    def left(self, step: int) -> str:
        """Time left as h:mm:ss, "?" before the first step."""
        done = step - self.first
        if done <= 0:
            return "?"
        return format_seconds((time.monotonic() - self.began) / done * (self.total - step))


def format_seconds(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


METRIC_LABELS = {
    "oa": "OA",
    "macc": "mAcc",
    "instance_miou": "inst. mIoU",
    "class_miou": "class mIoU",
    "knn_acc": "k-NN",
    "svm_acc": "SVM",
}


def describe(event: Mapping[str, Any]) -> str:
    """Say an event in a few words, for people."""
    parts = []
    shown = [f"{label} {100 * event[key]:.2f}" for key, label in METRIC_LABELS.items() if key in event]
    if shown:
        parts += [f"{event.get('split', '')} {shown[0]}", *shown[1:]]
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.4f}")
    if "lr" in event:
        parts.append(f"lr {event['lr']:.2e}")
    if "clouds_per_second" in event:
        parts.append(f"{event['clouds_per_second']:.0f} clouds/s")
    return "  ".join(part.strip() for part in parts)


class PlainProgress:
    """Prints lines: one an epoch and evaluation, and one every half minute inside a long epoch."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Say what is about to run."""
        self._epochs, self._steps = epochs, steps_per_epoch
        self._clock = Clock(epochs * steps_per_epoch, step)
        self._last = time.monotonic()
        going_on = f", going on after step {step}" if step else ""
        self._say(f"training {epochs} epochs of {steps_per_epoch} steps{going_on}")

    def update(self, event: Mapping[str, Any]) -> None:
        """Print a line where one is due."""
        kind = event["kind"]
        if kind == "message":
            self._say(str(event["text"]))
        elif kind in ("epoch", "eval", "probe"):
            label = f"epoch {event['epoch'] + 1}/{self._epochs}"
            left = f"  left {self._clock.left(event['step'])}" if kind == "epoch" else ""
            self._say(f"{label}  {describe(event)}{left}")
        elif kind == "train" and time.monotonic() - self._last >= PLAIN_EVERY_SECONDS:
            step = event["step"] - event["epoch"] * self._steps
            label = f"epoch {event['epoch'] + 1}/{self._epochs} step {step}/{self._steps}"
            self._say(f"{label}  {describe(event)}  left {self._clock.left(event['step'])}")

    def stop(self) -> None:
        """Do nothing."""

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=self._stream, flush=True)


class RichProgress:
    """Shows a bar with the time left, and a line for every epoch and evaluation above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[shown]}"),
            console=Console(file=stream),
        )

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Draw the bar."""
        self._epochs = epochs
        self._clock = Clock(epochs * steps_per_epoch, step)
        self._task = self._bar.add_task("training", total=epochs * steps_per_epoch, completed=step, shown="")
        self._bar.start()

    def update(self, event: Mapping[str, Any]) -> None:
        """Move the bar, or print a line above it."""
        kind = event["kind"]
        if kind == "message":
            self._bar.console.print(str(event["text"]), markup=False, highlight=False)
        elif kind == "train":
            shown = f"{describe(event)}  left {self._clock.left(event['step'])}"
            label = f"epoch {event['epoch'] + 1}/{self._epochs}"
            self._bar.update(self._task, completed=event["step"], description=label, shown=shown)
        elif kind in ("epoch", "eval", "probe"):
            line = f"epoch {event['epoch'] + 1}/{self._epochs}  {describe(event)}"
            self._bar.console.print(line, markup=False, highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()
