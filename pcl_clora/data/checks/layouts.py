"""The layouts that are known: how a folder is recognised, described and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pcl_clora.data.checks.fewshot import check_fewshot, describe_fewshot, is_fewshot
from pcl_clora.data.checks.finding import Finding, RootInfo
from pcl_clora.data.checks.folder import (
    check_folder,
    check_labelled,
    check_list,
    describe_folder,
    describe_labelled,
    describe_list,
    is_labelled,
    is_list,
)
from pcl_clora.data.checks.hdf5 import check_hdf5, describe_hdf5, is_hdf5
from pcl_clora.data.checks.packed import check_packed, describe_packed, is_packed
from pcl_clora.data.checks.scanobjectnn import (
    check_raw,
    check_scan,
    describe_raw,
    describe_scan,
    is_raw,
    is_scan,
)
from pcl_clora.data.checks.shapenetpart import (
    check_part_hdf5,
    check_part_text,
    describe_part_hdf5,
    describe_part_text,
    is_part_hdf5,
    is_part_text,
)
from pcl_clora.data.checks.text import check_text, describe_text, is_text
from pcl_clora.data.config import DataConfig


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        name: of the data set that reads it.
        recognise: says by names of files whether a folder has it.
        describe: says what a folder holds, from names and headers.
        check: reads a folder whole; with settings, what they do not use is left out where that is possible.
    """

    name: str
    recognise: Callable[[Path], bool]
    describe: Callable[[Path], RootInfo]
    check: Callable[[Path, DataConfig | None], Iterator[Finding]]


# In the order in which they are tried; the last one takes any folder.
LAYOUTS: tuple[Layout, ...] = (
    Layout("file_list", is_list, describe_list, check_list),
    Layout("packed", is_packed, describe_packed, check_packed),
    Layout("shapenetpart_hdf5", is_part_hdf5, describe_part_hdf5, check_part_hdf5),
    Layout("shapenetpart_txt", is_part_text, describe_part_text, check_part_text),
    Layout("modelnet40_hdf5", is_hdf5, describe_hdf5, lambda root, _: check_hdf5(root)),
    Layout("modelnet40_txt", is_text, describe_text, lambda root, _: check_text(root)),
    Layout("scanobjectnn", is_scan, describe_scan, check_scan),
    Layout("scanobjectnn_raw", is_raw, describe_raw, check_raw),
    Layout("modelnet_fewshot", is_fewshot, describe_fewshot, check_fewshot),
    Layout("labelled_folder", is_labelled, describe_labelled, check_labelled),
    Layout("folder", lambda _: True, describe_folder, check_folder),
)


def find_layout(name: str) -> Layout | None:
    """Return the layout that a data set reads; None for data sets without files of their own."""
    return next((layout for layout in LAYOUTS if layout.name == name), None)
