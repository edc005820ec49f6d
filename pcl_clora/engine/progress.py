"""How a run is shown to whoever watches it: a bar, lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from pcl_clora.io.text import visible

Event = Mapping[str, Any]

PLAIN_EVERY_SECONDS = 30.0  # how often a long epoch says something where there is no terminal


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
        print(visible(text, keep="\n"), file=self._stream, flush=True)


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
            self._bar.console.print(visible(str(event["text"]), keep="\n"), markup=False, highlight=False)
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
