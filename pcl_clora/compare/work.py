"""One run of a study, in a process of its own: train, keep what is said of test, measure, write the record.

`python -m pcl_clora.compare.work` reads its job from standard input, one line of json, and ends when that is
closed: a run never outlives the study that started it, however that ends.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcl_clora.adapters import AdaptedModel
from pcl_clora.compare.corrupted import RightClouds, add_right
from pcl_clora.compare.study import identity
from pcl_clora.config import build
from pcl_clora.data import Batch, build_dataset
from pcl_clora.engine import RunConfig, RunFolder, Trainer, load_run, read_metrics
from pcl_clora.engine.metrics.segmentation import SegmentationMeter
from pcl_clora.engine.precision import precision_of
from pcl_clora.engine.product_route import product_of
from pcl_clora.engine.robustness import corrupted_accuracy
from pcl_clora.engine.run.folder import environment
from pcl_clora.engine.run.lock import RunLockedError
from pcl_clora.engine.tasks import Output, PartSegmentationTask, as_logits, make_task
from pcl_clora.errors import PclCloraError
from pcl_clora.io import read_json, save_tensors, sha256_file, write_json
from pcl_clora.models.layers.product import use_route

LOCKED, INTERRUPTED = 75, 130  # exit codes: another process has the run; Ctrl-C
KEPT = (  # what a record takes from result.json
    *("protocol", "augment", "precision", "product", "git", "versions", "task", "model", "data", "method"),
    *("params", "epochs", "steps", "train_seconds", "adapter_bytes", "adapter_sha256", "best"),
)
LONG = ("confusion", "reliability", "per_class")  # metrics that follow from the outputs


class Outputs:
    """Collects what a model says of the test clouds, small enough to be kept for paired tests.

    Of a classification the class and the logits, in float16; of part segmentation the IoU of every cloud.

    Args:
        cfg: settings of the run.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self._meter: SegmentationMeter | None = None
        if cfg.model.task == PartSegmentationTask.name:
            task = make_task(cfg.model, build_dataset(cfg.data, "test"))
            self._meter = task.meter("cpu")
        self._kept: list[dict[str, Tensor]] = []

    def __call__(self, output: Output, batch: Batch) -> None:
        """Take a batch."""
        logits = as_logits(output).detach().cpu()
        kept = {"index": batch.index.cpu().int(), "label": batch.label.cpu().short()}
        if self._meter is None:
            said = logits.argmax(-1).short()  # rounding makes ties that are none
            self._kept.append({**kept, "said": said, "logits": logits.half()})
            return
        assert batch.part_labels is not None
        assert batch.category is not None
        score = self._meter.cloud_iou(logits, batch.part_labels.cpu(), batch.category.cpu())
        self._kept.append({**kept, "score": score.float()})

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that was taken, by name."""
        return {name: torch.cat([kept[name] for kept in self._kept]) for name in self._kept[0]}


def run_job(job: Mapping[str, Any]) -> None:
    """Do one run, or what is missing of it.

    Args:
        job: "run" (row/name), "config" (all settings), "run_dir", "record", "outputs" and "corrupted"
            (paths), "trial", "chosen", "corruptions" ((name, severity) pairs) and "corruption_seed".

    Raises:
        Exception: whatever the training raises.
    """
    cfg = build(RunConfig, job["config"], source=job["run"])
    path, spent = Path(job["record"]), _Clock(job)
    if job["trial"] is not None:
        trainer = Trainer(cfg, run_dir=job["run_dir"])
        best = trainer.fit_to_choose()
        told = {"run": job["run"], "trial": job["trial"], "settings": identity(cfg)}
        told["precision"] = trainer.precision
        where = environment(torch.device("cpu"))
        score = best["oa"] if "oa" in best else best["instance_miou"]
        seen = {key: where[key] for key in ("git", "processor", "versions", "threads")}
        write_json(path, {**told, "score": score, "best": best, **seen, **spent.told()})
        shutil.rmtree(job["run_dir"], ignore_errors=True)
        return
    record, model = (read_json(path), None) if path.is_file() else _train(cfg, job, spent)
    for name, severity in job["corruptions"]:
        model = load_run(job["run_dir"])[1] if model is None else model
        spent = _Clock(job)
        right = _measure(cfg, model, record, name, severity, job["corruption_seed"])
        add_right(job["corrupted"], job["run"], job["corruption_seed"], f"{name}, {severity}", right)
        if record.get("processor_seconds"):
            record["processor_seconds"] += spent.seconds()
        write_json(path, record)
    shutil.rmtree(RunFolder(Path(job["run_dir"])).checkpoint.parent, ignore_errors=True)


class _Clock:
    """Measures the processor time of a run that goes in one piece, without processes that read clouds."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._goes_on = RunFolder(Path(job["run_dir"])).checkpoint.is_file()
        self._began = time.process_time()

    def seconds(self) -> float:
        return round(time.process_time() - self._began, 3)

    def told(self) -> dict[str, float]:
        """What a record says of it; nothing where the run went on after a kill."""
        return {} if self._goes_on else {"processor_seconds": self.seconds()}


