"""What an adapter would take, known before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.plan import count_parameters
from pcl_clora.engine import RunConfig
from pcl_clora.models import build_model
from pcl_clora.tune.settings import BudgetConfig


class Sizes(NamedTuple):
    """What an adapter takes.

    Attributes:
        adapter_parameters: trained numbers that the method adds, without head and tokens.
        file_bytes: size of its file, head included; -1 where no budget asks for it.
    """

    adapter_parameters: int
    file_bytes: int

    def excess(self, budget: BudgetConfig) -> dict[str, float]:
        """Say by how much it exceeds each limit, as a share of the limit; 0 and less is within."""
        taken = {"adapter_parameters": self.adapter_parameters, "file_kib": self.file_bytes / 1024}
        limits = {name: limit for name, limit in budget if limit}
        return {name: taken[name] / limit - 1 for name, limit in limits.items()}


def sizes_of(cfg: RunConfig, budget: BudgetConfig) -> Sizes:
    """Attach the adapter to a backbone of random weights, and measure.

    Raises:
        UserValueError: if it does not fit the backbone.
    """
    model = attach_adapter(build_model(cfg.model), cfg.adapter)
    parameters = count_parameters(model.base, model.slot("default"))["adapter"]
    if not budget.file_kib:
        return Sizes(parameters, -1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        model.save_adapter(path)
        return Sizes(parameters, path.stat().st_size)
