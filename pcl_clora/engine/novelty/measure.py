"""How well the scores tell clouds of classes that a run never saw from test clouds of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcl_clora.config import ConfigError
from pcl_clora.data import build_dataset
from pcl_clora.engine.novelty.calibration import as_in_training, calibrate, outputs_of, split_clouds
from pcl_clora.engine.novelty.scores import SCORES, auroc
from pcl_clora.engine.precision import precision_of_run
from pcl_clora.engine.product_route import product_of_run
from pcl_clora.engine.run.folder import environment
from pcl_clora.engine.run.result import describe_data
from pcl_clora.engine.setup import choose_device, load_run, make_data
from pcl_clora.engine.tasks import ClassificationTask
from pcl_clora.errors import UserValueError
from pcl_clora.io.text import line_of


def measure_novelty(
    run: str | Path,
    root: str | Path,
    *,
    split: str = "test",
    known_as: Sequence[str] = (),
    most: int = 1000,
    device: str = "auto",
) -> dict[str, Any]:
    """Compare all scores on clouds of classes that a run was not trained on.

    Every score is calibrated as the run's own is, on training clouds alone; neither test nor novel clouds
    choose anything.

    Args:
        run: folder of a finished classification run; its data must be there.
        root: folder of novel clouds, in the layout of the run's data.
        split: of them, "train" or "test".
        known_as: names of classes there that the run knows by another name. They are left out, as are those
            with the name of a class of the run.
        most: training clouds that the scores are calibrated on.
        device: "auto", "cpu" or "cuda".

    Returns:
        For every score "auroc", "flagged_known" and "flagged_novel" (shares above the threshold), in [0, 1];
        with the run, the clouds and the versions.

    Raises:
        ConfigError: if it is no classification run.
        UserValueError: if a name is not a class there, or no novel clouds are left.
    """
    cfg, model = load_run(run)
    if cfg.model.task != ClassificationTask.name:
        raise ConfigError(f"{run}: novelty is known for runs that classify clouds, not for {cfg.model.task}.")
    data, where = make_data(cfg), choose_device(device)
    model.to(where)
    other = type(cfg.data).model_validate(
        {**cfg.data.model_dump(), "root": str(root), "shots": 0, "leave_out": (), "allow_empty_classes": True}
    )
    novel = build_dataset(other, split)
    wrong = [name for name in known_as if name not in novel.class_names]
    if wrong:
        raise UserValueError(f"{root}: no classes {line_of(wrong)}; there are {line_of(novel.class_names)}.")
    known_names = {name.lower() for name in (*data.class_names, *known_as)}
    left = [label for label, name in enumerate(novel.class_names) if name.lower() not in known_names]
    chosen = torch.nonzero(torch.isin(novel.labels, torch.tensor(left))).flatten()
    if not len(chosen):
        raise UserValueError(f"{root}: the run knows all classes of its clouds; give others.")
    known, held = split_clouds(data.train.indices, most, cfg.seed)
    how: dict[str, Any] = {"precision": precision_of_run(run, cfg), "product": product_of_run(run, cfg)}
    points = cfg.data.num_points
    fitted = outputs_of(model, data.train.dataset, known, points, **how)
    held_out = as_in_training(model, cfg, data, held, **how)
    tested = outputs_of(model, data.test.dataset, data.test.indices, points, **how)
    strange = outputs_of(model, novel, chosen, points, **how)
    found = {}
    for name in SCORES:
        scale = calibrate(fitted, held_out, score=name)
        own, others = scale(*tested[:2]), scale(*strange[:2])
        found[name] = {
            "auroc": round(auroc(own, others), 4),
            "flagged_known": round(float((own > 1).double().mean()), 4),
            "flagged_novel": round(float((others > 1).double().mean()), 4),
        }
    env = environment(where)
    names = sorted({novel.class_names[label] for label in novel.labels[chosen].tolist()})
    return {
        "run": cfg.name,
        "accuracy": round(float((tested[1].argmax(1) == tested[2]).double().mean()), 4),
        "known": {
            **describe_data(cfg.data),
            "fitted": len(known),
            "held_out": len(held),
            "test": len(tested[2]),
        },
        "novel": {"folder": Path(root).name, "split": split, "clouds": len(chosen), "classes": names},
        "scores": found,
        "git": env["git"],
        "versions": env["versions"],
    }
