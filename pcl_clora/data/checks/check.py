"""Find out what a folder is, and check it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pcl_clora.data.checks.finding import Finding, RootInfo, problem
from pcl_clora.data.checks.folder import check_folder, describe_folder
from pcl_clora.data.checks.hdf5 import check_hdf5, describe_hdf5, is_hdf5
from pcl_clora.data.checks.text import check_text, describe_text, is_text
from pcl_clora.data.config import DataConfig
from pcl_clora.data.registry import parse_data_config
from pcl_clora.io import DataError

_CHECKS: dict[str, Callable[[Path], Iterator[Finding]]] = {
    "modelnet40_hdf5": check_hdf5,
    "modelnet40_txt": check_text,
    "folder": check_folder,
}
_DESCRIPTIONS: dict[str, Callable[[Path], RootInfo]] = {
    "modelnet40_hdf5": describe_hdf5,
    "modelnet40_txt": describe_text,
    "folder": describe_folder,
}


def detect_layout(root: str | Path) -> str:
    """Name the data set that reads a folder, by the names of its files.

    Raises:
        DataError: if there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            root, "there is no such folder", "check the path; data/README.md says what to put where"
        )
    if is_hdf5(root):
        return "modelnet40_hdf5"
    return "modelnet40_txt" if is_text(root) else "folder"


def describe_root(root: str | Path) -> RootInfo:
    """Say what a data folder holds, from names and headers only.

    Raises:
        DataError: if there is no such folder, or it is of no known layout.
    """
    return _DESCRIPTIONS[detect_layout(root)](Path(root))


def check_root(root: str | Path) -> list[Finding]:
    """Check a data folder, whatever its layout: every file is read whole.

    Args:
        root: the folder.

    Returns:
        What was found, errors first; empty if everything is as expected.
    """
    try:
        layout = detect_layout(root)
    except DataError as error:
        return [problem(error)]
    return _sorted(_CHECKS[layout](Path(root)))


def check_data(data: DataConfig | Mapping[str, Any] | str | Path) -> list[Finding]:
    """Check the files that a config needs, or a folder.

    Args:
        data: settings of a data set, a mapping with a `name`, or a folder.

    Returns:
        What was found, errors first. Data sets without files give nothing.

    Raises:
        ValueError: if the settings are wrong.
    """
    if isinstance(data, str | Path):
        return check_root(data)
    config = parse_data_config(data)
    if config.name not in _CHECKS:
        return []
    if not config.root:
        message = f"the data set {config.name} needs a folder; set data.root=<folder>, see data/README.md."
        return [Finding("error", "data.root", message)]
    root = Path(config.root)
    if not root.is_dir():
        return check_root(root)
    findings = list(_CHECKS[config.name](root))
    try:
        stored = _DESCRIPTIONS[config.name](root).num_points
    except DataError:  # reported above
        stored = 0
    if 0 < stored < config.read_points:
        message = (
            f"stores {stored} points a cloud, but {config.read_points} are asked for; lower data.num_points."
        )
        findings.append(Finding("error", str(root), message))
    return _sorted(iter(findings))


def _sorted(findings: Iterator[Finding]) -> list[Finding]:
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.level])
