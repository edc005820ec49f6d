"""Make a backbone from a name, and fill it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from pcl_clora.models.registry import build_model, parse_model_config
from pcl_clora.models.weights.load import LoadReport, load_weights

_LOGGER = logging.getLogger("pcl_clora")


def create_model(
    name: str, *, task: str = "classification", weights: str | Path = "", **settings: Any
) -> nn.Module:
    """Make a backbone with its head.

    Args:
        name: one of `list_models()`, or "timm/" and the name of a vit_* or deit* model of timm.
        task: "classification", or another task that the backbone has a network for.
        weights: what `load_weights` takes, such as a file, or "builtin" for the weights in the package; empty
            for random ones. The report is logged on the logger "pcl_clora" and kept as `model.load_report`.
        **settings: fields of the backbone's config, for example num_classes, embed_dim, depth, num_groups.

    Returns:
        A module that maps points (B, N, 3) to logits (B, num_classes) and follows
        `models.interface.Backbone`.

    Raises:
        ValueError: if the name or a setting is not known; the message names the nearest valid one.

    Example:
        >>> model = create_model("point_mae", num_classes=15, num_groups=64)
        >>> logits = model(points)
    """
    model = build_model(parse_model_config({"name": name, "task": task, **settings}))
    if weights:
        keep_report(model, load_weights(model, weights))
    return model


def keep_report(model: nn.Module, report: LoadReport) -> None:
    """Log what was loaded, with a line at WARNING if tensors stayed random, and keep it as `load_report`."""
    model.load_report = report  # type: ignore[assignment]
    random = [name for name in report.missing if not name.endswith("num_batches_tracked")]
    _LOGGER.info("%s", report)
    if not random:
        return
    parts = ", ".join(sorted({name.split(".")[0] for name in random}))
    left_out = ", ".join(sorted(set(map(str, report.unexpected.values()))))
    _LOGGER.warning(
        "%d of %d tensors of the model are not in the weights (%s) and stay random (%s): train them, or give "
        "weights that hold them.%s",
        len(random),
        len(report.matched) + len(report.missing),
        report.source,
        parts,
        f" Left out of the file: {left_out}." if left_out else "",
    )
