"""Few-shot evaluation: one run a fold, and the mean and standard deviation over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcl_clora.config import ConfigError
from pcl_clora.data import parse_data_config
from pcl_clora.data.folds import FewshotConfig
from pcl_clora.data.readers.modelnet_fewshot import ModelNetFewshotConfig
from pcl_clora.engine.config import RunConfig, load_run_config, run_identity
from pcl_clora.engine.metrics.spread import mean_and_deviation
from pcl_clora.engine.precision import precision_of
from pcl_clora.engine.product_route import product_of
from pcl_clora.engine.progress import Event
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.engine.setup import kept_rule
from pcl_clora.engine.trainer import Trainer
from pcl_clora.io import write_json

OFFICIAL_FOLDS = tuple(range(10))


@dataclass(frozen=True)
class FewshotSummary:
    """What the folds reached.

    Attributes:
        folder: of all folds; `fewshot.json` in it holds `content`.
        content: ways, shots, mean and standard deviation (n - 1; None of a single fold) of accuracies in
            [0, 1], the accuracies of every fold, and what is needed to read them.
    """

    folder: Path
    content: Mapping[str, Any]


def fold_config(cfg: RunConfig, ways: int, shots: int, fold: int) -> RunConfig:
    """Return the settings of one fold's run.

    Args:
        cfg: settings whose data section is few-shot, official or generated, or any other data set, out of
            which folds are then generated.
        ways: classes.
        shots: training clouds a class.
        fold: number of the fold.

    Raises:
        ConfigError: if a number does not fit the data section.
    """
    below = cfg.data.model_dump(mode="json")
    if not isinstance(cfg.data, FewshotConfig | ModelNetFewshotConfig):
        below = {"name": "fewshot", "source": below}
    data = parse_data_config({**below, "ways": ways, "shots": shots, "fold": fold})
    outputs = data.num_classes if isinstance(data, ModelNetFewshotConfig) and data.num_classes else ways
    return cfg.model_copy(
        update={
            "name": f"{cfg.name}_{ways}way_{shots}shot_fold{fold}",
            "data": data,
            "model": cfg.model.model_copy(update={"num_classes": outputs}),
        }
    )


def run_fewshot(
    cfg: RunConfig,
    ways: int,
    shots: int,
    folds: Sequence[int] = OFFICIAL_FOLDS,
    *,
    resume: Literal["auto", "never"] = "auto",
    on_event: Callable[[Event], None] | None = None,
) -> FewshotSummary:
    """Train and evaluate every fold; finished ones are not repeated.

    The folds go to <output>/<name>_<ways>way_<shots>shot/fold_<number>. All start from the same weights with
    the same seed; only the data differ.

    Args:
        cfg: see `fold_config`.
        ways: classes a fold.
        shots: training clouds a class.
        folds: their numbers.
        resume: "auto" takes finished folds as they are and goes on with one that was interrupted; "never"
            starts every fold over.
        on_event: see `Trainer`.

    Raises:
        ConfigError: if there are no folds, or one is named twice.
        CheckpointError: if a folder holds a fold of other settings.
        TrainingInterrupted: after Ctrl-C; the same command goes on.

    Source: mean and deviation over ten folds as in Sharma and Kaul, NeurIPS 2020, and the Point-BERT tables
        after it, which take the best test epoch of each fold: that is protocol.name=paper here.
    """
    if not folds or len(set(folds)) < len(folds):
        raise ConfigError(f"folds={list(folds)} must name at least one fold, and none twice.")
    settings = [fold_config(cfg, ways, shots, fold) for fold in folds]  # wrong ones are found before training
    folder = Path(cfg.output) / f"{cfg.name}_{ways}way_{shots}shot"
    results: list[tuple[int, Mapping[str, Any]]] = []
    content: dict[str, Any] = {}
    for fold, one in zip(folds, settings, strict=True):
        run_dir = folder / f"fold_{fold}"
        result = _finished(run_dir, one) if resume == "auto" else None
        if result is None:
            precision = precision_of(one, results[0][1]) if results else None  # of all folds alike
            product = product_of(one, results[0][1]) if results else None
            trainer = Trainer(
                one, run_dir=run_dir, resume=resume, on_event=on_event, precision=precision, product=product
            )
            result = trainer.fit().result
        results.append((fold, result))
        content = _summarize(settings[0], cfg.name, results)
        write_json(folder / "fewshot.json", content)
    return FewshotSummary(folder, content)


def _finished(run_dir: Path, cfg: RunConfig) -> Mapping[str, Any] | None:
    """Read the result of a fold that was run to its end with these settings."""
    files = RunFolder(run_dir)
    if not (files.result.is_file() and files.config.is_file()):
        return None
    recorded = run_identity(load_run_config(files.config))
    if recorded != run_identity(cfg.model_copy(update={"model": kept_rule(cfg.model, recorded)})):
        return None  # the trainer refuses to go on in this folder, and says in what they differ
    return files.read_result()


def _summarize(cfg: RunConfig, name: str, results: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Put together the results of some folds; cfg is that of any of them."""
    first, data = results[0][1], cfg.data.model_dump(mode="json")
    del data["fold"]
    numbers: dict[str, Any] = {}
    for metric in ("oa", "macc"):
        values = [result["metrics"][metric] for _, result in results]
        numbers[metric], numbers[f"{metric}_std"] = mean_and_deviation(values)
    return {
        "name": name,
        "ways": data["ways"],
        "shots": data["shots"],
        "num_folds": len(results),
        **numbers,
        **{key: first[key] for key in ("method", "model", "protocol", "seed", "augment", "epochs")},
        "data": data,
        "params": first["params"],
        "git": sorted({str(result["git"]) for _, result in results}),
        "versions": first["versions"],
        "folds": [
            {
                "fold": fold,
                "oa": result["metrics"]["oa"],
                "macc": result["metrics"]["macc"],
                "classes": list(result["metrics"]["per_class"]),
                "num_train": result["data"]["num_train"],
                "num_test": result["data"]["num_test"],
                "best": result["best"],
                "train_seconds": result["train_seconds"],
                "evaluation": result.get("evaluation"),
                "config_hash": result["config_hash"],
            }
            for fold, result in results
        ],
    }
