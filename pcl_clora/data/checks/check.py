"""Find out what a folder is, and check it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pcl_clora.data.checks.fewshot import check_fold
from pcl_clora.data.checks.finding import Finding, RootInfo, problem
from pcl_clora.data.checks.folder import is_list
from pcl_clora.data.checks.layouts import LAYOUTS, Layout, find_layout
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS
from pcl_clora.data.folds import FewshotConfig
from pcl_clora.data.readers.modelnet_fewshot import ModelNetFewshotConfig, fewshot_file
from pcl_clora.data.readers.modelnet_hdf5 import ModelNet40Hdf5Config, classes_with_clouds
from pcl_clora.data.readers.modelnet_txt import ModelNet40TxtConfig
from pcl_clora.data.readers.scanobjectnn import ScanObjectNNConfig, scan_class_names, scan_file
from pcl_clora.data.registry import build_dataset, parse_data_config
from pcl_clora.data.subset import require_training_clouds
from pcl_clora.io import DataError, FileAccessError, explained, no_folder


def _layout_of(root: Path) -> Layout:
    with explained(root, "read"):
        if not root.is_dir() and not is_list(root):
            raise DataError(root, no_folder(root), "check the path; data/README.md says what to put where")
        return next(layout for layout in LAYOUTS if layout.recognise(root))


def describe_root(root: str | Path) -> RootInfo:
    """Say what a data folder holds, from names and headers only.

    Raises:
        DataError: if there is no such folder, or it is of no known layout.
    """
    with explained(root, "read"):
        return _layout_of(Path(root)).describe(Path(root))


def check_root(root: str | Path) -> list[Finding]:
    """Check a data folder, whatever its layout: every file is read whole.

    Args:
        root: the folder.

    Returns:
        What was found, errors first; empty if everything is as expected.
    """
    try:
        return _sorted(_found(_layout_of(Path(root)), Path(root), None))
    except DataError as error:
        return [problem(error)]


def _found(layout: Layout, root: Path, config: DataConfig | None) -> list[Finding]:
    """Check a folder; one that may not be read is a finding, too."""
    findings: list[Finding] = []
    try:
        with explained(root, "read"):
            findings.extend(layout.check(root, config))
    except FileAccessError as error:
        findings.append(problem(error))
    return findings


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
    if isinstance(config, FewshotConfig):
        findings = check_data(config.source)
        if not _has_errors(findings):
            findings += check_fold(config)
        return findings
    layout = find_layout(config.name)
    if layout is None:
        return check_classes(config)
    if not config.root:
        message = f"the data set {config.name} needs a folder; set data.root=<folder>, see data/README.md."
        return [Finding("error", "data.root", message)]
    root = Path(config.root)
    if not root.is_dir() and config.name != "file_list":
        return check_root(root)
    findings = _found(layout, root, config)
    try:
        stored = describe_root(root).num_points
    except DataError:  # reported above
        stored = 0
    if 0 < stored < config.read_points:
        message = (
            f"stores {stored} points a cloud, but {config.read_points} are asked for; lower data.num_points."
        )
        findings.append(Finding("error", str(root), message))
    if not _has_errors(findings):
        findings += check_classes(config)
    return _sorted(findings)


def check_headers(data: DataConfig | Mapping[str, Any]) -> list[Finding]:
    """Check what names and headers say about the files that a config needs; no cloud is read.

    Args:
        data: settings of a data set, or a mapping with a `name`.

    Returns:
        Errors only; an empty list does not mean that every file is sound, see `check_data`.
    """
    config = parse_data_config(data)
    if isinstance(config, FewshotConfig):
        return check_headers(config.source)
    layout = find_layout(config.name)
    if layout is None:
        return []
    if not config.root:
        return check_data(config)
    try:
        found = describe_root(config.root)
        if found.layout != config.name:
            message = f"its layout is {found.layout}, but data.name={config.name}; change one of them."
            return [Finding("error", config.root, message)]
        for split in SPLITS:
            if isinstance(config, ScanObjectNNConfig):
                scan_file(config, split)
        if isinstance(config, ModelNetFewshotConfig):
            fewshot_file(config)
    except DataError as error:
        return [problem(error)]
    if 0 < found.num_points < config.read_points:
        message = (
            f"stores {found.num_points} points a cloud, but {config.read_points} are asked for; lower "
            "data.num_points and data.pool_points."
        )
        return [Finding("error", config.root, message)]
    return []


def count_classes(data: DataConfig | Mapping[str, Any]) -> int | None:
    """Count the classes of the data that a config describes, from names and labels; no cloud is read.

    Returns:
        How many logits a head needs; None where the files are not there, or only reading all tells.
    """
    config = parse_data_config(data)
    try:
        if isinstance(config, ScanObjectNNConfig):
            return len(scan_class_names(config.root, config.class_names))
        if isinstance(config, ModelNet40Hdf5Config) and config.drop_empty_classes:
            return len(classes_with_clouds(config.root))
        if isinstance(config, ModelNet40Hdf5Config | ModelNet40TxtConfig):
            found = describe_root(config.root)
            return len(found.class_names) if found.layout == config.name else None
    except (DataError, FileAccessError):
        return None
    return None


def _has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)


def check_classes(config: DataConfig) -> list[Finding]:
    """Find classes that have no training clouds, or fewer than shots; the training clouds are read."""
    try:
        require_training_clouds(build_dataset(config, "train"), config)
    except DataError as error:
        return [problem(error)]
    return []


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.level])
