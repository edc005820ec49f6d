"""`pcl-clora fewshot`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, ConfigPath, Overrides, interruptible, print_json, show
from pcl_clora.cli.train import Resume


def fewshot(
    config: ConfigPath,
    overrides: Overrides = None,
    ways: Annotated[int, typer.Option(min=2, help="Classes a fold; published: 5 and 10.")] = 5,
    shots: Annotated[int, typer.Option(min=1, help="Training clouds a class; published: 10 and 20.")] = 10,
    folds: Annotated[str, typer.Option(help="Which folds, for example 0-9 or 0,3.")] = "0-9",
    resume: Annotated[
        Resume, typer.Option(help="auto: finished folds are not repeated. never: start all over.")
    ] = Resume.auto,
    as_json: AsJson = False,
) -> None:
    """Train and test on every fold of few-shot classification; report mean and standard deviation.

    The folds are official ones (data.name=modelnet_fewshot) or made from a seed out of any data set
    (data.name=fewshot with data.source, or simply the config of that data set). The folder
    <output>/<name>_<ways>way_<shots>shot gets a run folder for each fold and fewshot.json; the same
    command goes on after an interruption.
    """
    from pcl_clora.engine import load_run_config
    from pcl_clora.engine.fewshot import run_fewshot
    from pcl_clora.engine.several_seeds import parse_seeds

    cfg = load_run_config(config, overrides or [])
    numbers = parse_seeds(folds, what="fold")
    with interruptible():
        summary = run_fewshot(cfg, ways, shots, numbers, resume=resume.value)
    if as_json:
        print_json(dict(summary.content))
        return
    show(*_tables(summary.content), f"Result: {summary.folder / 'fewshot.json'}")


def _tables(content: Mapping[str, Any]) -> list[Any]:
    from pcl_clora.report.show import plain_table
    from pcl_clora.report.units import duration, percent

    rows = [
        [
            str(fold["fold"]),
            percent(fold["oa"]),
            percent(fold["macc"]),
            duration(fold["train_seconds"]),
            ", ".join(fold["classes"]),
        ]
        for fold in content["folds"]
    ]
    mean, deviation = percent(content["oa"]), content["oa_std"]
    protocol = content["protocol"]
    source = content["data"].get("source", content["data"])["name"]
    title = f"{content['ways']}-way {content['shots']}-shot, {content['method']}, {source}"
    outcome = [
        ["overall accuracy, mean over folds", mean],
        ["standard deviation over folds (n - 1)", "" if deviation is None else percent(deviation)],
        ["folds", str(content["num_folds"])],
        ["protocol", f"{protocol['name']}, chosen by {protocol['select']}, votes {protocol['votes']}"],
        ["augmentation", content["augment"]],
    ]
    return [
        plain_table(f"{title}, fold by fold, percent", ["fold", "OA", "mAcc", "time", "classes"], rows),
        plain_table(title, ["percent", ""], outcome),
    ]
