"""Make a backbone from a name, and fill it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pcl_clora.models.registry import build_model, parse_model_config
from pcl_clora.models.weights.load import load_weights


def create_model(
    name: str, *, task: str = "classification", weights: str | Path = "", **settings: Any
) -> nn.Module:
    """Make a backbone with its head.

    Args:
        name: one of `list_models()`, or "timm/" and the name of a vit_* or deit* model of timm.
        task: "classification", or another task that the backbone has a network for.
        weights: what `load_weights` takes, such as a file, or "builtin" for the weights in the package; empty
            for random ones.
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
        load_weights(model, weights)
    return model
