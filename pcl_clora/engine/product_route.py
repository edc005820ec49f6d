"""Which library multiplies in a run (train.product): chosen once, where it begins, and kept from then on.

The libraries round differently, so a run that goes on, its evaluation and its predictions use the same one.
Runs of before this choice multiplied by torch's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.models.layers import product
from pcl_clora.models.layers.product import Route

logger = logging.getLogger("pcl_clora")

KEY = "train.product"


def choose_product(cfg: RunConfig) -> Route:
    """Turn train.product into the route of a run that begins: "auto" takes what is faster here.

    Raises:
        ValueError: if this torch does not have the route.
    """
    if cfg.train.product == "auto":
        return product.route(getattr(cfg.model, "embed_dim", product.WIDTH))
    return product.known_route(cfg.train.product, KEY)


def kept_product(cfg: RunConfig, identity: Mapping[str, Any]) -> Route:
    """Choose the route of a run that goes on: with train.product=auto that with which it began.

    Args:
        cfg: the settings now.
        identity: of the checkpoint.

    Raises:
        ValueError: if this torch does not have the route.
    """
    if cfg.train.product != "auto":
        return choose_product(cfg)
    return product.known_route(identity.get(KEY, "torch"), f"The run began with {KEY}")


def product_of(cfg: RunConfig, result: Mapping[str, Any]) -> Route:
    """Say by which route a finished run multiplied; torch's own, and a warning, where this one is not there.

    Args:
        cfg: its settings; if they name a route, as those of an evaluation may, that one.
        result: the content of its result.json, which says what train.product=auto came to.

    Raises:
        ValueError: if the settings name a route that this torch does not have.
    """
    if cfg.train.product != "auto":
        return choose_product(cfg)
    return recorded_product(str(result.get("product", "torch")))


def recorded_product(told: str) -> Route:
    """Take the route that a finished run or an adapter file names; torch's own where it is not there.

    Raises:
        ValueError: if it is not known.
    """
    if told == "onednn" and not product.has_onednn():
        logger.warning(
            "The run multiplied by oneDNN, which torch %s does not offer here; torch's own product is used, "
            "and numbers differ in the last digits.",
            torch.__version__,
        )
        return "torch"
    return product.known_route(told, f"The run was trained with {KEY}")


def product_of_run(folder: str | Path, cfg: RunConfig) -> Route:
    """Say by which route the finished run in a folder multiplied; predictions are made by the same.

    Args:
        folder: of the run.
        cfg: see `product_of`.
    """
    files = RunFolder(Path(folder))
    return product_of(cfg, files.read_result() if files.result.is_file() else {})