def _train(cfg: RunConfig, job: Mapping[str, Any], spent: _Clock) -> tuple[dict[str, Any], AdaptedModel]:
    """Train, and write the record and the outputs."""
    outputs = Outputs(cfg)
    finished = Trainer(cfg, run_dir=job["run_dir"], watch_test=outputs).fit()
    result, files = finished.result, RunFolder(finished.run_dir)
    files.check_metrics()
    env = read_json(files.env)
    save_tensors(job["outputs"], outputs.tensors(), {"run": job["run"]})
    metrics = {key: value for key, value in result["metrics"].items() if key not in LONG}
    reliability = result["metrics"].get("reliability")
    record = {
        "run": job["run"],
        "seed": cfg.seed,
        "chosen": job["chosen"],
        "metrics": {**metrics, "ece": reliability["ece"] if reliability else None},
        **{key: result[key] for key in KEPT if key in result},
        "processor": env["processor"],
        "device": env["device"],
        "threads": env["threads"],
        "platform": env["platform"],
        "outputs_sha256": sha256_file(job["outputs"]),
        "curve": [
            {
                "epoch": line["epoch"],
                "loss": line["loss"],
                "score": line.get("oa", line.get("instance_miou")),
                **{key: value for key, value in line.items() if key.startswith("value_")},
            }
            for line in read_metrics(files.metrics)
            if line["kind"] == "epoch"
        ],
        "settings": identity(cfg),
        **spent.told(),
    }
    write_json(job["record"], record)
    return record, finished.model


def _measure(
    cfg: RunConfig, model: AdaptedModel, record: dict[str, Any], name: str, severity: int, seed: int
) -> np.ndarray:
    """Add the accuracy under one corruption to a record, and return which clouds were right."""
    robustness = record.setdefault("robustness", {"seed": seed, "oa": {}})
    if robustness["seed"] != seed:
        robustness.update(seed=seed, oa={})
    right = RightClouds()
    with use_route(product_of(cfg, record)):
        accuracy = corrupted_accuracy(
            model,
            build_dataset(cfg.data, "test"),
            name,
            severity,
            num_classes=cfg.model.num_classes,
            num_points=cfg.data.num_points,
            batch_size=2 * cfg.optim.batch_size,
            seed=seed,
            amp=precision_of(cfg, record) == "bfloat16",
            watch=right,
        )
    robustness["oa"].setdefault(name, {})[str(severity)] = accuracy
    return right.in_order()


def _end_with_parent() -> None:
    """Wait for the end of standard input, and end."""
    while os.read(0, 1):
        pass
    os._exit(INTERRUPTED)


def main() -> None:
    """Read a job and do it; the last line of what is printed says why it failed, if it did."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1 << 16) or b"\n"
    job = json.loads(line)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(job["threads"])
    try:
        run_job(job)
    except RunLockedError as error:
        print(error, flush=True)
        sys.exit(LOCKED)
    except KeyboardInterrupt as stop:
        print(stop, flush=True)
        sys.exit(INTERRUPTED)
    except PclCloraError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
