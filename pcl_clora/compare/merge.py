"""Put the parts of a study together that several machines carried out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.study import base_differences
from pcl_clora.config import ConfigError
from pcl_clora.io import atomic_write, write_json

KINDS = ("*.json", "*.safetensors")


def merge_studies(out: str | Path, parts: Sequence[str | Path]) -> None:
    """Copy the records of parts into one folder; run folders and logs stay where they are.

    Args:
        out: the folder; may hold a part already.
        parts: folders of the same study.

    Raises:
        ConfigError: if a part is no study or one of other base settings or rows, or two parts have different
            files of one run; nothing is copied then.
    """
    into = StudyFolder(Path(out))
    folders = [folder for folder in map(StudyFolder, map(Path, (out, *parts))) if _is_part(folder, into)]
    told = [_read(folder) for folder in folders]
    first = told[0]
    for folder, content in zip(folders, told, strict=True):
        different = base_differences(first, content)
        if different or first["settings"] != content["settings"]:
            raise ConfigError(
                f"{folder.path} holds another study than {folders[0].path}"
                + (":\n  " + "\n  ".join(different) if different else "; their rows or seeds differ.")
            )
    for name, source in _files(folders).items():
        if source != into.path / name:
            _copy(source, into.path / name)
    for failure in (into.path / "rows").rglob("*.failed.json"):
        if failure.with_name(failure.name.replace(".failed", "")).is_file():
            failure.unlink()
    rows = {name: row for content in told for name, row in content["rows"].items()}
    for name in rows:
        choices = [content["rows"].get(name, {}).get("choice") for content in told]
        rows[name]["choice"] = next(filter(None, choices), None)
    costs = [cost for folder in folders if (cost := folder.read(folder.cost))]
    if costs:
        measured = {name: row for cost in costs for name, row in cost["rows"].items()}
        write_json(into.cost, {"rows": measured})
    write_json(into.study, {**first, "rows": rows})


def _is_part(folder: StudyFolder, into: StudyFolder) -> bool:
    """Leave out a folder that is still to be made."""
    return folder.path != into.path or folder.study.is_file()


def _copy(source: Path, target: Path) -> None:
    atomic_write(target, lambda aside: aside.write_bytes(source.read_bytes()))


def _read(folder: StudyFolder) -> dict[str, Any]:
    content = folder.read(folder.study)
    if content is None or "rows" not in content:
        raise ConfigError(f"{folder.path} holds no study: {folder.study} is missing; check the path.")
    return content


def _files(folders: Sequence[StudyFolder]) -> dict[str, Path]:
    """Find every file of the parts, by its place in a study.

    Raises:
        ConfigError: if two parts have different files of one run.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for kind in KINDS:
            for path in sorted((folder.path / "rows").rglob(kind)):
                name = path.relative_to(folder.path).as_posix()
                other = found.setdefault(name, path)
                if other.read_bytes() != path.read_bytes() and not name.endswith(".failed.json"):
                    raise ConfigError(
                        f"{other} and {path} are different files of one run, which was carried out twice; "
                        "remove one of them, with those beside it of the same name."
                    )
    return found
