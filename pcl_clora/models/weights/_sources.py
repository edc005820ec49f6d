"""What may be given as weights: a file, a finished run, an id of the hub, the package's own, or tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcl_clora.handover import call_registrar
from pcl_clora.models.builtin import BUILTIN, builtin_file, list_builtin, only_builtin
from pcl_clora.models.method_files import ADAPTER
from pcl_clora.models.weights._containers import Checkpoint, open_checkpoint
from pcl_clora.models.weights._other_files import RUN_ADAPTER, RUN_CONFIG
from pcl_clora.models.weights.hub import HUB_PREFIX, cached_path, fetch, pinned_name

RunReader = Callable[[Path], Mapping[str, object]]
_run_readers: list[RunReader] = []


def register_run_reader(reader: RunReader) -> None:
    """Make known what turns the folder of a finished run into the tensors of its best model, merged."""
    _run_readers[:] = [reader]


@dataclass(frozen=True)
class Source:
    """Opened weights.

    Attributes:
        label: how messages call them.
        checkpoint: the tensors.
        notes: where they come from, a line each: repository, revision, digest, licence.
    """

    label: str
    checkpoint: Checkpoint
    notes: tuple[str, ...] = field(default=())


def missing_source(source: str) -> str:
    """Say what is missing before weights can be opened, with what to do; "" if they are there.

    Opens and downloads nothing.

    Raises:
        WeightsError: if an id is not known.
    """
    if source == BUILTIN:
        return "" if list_builtin() else f"{source}: this installation of the package has no weights in it."
    if source.startswith(HUB_PREFIX):
        path = cached_path(source)
        if path.is_file():
            return ""
        return f"{source}: not in the cache; it is downloaded at first use, or put it at {path} by hand."
    if Path(source).exists():
        return ""
    return (
        f"{source}: there is no such file; set weights.path to a weights file, the folder of a finished run, "
        "hub:<id> or builtin."
    )


def pinned(source: str) -> str:
    """Name weights so that they are the same ones later: an id of the hub with its revision."""
    return pinned_name(source) if source.startswith(HUB_PREFIX) else source


def source_file(source: str, label: str = "") -> Path:
    """Name the file that weights are in, whether it is there or not; of a run its adapter file.

    Args:
        source: what `open_source` takes, but no state dict.
        label: of the opened source, which says the model of "builtin".
    """
    if source == BUILTIN:
        return list_builtin().get(label.removeprefix(f"{BUILTIN} ")) or only_builtin()
    if source.startswith(HUB_PREFIX):
        return cached_path(source)
    return Path(source) / RUN_ADAPTER if _is_run(Path(source)) else Path(source)


def open_source(source: str | Path | Mapping[str, Any], config: object = None) -> Source:
    """Open weights, whatever they are given as.

    Args:
        source: path of a weights file; folder of a finished run, whose best model is taken, merged;
            "hub:<id>", see `models.hub.fetch`; "builtin", those in the package; or a state dict.
        config: settings of the model that they are for, which must fit "builtin"; without them
            the package must have one file only.

    Raises:
        WeightsError: if it is none of these, or see `open_checkpoint` and `fetch`.
    """
    if isinstance(source, Mapping):
        checkpoint = open_checkpoint(source)
        return Source(checkpoint.source, checkpoint)
    if str(source) == BUILTIN:
        file = only_builtin() if config is None else builtin_file(config)
        return Source(f"{BUILTIN} {file.stem}", open_checkpoint(file), ("in the package",))
    if str(source).startswith(HUB_PREFIX):
        fetched = fetch(str(source))
        return Source(str(source), open_checkpoint(fetched.path), fetched.notes)
    if _is_run(Path(source)):
        if not _run_readers:
            call_registrar("the reader of runs")
        tensors = _run_readers[0](Path(source))
        how = "with its adapter beside it" if ADAPTER in tensors else "merged"
        return Source(str(source), open_checkpoint(tensors), (f"best model of a finished run, {how}",))
    checkpoint = open_checkpoint(source)
    return Source(checkpoint.source, checkpoint)


def _is_run(path: Path) -> bool:
    try:
        return (path / RUN_CONFIG).is_file()
    except (OSError, ValueError):  # what is wrong with the path is said where it is opened
        return False
