"""Where a run writes what happens: metrics.jsonl always, tensorboard on request, and whoever watches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.engine.progress import Event, make_progress
from pcl_clora.io import DataError, explained, finite, parse_json

logger = logging.getLogger("pcl_clora")


_WHOLE = "copy it again from where it is whole, or start over with --resume never"


class MetricsLog:
    """metrics.jsonl: one json object a line, written through after every line.

    A resumed run cuts the file back to the length that its checkpoint knows, so no step stands there twice.

    Args:
        path: the file.
        keep_bytes: length to cut back to; 0 starts afresh.
        keep_sha256: of what stands there up to that length; "" where the checkpoint does not say it.

    Raises:
        DataError: if what is kept is not what the run wrote.
    """

    def __init__(self, path: Path, keep_bytes: int = 0, keep_sha256: str = "") -> None:
        self._path = path
        size = path.stat().st_size if path.exists() else 0
        if size < keep_bytes:
            logger.warning(
                "%s has %d bytes, the checkpoint knows of %d: lines were removed by hand; the run goes on, "
                "the file has a gap.",
                path,
                size,
                keep_bytes,
            )
        with explained(path, "written"):
            self._file = path.open("r+b" if path.exists() else "w+b")
            kept = self._file.read(keep_bytes)
            if len(kept) < keep_bytes:  # a power cut takes the end of a line, too
                kept = kept[: kept.rfind(b"\n") + 1]
            _parse_lines(path, kept)
            self._digest = hashlib.sha256(kept)
            if len(kept) == keep_bytes and keep_sha256 not in ("", self.sha256()):
                raise DataError(path, f"was edited or damaged in its first {keep_bytes:,} bytes", _WHOLE)
            self._file.truncate(len(kept))
            self._file.seek(0, 2)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one line; nan and infinity are written as null, so that every json reader takes the file."""
        with explained(self._path, "written"):
            line = (json.dumps(finite(event)) + "\n").encode()
            self._file.write(line)
            self._file.flush()
        self._digest.update(line)

    def size(self) -> int:
        """Length of the file in bytes."""
        return self._file.tell()

    def sha256(self) -> str:
        """Digest of the file."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl; a last line that is still being written is left out.

    Raises:
        DataError: if the file is missing, or a line is no event: it was edited or damaged.
    """
    with explained(path, "read"):
        content = Path(path).read_bytes()
    return _parse_lines(path, content[: content.rfind(b"\n") + 1])


def read_probes(path: str | Path) -> list[dict[str, Any]]:
    """Read what the probes of a pre-training found: epoch, step and accuracies of each."""
    kept = ("epoch", "step", "knn_acc", "svm_acc")
    lines = [line for line in read_metrics(path) if line["kind"] == "probe"]
    return [{key: line[key] for key in kept if key in line} for line in lines]


def _parse_lines(path: str | Path, content: bytes) -> list[dict[str, Any]]:
    """Read whole lines of a metrics.jsonl."""
    events = []
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            event = parse_json(path, line)
            if not line.endswith(b"\n") or not isinstance(event.get("kind"), str):
                raise DataError(path, "is no whole event", "")
        except DataError:
            raise DataError(
                path,
                f"line {number} is no event as a run writes it ({line[:60]!r}): it was edited or damaged",
                _WHOLE,
            ) from None
        events.append(event)
    return events


class TensorboardLog:
    """Writes every number of an event to tensorboard, under "<kind>/<name>".

    Args:
        folder: where its files go.
        purge_step: steps from here on that an earlier, interrupted part of the run wrote are hidden.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with explained(folder, "written"):
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, event: Mapping[str, Any]) -> None:
        """Add the numbers of one event."""
        kind = "/".join(str(event[key]) for key in ("kind", "split") if key in event)
        for name, value in event.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                with explained(self._folder, "written"):
                    self._writer.add_scalar(f"{kind}/{name}", value, event["step"])

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a picture, (H, W, 3) uint8."""
        with explained(self._folder, "written"):
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        with explained(self._folder, "written"):
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

    def open(self, saved: Mapping[str, Any] | None, tensorboard: Path | None, step: int) -> None:
        """Open the files, cut back to what a checkpoint after `step` knows."""
        kept = saved or {}
        self._metrics = MetricsLog(self._path, kept.get("metrics_bytes", 0), kept.get("metrics_sha256", ""))
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

    def known(self) -> dict[str, Any]:
        """Say what a checkpoint keeps of metrics.jsonl, so that `open` finds it again."""
        assert self._metrics is not None
        return {"metrics_bytes": self._metrics.size(), "metrics_sha256": self._metrics.sha256()}

    def close(self) -> None:
        """Close files and bar."""
        self._progress.stop()
        for log in (self._metrics, self._tensorboard):
            if log:
                log.close()
