"""The main job in a few minutes: adapt the weights in the package in three ways to labelled shapes, merge."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import NonNegativeInt, PositiveInt, field_validator
from torch import Tensor, nn

from pcl_clora.config import Config, build, config_hash, dump_yaml, merge, parse_overrides
from pcl_clora.data import PointLoader, ProceduralConfig, build_dataset
from pcl_clora.engine import OptimConfig, RunConfig, RunResult, Trainer
from pcl_clora.errors import UserValueError
from pcl_clora.io import atomic_write, write_json, write_text
from pcl_clora.models.builtin import BUILTIN
from pcl_clora.report import cost_report, units, write_report

SHOWN = "clora"  # the method whose adapter is merged, timed and handed out
NOTE = (
    "A demonstration, not a benchmark: made shapes, one seed, honest protocol (last epoch, test set used "
    "once). GFLOPs: 2 x multiply-adds of one cloud, attention included, as trained and after merging."
)
ORIGIN = (
    " The weights in the package were pre-trained on shapes of the same generator, these classes among them, "
    "without their labels."
)


class MethodConfig(Config):
    """One way of adapting the backbone."""

    adapter: dict[str, Any]  # section `adapter` of a run
    lr: float  # learning rate after the warm-up; the other settings are the same for all methods


class DemoConfig(Config):
    """Everything that decides the demo; pcl_clora/config/demo.yaml fills it."""

    seed: NonNegativeInt = 0  # of everything: shapes, heads, order, dropout
    num_points: PositiveInt = 512  # points a cloud
    augment: str = "scale_shift"  # training augmentation
    model: dict[str, Any]  # section `model` of a run; num_classes follows from the classes
    weights: str = "builtin"  # where all methods start, as weights.path of a run
    data: dict[str, Any]  # section `data` of a run: classes, pose, noise, sizes of the splits
    optim: OptimConfig  # the same for all methods but for their lr
    methods: dict[str, MethodConfig]  # sub-folder -> method
    latency_repeats: PositiveInt = 11  # rounds of the latency comparison
    latency_batch: PositiveInt = 16  # clouds at once in it

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.data.get("classes", ()))

    @field_validator("methods")
    @classmethod
    def _has_clora(cls, methods: dict[str, MethodConfig]) -> dict[str, MethodConfig]:
        if SHOWN not in methods:
            raise UserValueError(f"the demo merges the adapter of {SHOWN!r}; keep it in methods.")
        return methods


def load_demo_config(overrides: Sequence[str] = ()) -> DemoConfig:
    """Read the embedded settings of the demo, and lay `key=value` overrides over them.

    Raises:
        ConfigError: if a setting is not known or wrong.
    """
    text = files("pcl_clora.config").joinpath("demo.yaml").read_text(encoding="utf-8")
    return build(DemoConfig, merge(yaml.safe_load(text), parse_overrides(overrides)), source="demo.yaml")


def run_configs(demo: DemoConfig, out: str | Path) -> dict[str, RunConfig]:
    """Write the demo out as ordinary runs, which `pcl-clora train` can repeat: sub-folder -> settings."""
    return {name: _run_config(demo, out, name, method) for name, method in demo.methods.items()}


def _run_config(demo: DemoConfig, out: str | Path, name: str, method: MethodConfig) -> RunConfig:
    values = {
        "name": name,
        "output": str(out),
        "seed": demo.seed,
        "augment": demo.augment,
        "model": {**demo.model, "num_classes": len(demo.classes)},
        "weights": {"path": demo.weights},
        "adapter": method.adapter,
        "data": {"name": "procedural", "num_points": demo.num_points, "seed": demo.seed, **demo.data},
        "optim": {**demo.optim.model_dump(mode="json"), "lr": method.lr},
        "train": {"checkpoint_every_steps": 0},
    }
    return build(RunConfig, values, source=f"demo.yaml, {name}")


@dataclass(frozen=True)
class MethodRow:
    """One line of the demo's table.

    Attributes:
        name: of the method.
        result: result.json of its run.
        cost: cost report of its model, without latency and memory except for CLoRA.
    """

    name: str
    result: Mapping[str, Any]
    cost: Mapping[str, Any]

    HEADER = (
        "method",
        "accuracy",
        "trained params",
        "adapter file",
        "GFLOPs",
        "merged",
        "time",
    )

    def cells(self) -> list[str]:
        """Return the cells of HEADER."""
        flops = self.cost["flops"]
        return [
            self.name,
            units.percent(self.result["metrics"]["oa"]),
            units.count(self.result["params"]["trainable"]),
            units.file_size(self.result["adapter_bytes"]),
            units.giga(flops["executed"]),
            units.giga(flops["executed_merged"]),
            units.duration(self.result["train_seconds"]),
        ]


def run_demo(overrides: Sequence[str] = (), out: str | Path = "runs/demo") -> dict[str, Any]:
    """Run the demo, print its table, and write its folder.

    The folder gets config.yaml, metrics.jsonl (all methods), result.json, report.md and adapter.safetensors
    (the CLoRA adapter), and a complete run folder for every method.

    Args:
        overrides: key=value pairs over the embedded settings.
        out: the folder; what an earlier demo left there is replaced.

    Returns:
        The content of result.json.
    """
    began = time.monotonic()
    demo, folder = load_demo_config(overrides), Path(out)
    runs = run_configs(demo, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_yaml(demo))
    finished: dict[str, RunResult] = {}
    for number, (name, cfg) in enumerate(runs.items(), start=1):
        _say(f"[{number}/{len(runs)}] {_describe(demo, name, cfg)}")
        finished[name] = Trainer(cfg, resume="never").fit()
        write_report(finished[name].run_dir)
    _join_metrics(folder, list(runs))
    best = folder / SHOWN / "best" / "adapter.safetensors"
    atomic_write(folder / best.name, lambda aside: shutil.copyfile(best, aside))
    _say("merging the CLoRA adapter, comparing logits and latency")
    rows = [_row(demo, name, finished[name]) for name in demo.methods]
    merged = _compare_merged(demo, runs[SHOWN], finished[SHOWN].model)
    result = _result(demo, finished, rows, merged, time.monotonic() - began)
    write_json(folder / "result.json", result)
    write_text(folder / "report.md", _report(result, rows))
    _show(folder, result, rows)
    return result


def _describe(demo: DemoConfig, name: str, cfg: RunConfig) -> str:
    assert isinstance(cfg.data, ProceduralConfig)
    return f"{name}, {len(demo.classes)} classes, {cfg.data.train_size} clouds, {cfg.optim.epochs} epochs"


def _join_metrics(folder: Path, names: Sequence[str]) -> None:
    """Gather the metrics of all methods in one file, each line with the method it belongs to."""
    lines = []
    for name in names:
        for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            lines.append(json.dumps({"run": name, **json.loads(line)}))
    write_text(folder / "metrics.jsonl", "\n".join(lines) + "\n")


def _row(demo: DemoConfig, name: str, finished: RunResult) -> MethodRow:
    measure = name == SHOWN
    cost = cost_report(
        finished.model,
        demo.num_points,
        repeats=demo.latency_repeats,
        batch_size=demo.latency_batch,
        with_memory=measure,
        with_latency=measure,
    )
    return MethodRow(name, finished.result, cost)


def _compare_merged(demo: DemoConfig, cfg: RunConfig, model: nn.Module) -> dict[str, float]:
    """Classify the test clouds before and after merging, and say by how much the logits differ."""
    test = build_dataset(cfg.data, "test")
    before = _logits(model, test, demo)
    after = _logits(copy.deepcopy(model).merge_and_unload(), test, demo)  # type: ignore[operator]
    return {
        "clouds": len(test),
        "max_logit_difference": float((before - after).abs().max()),
        "max_logit": float(before.abs().max()),
        "changed_predictions": int((before.argmax(1) != after.argmax(1)).sum()),
    }


def _logits(model: nn.Module, dataset: Any, demo: DemoConfig) -> Tensor:
    loader = PointLoader(dataset, demo.latency_batch)
    device = next(model.parameters()).device
    with torch.inference_mode():
        return torch.cat([model(batch.points.to(device)).cpu() for batch in loader.batches(0)])


def _result(
    demo: DemoConfig,
    finished: Mapping[str, RunResult],
    rows: Sequence[MethodRow],
    merged: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    clora = next(row for row in rows if row.name == SHOWN)
    first = finished[SHOWN].result
    return {
        "config_hash": config_hash(demo),
        "seed": demo.seed,
        "git": first["git"],
        "versions": first["versions"],
        "protocol": first["protocol"],
        "augment": demo.augment,
        "note": NOTE + (ORIGIN if demo.weights == BUILTIN else ""),
        "model": first["model"],
        "weights": demo.weights or "random",
        "data": first["data"],
        "methods": {
            row.name: {
                "metrics": _summary(row.result),
                "params": row.result["params"],
                "macs": {k: v for k, v in row.cost["macs"].items() if k != "conventions"},
                "flops": row.cost["flops"],
                "adapter_bytes": row.result["adapter_bytes"],
                "train_seconds": row.result["train_seconds"],
            }
            for row in rows
        },
        "merge": {**merged, "latency_ms": clora.cost["latency_ms"], "memory_mib": clora.cost["memory_mib"]},
        "seconds": round(seconds, 1),
    }


def _summary(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: result["metrics"][name] for name in ("oa", "macc", "loss")}


def _merge_lines(result: Mapping[str, Any]) -> list[str]:
    merge_result = result["merge"]
    latency = merge_result["latency_ms"]
    turns = (
        f"(batch of {latency['batch_size']}, {latency['threads']} thread(s), {latency['device']}, medians "
        f"of {latency['repeats']} turns)"
    )
    return [
        f"CLoRA merged: largest logit difference {merge_result['max_logit_difference']:.2e} over "
        f"{merge_result['clouds']} test clouds (largest logit {merge_result['max_logit']:.2f}), "
        f"{merge_result['changed_predictions']} predictions changed.",
        f"Latency a cloud: {latency['unmerged']:.2f} ms before and {latency['merged']:.2f} ms after merging "
        f"{turns}.",
    ]


def _title(result: Mapping[str, Any]) -> str:
    clouds = f"{result['data']['num_train']} training and {result['data']['num_test']} test clouds"
    return f"Adapting {result['model']} (weights: {result['weights']}) to new labels, {clouds}"


def _report(result: Mapping[str, Any], rows: Sequence[MethodRow]) -> str:
    table = units.markdown_table(MethodRow.HEADER, [row.cells() for row in rows])
    merged = "\n".join(f"* {line}" for line in _merge_lines(result))
    links = "\n".join(f"* [{name}]({name}/report.md)" for name in (row.name for row in rows))
    return (
        f"# Demo\n\n{_title(result)}. {result['note']}\n\n{table}\n\nAccuracies in percent.\n\n"
        f"## Merging\n\n{merged}\n\n## Pages of the runs\n\n{links}\n\n"
        f"All of it took {units.duration(result['seconds'])}; settings {result['config_hash']} "
        f"(config.yaml), code {result['git']}.\n"
    )


def _show(folder: Path, result: Mapping[str, Any], rows: Sequence[MethodRow]) -> None:
    from rich.console import Console

    from pcl_clora.report.show import plain_table

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=max(console.width, 120))
    console.print(plain_table(_title(result), MethodRow.HEADER, [row.cells() for row in rows]))
    for line in (result["note"], *_merge_lines(result)):
        console.print(line, markup=False)
    took = units.duration(result["seconds"])
    console.print(f"All of it took {took}; {folder}/report.md has the rest.", markup=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
