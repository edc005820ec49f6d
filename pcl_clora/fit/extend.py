"""Adding classes to a trained model later: its files and the new ones, and what it forgets by that."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_clora.data import build_dataset
from pcl_clora.data.readers.file_list import FileListConfig
from pcl_clora.data.readers.folder import ClassFilesConfig
from pcl_clora.data.readers.sorted_files import SortedFilesConfig, entries_of_split
from pcl_clora.engine import RunConfig, RunFolder, load_run_config
from pcl_clora.engine.evaluate_run import evaluate_run
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, write_text
from pcl_clora.io.text import line_of
from pcl_clora.predict.opened import header_of

LIST = "files.csv"  # in the folder of the run: what it is trained on and judged by
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Extension:
    """What is added to a finished run.

    Attributes:
        run: its folder.
        cfg: its settings.
        old: its classes, in their order.
        data: the list of old and new files.
        base: settings of the new run that come from the old one.
    """

    run: Path
    cfg: RunConfig
    old: tuple[str, ...]
    data: FileListConfig
    base: dict[str, Any]

    def forget(self, out: Path) -> None:
        """Remove the list again, where no run came of it."""
        if not RunFolder(out).config.is_file():
            (out / LIST).unlink(missing_ok=True)
            with suppress(OSError):
                out.rmdir()


def extend(run: str | Path, added: SortedFilesConfig, out: Path) -> Extension:
    """Write the list of old and new files into the folder of the new run.

    The old run's files keep their split, so that what was held out of it is held out again; new files are
    split as they would be alone. New files of an old class are trained on.

    Args:
        run: folder of the finished run.
        added: the new files.
        out: folder of the new run.

    Raises:
        ConfigError: if it is no finished run.
        UserValueError: if the run is not of `fit`, or there is no new class.
        DataError: if its files are not there.
    """
    run = Path(run)
    header, files = header_of(run), RunFolder(run)
    files.check_chosen()
    cfg = load_run_config(files.config)
    if not isinstance(cfg.data, ClassFilesConfig) or not isinstance(added, ClassFilesConfig):
        raise UserValueError(
            f"{run} cannot be extended: classes are added to runs that classify the files of a folder or a "
            f"list, and {'its' if isinstance(added, ClassFilesConfig) else 'the new'} data are others."
        )
    if out.resolve() == run.resolve():
        raise UserValueError(f"out={out} is the run that is extended; name another folder.")
    if not Path(cfg.data.root).exists():
        raise DataError(
            cfg.data.root,
            f"is not there, and {run} was trained on it: without the old files a new class would push out "
            "the others",
            "put it back",
        )
    old, old_index = header.classes, cfg.data.index()
    rows: list[tuple[Path, str, str]] = []
    for split in SPLITS:
        entries = entries_of_split(cfg.data, old_index, split)
        rows += [(file, old_index.class_names[label], split) for file, label in entries]
    known, index = {file.resolve() for file, _, _ in rows}, added.index()
    for split in SPLITS:
        for file, label in entries_of_split(added, index, split):
            name = index.class_names[label]
            if file.resolve() not in known:
                rows.append((file, name, "train" if name in old else split))
    new = sorted({name for _, name, _ in rows} - set(old))
    if not new:
        raise UserValueError(
            f"{added.root} has no class that {run} does not know ({line_of(old)}); put the files of the "
            "new class into a folder of its name."
        )
    write_text(out / LIST, _table(rows, out))
    common = cfg.data.model_dump(exclude={"name", "root", "folds", "fold", "classes"})
    data = FileListConfig(root=str(out / LIST), classes=(*old, *new), **common)
    return Extension(run, cfg, old, data, _kept(cfg, run, data))


def _table(rows: Sequence[tuple[Path, str, str]], out: Path) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    start = out.resolve()
    writer.writerows((os.path.relpath(file.resolve(), start), name, split) for file, name, split in rows)
    return text.getvalue()


def _kept(cfg: RunConfig, run: Path, data: FileListConfig) -> dict[str, Any]:
    """Take over what the old run was made with."""
    model = cfg.model.model_dump(mode="json", exclude_unset=True)
    return {
        "model": {**model, "name": cfg.model.name, "num_classes": len(data.classes)},
        "weights": {
            "path": cfg.weights.path,
            "allow_partial": cfg.weights.allow_partial,
            "adapter": str(run),
        },
        "adapter": cfg.adapter.model_dump(mode="json"),
        "augment": cfg.augment,
    }


def forgetting(
    extension: Extension, confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> dict[str, Any]:
    """Compare old and new model on the old run's held-out files.

    Args:
        extension: what was added.
        confusion: of the new model on test; rows true classes.
        classes: of the new run, the old ones first.

    Returns:
        "files", "before" and "after" (shares right), "per_class": class -> [before, after].
    """
    count = len(extension.old)
    before = evaluate_run(extension.run)["metrics"]["confusion"]
    after = [list(row) for row in confusion[:count]]
    files = sum(map(sum, after))
    assert files == sum(map(sum, before)) == len(build_dataset(extension.cfg.data, "test"))
    assert tuple(classes[:count]) == extension.old
    return {
        "run": str(extension.run),
        "files": files,
        "before": _share(before),
        "after": _share(after),
        "per_class": {
            name: [_of_row(before[at], at), _of_row(after[at], at)] for at, name in enumerate(extension.old)
        },
    }


def _share(rows: Sequence[Sequence[int]]) -> float:
    return sum(row[at] for at, row in enumerate(rows)) / sum(map(sum, rows))


def _of_row(row: Sequence[int], at: int) -> float | None:
    return row[at] / sum(row) if sum(row) else None


def told_forgetting(found: Mapping[str, Any]) -> str:
    """Say it in a sentence without a full stop."""
    return (
        f"old classes, on the {found['files']} files held out of {found['run']}: "
        f"{100 * found['before']:.1f} % right before, {100 * found['after']:.1f} % after"
    )
