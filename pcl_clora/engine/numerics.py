"""How a run computes, precision and library of products: the same for whatever is done with its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.modes import autocast
from pcl_clora.engine.precision import Precision, choose_precision, precision_of_run
from pcl_clora.engine.product_route import choose_product, product_of_run
from pcl_clora.models.layers.product import Route, use_route


@dataclass(frozen=True)
class Numerics:
    """What the outputs of one model depend on besides its tensors and inputs.

    Attributes:
        precision: of matrix products, see `precision`.
        product: the library of those in float32 on a CPU, see `product_route`.
    """

    precision: Precision
    product: Route

    @property
    def bfloat16(self) -> bool:
        """Whether products are done in bfloat16 where that is safe."""
        return self.precision == "bfloat16"

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Compute so inside the block."""
        with autocast(device, self.bfloat16), use_route(self.product):
            yield

    def as_json(self) -> dict[str, str]:
        """Return both as results record them."""
        return asdict(self)


def numerics_of_run(folder: str | Path, cfg: RunConfig) -> Numerics:
    """Say how the finished run in a folder computed; evaluations, measurements and predictions do the same.

    Args:
        folder: of the run.
        cfg: its settings; with train.amp and train.product other than auto they say it, as those of an
            evaluation may.

    Raises:
        DataError: if result.json is damaged.
        ValueError: if the settings name a product that this torch does not have.
    """
    return Numerics(precision_of_run(folder, cfg), product_of_run(folder, cfg))


def numerics_of_settings(cfg: RunConfig, device: torch.device) -> Numerics:
    """Say how a run of these settings would compute if it began on a device.

    Raises:
        ValueError: if the settings name a product that this torch does not have.
    """
    return Numerics(choose_precision(cfg.train.amp, device), choose_product(cfg))
