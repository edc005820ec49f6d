"""What the rows of a study cost here: memory, time of a step, latency; row after row, with no run beside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.compare.estimate import make_step
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.study import Study
from pcl_clora.engine.product_route import choose_product
from pcl_clora.engine.run.folder import git_commit, package_versions
from pcl_clora.engine.run.lock import RunLock
from pcl_clora.engine.run.processor import processor_name
from pcl_clora.io import write_json
from pcl_clora.models import build_model
from pcl_clora.models.layers.product import use_route
from pcl_clora.report.cost import cost_report
from pcl_clora.report.latency import interleaved_seconds


def measure_cost(
    study: Study,
    folder: StudyFolder,
    rows: Sequence[str] = (),
    *,
    repeats: int = 5,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure rows one after another, with random weights, and write cost.json.

    Args:
        study: which.
        folder: where.
        rows: only these; all by default. What was measured of others stays.
        repeats: timed rounds; the median counts.
        tell: called with a line for every row.

    Returns:
        The content of cost.json: "rows", each with memory_mib and latency_ms of `cost_report`, step_ms (a
        training step of a whole batch), step_clouds, and what it was measured on. All rows are measured in
        float32, by the product of their settings. With one thread processor time counts, which leaves out
        what others ran in between.

    Raises:
        RunLockedError: if runs of the study go on in the folder.
    """
    content: dict[str, Any] = folder.read(folder.cost) or {"rows": {}}
    with ExitStack() as locks:
        for left in sorted(folder.path.glob(".shard-*.lock")):
            locks.enter_context(RunLock(folder.path / left.name[1 : -len(".lock")]))
        for name in rows or study.rows:
            content["rows"][name] = _measure(study, name, repeats) | {
                "precision": "float32",
                "processor": processor_name(),
                "threads": torch.get_num_threads(),
                "clock": "processor" if torch.get_num_threads() == 1 else "wall",
                "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
                "git": git_commit(),
                "versions": package_versions(),
            }
            write_json(folder.cost, content)
            found = content["rows"][name]
            tell(f"{name}: step {found['step_ms']:.1f} ms, {found['memory_mib']['training_step']} MiB")
    return content


def _measure(study: Study, name: str, repeats: int) -> dict[str, Any]:
    cfg = study.row(name).cfg
    route = choose_product(cfg)
    with torch.random.fork_rng(devices=[]), use_route(route):
        torch.manual_seed(0)
        model = attach_adapter(build_model(cfg.model), cfg.adapter)
        clouds = cfg.optim.batch_size
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        measured = cost_report(model, cfg.data.num_points, repeats=repeats, batch_size=clouds, clock=clock)
        step = make_step(cfg, clouds)[1]
        seconds = interleaved_seconds({"step": step}, repeats, clock=clock)["step"]
    return {
        "memory_mib": measured["memory_mib"],
        "latency_ms": measured["latency_ms"],
        "step_ms": round(1000 * seconds, 3),
        "step_clouds": clouds,
        "product": route,
    }
