"""Look at data folders: what is there, and what is wrong with it."""

from pcl_clora.data.checks.check import (
    check_classes,
    check_data,
    check_headers,
    check_root,
    count_classes,
    describe_root,
)
from pcl_clora.data.checks.finding import Finding, RootInfo
from pcl_clora.data.checks.manifest import check_manifest

__all__ = [
    "Finding",
    "RootInfo",
    "check_classes",
    "check_data",
    "check_headers",
    "check_manifest",
    "check_root",
    "count_classes",
    "describe_root",
]
