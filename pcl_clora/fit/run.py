"""Train on a user's own files: look at them, cross-validate where there are few, train, and write a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcl_clora.data import PartDataset, build_dataset
from pcl_clora.data.input_rule import Up
from pcl_clora.data.readers.sorted_files import SortedFilesConfig
from pcl_clora.engine import RunConfig, RunResult, Trainer
from pcl_clora.errors import PclCloraError, UserValueError
from pcl_clora.fit.extend import Extension, extend, forgetting, told_forgetting
from pcl_clora.fit.judged import JudgedClasses, JudgedParts, told
from pcl_clora.fit.look import Look, listed, look
from pcl_clora.fit.pose import Pose
from pcl_clora.fit.settings import SettingsMaker, data_of
from pcl_clora.io import write_json
from pcl_clora.io.text import line_of
from pcl_clora.report import write_report

STEPS = 400  # optimiser steps at least; the epochs follow
FOLDS = 5
FEW = 150  # clouds up to which files without splits are cross-validated
UpOption = Up | Literal["auto", "mixed"]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class FitResult:
    """A trained model and what is known of it.

    Attributes:
        run_dir: the run folder: what `predict --run`, `view --run` and `pcl_clora.load` take.
        score: share of clouds that were right, or, where points have labels, the mean IoU of the clouds: of
            the test split, or of all clouds, each judged by a model that had not seen it, where the files
            were cross-validated.
        interval: its 95 % confidence interval: Wilson's, or of a bootstrap over clouds.
        judged: how many clouds were judged.
        cross_validated: whether it was.
        looked: what the files hold.
        page: fit.html.
        content: of fit.json, with all numbers of the page.
    """

    run_dir: Path
    score: float
    interval: tuple[float, float]
    judged: int
    cross_validated: bool
    looked: Look
    page: Path
    content: dict[str, Any]


def fit(
    source: str | Path,
    out: str | Path,
    *,
    parts: str | Path = "",
    labels: str = "",
    extend_run: str | Path = "",
    method: str = "clora",
    model: str = "point_mae_tiny",
    weights: str = "builtin",
    up: UpOption = "auto",
    steps: int = STEPS,
    num_points: int = 1024,
    folds: int | None = None,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    tell: Tell = print,
) -> FitResult:
    """Adapt the weights in the package to a user's own files, of any mix of formats.

    Args:
        source: ROOT/<class>/<file>, which is split by the seed, or with splits of its own, see
            `data.readers.folder`; a csv of path,label, see `data.readers.file_list`; or a folder of labelled
            files, see `data.readers.labelled_folder`.
        out: folder of the run; a run that was interrupted goes on.
        parts: yaml with the names of the labels of points; by default parts.yaml in the folder, if there.
        labels: field or column that holds them; by default found by its name.
        extend_run: folder of a finished fit that gets the classes of `source` besides its own; its backbone,
            method, pose and points are kept.
        method: of the adapter.
        model: backbone.
        weights: its weights.
        up: axis that points up in the files; "auto" finds out, "mixed" trains on all rotations.
        steps: optimiser steps at least.
        num_points: points of a cloud that the model sees.
        folds: of the cross-validation; 0 for none, None for 5 where files without splits are up to 150.
        seed: of splits, folds and training.
        overrides: key=value settings of the run, which come last.
        tell: called with a line about every step.

    Raises:
        DataError: if there are no classes or labels, or files are broken.
        UserValueError: if a setting is wrong, or there is nothing to learn or to judge by.
    """
    if steps < 1:
        raise UserValueError(f"steps={steps}; give 1 or more.")
    out = Path(out)
    data = data_of(source, parts, labels, num_points=num_points, seed=seed)
    axis: Up | None = None if up == "auto" else "y" if up == "mixed" else up
    more: Extension | None = None
    if str(extend_run):
        more = extend(extend_run, data, out)
        data, axis = more.data, more.cfg.data.up
    try:
        looked = _looked(data, axis, model, weights, mixed=up == "mixed")
        wanted = _folds(folds, looked)
    except PclCloraError:
        if more is not None:
            more.forget(out)
        raise
    _introduce(looked, tell, chosen=axis is None)
    base = None if more is None else more.base
    made = SettingsMaker(data, out, method, model, weights, looked, steps, seed, overrides, base)
    run, content = _train(made, wanted, out, tell)
    if more is not None:
        content["forgetting"] = forgetting(more, content["confusion"], looked.index.class_names)
        tell(told_forgetting(content["forgetting"]))
    write_report(run.run_dir)
    page = _write(out, run, looked, content)
    tell(told(content) + (", each by a model that had not seen it" if content["folds"] else ""))
    low, high = content["interval"]
    score = content["miou" if made.segments else "accuracy"]
    judged, folded = content["judged"], bool(content["folds"])
    return FitResult(run.run_dir, score, (low, high), judged, folded, looked, page, content)


def _looked(data: SortedFilesConfig, axis: Up | None, model: str, weights: str, *, mixed: bool) -> Look:
    found = look(data, up=axis, model=model, weights=weights)
    if not mixed:
        return found
    pose = Pose("y", True, "as told")
    return Look(found.index, found.counts, found.test, pose, found.parts, found.warnings)


def _introduce(looked: Look, tell: Tell, *, chosen: bool) -> None:
    """Say what was found."""
    total, names = sum(looked.counts.values()), looked.index.class_names
    if looked.parts:
        points = sum(looked.parts.values())
        shares = line_of(f"{name} {100 * count / points:.1f} %" for name, count in looked.parts.items())
        tell(f"{total} clouds with {len(looked.parts)} parts, of their points: {shares}")
    else:
        tell(f"{total} clouds of {len(names)} classes: {listed(names, looked.counts)}")
    if chosen and looked.pose.mixed:
        tell(f"up axis: mixed, trained on all rotations ({looked.pose.why}); --up decides otherwise")
    elif chosen:
        tell(f"up axis: {looked.pose.up} ({looked.pose.why}); --up decides otherwise")
    for warning in looked.warnings:
        tell(f"warning: {warning}")


def _train(made: SettingsMaker, folds: int, out: Path, tell: Tell) -> tuple[RunResult, dict[str, Any]]:
    """Train the folds and the model that stays; with the numbers of fit.json."""
    classes, parts = JudgedClasses(), _judged_parts(made)

    def run(cfg: RunConfig, folder: Path, *, counts: bool) -> RunResult:
        watch = parts.watch if parts is not None and counts else None
        result = Trainer(cfg, run_dir=folder, watch_test=watch).fit()
        if parts is None and counts:
            classes.add(result.result["metrics"]["confusion"])
        return result

    def content() -> dict[str, Any]:
        return classes.content() if parts is None else parts.content(made.seed)

    for fold in range(folds):
        run(made.config(fold, folds), out / f"fold_{fold}", counts=True)
        tell(f"fold {fold + 1} of {folds}: {told(content())} so far")
    result = run(made.config(), out, counts=not folds)
    return result, {**content(), "folds": folds, "steps": result.result["steps"]}


def _judged_parts(made: SettingsMaker) -> JudgedParts | None:
    if not made.segments:
        return None
    train = build_dataset(made.data, "train")
    assert isinstance(train, PartDataset)
    return JudgedParts(train.taxonomy)


def _folds(asked: int | None, looked: Look) -> int:
    splits = looked.index.layout != "class"
    if asked is None:
        smallest = min(looked.counts.values())
        few = sum(looked.counts.values()) <= FEW
        return min(FOLDS, smallest) if not splits and few and smallest > 1 else 0
    if asked == 1 or asked < 0:
        raise UserValueError(f"folds={asked}; give 2 or more, or 0 for none.")
    if asked and splits:
        raise UserValueError(f"folds={asked}, but the files have splits of their own; leave folds out.")
    return asked


def _write(out: Path, run: RunResult, looked: Look, content: dict[str, Any]) -> Path:
    """Write fit.json and the page."""
    from pcl_clora.fit.page import write_page

    content |= {
        "classes": looked.counts,
        "up": "mixed" if looked.pose.mixed else looked.pose.up,
        "pose": looked.pose.why,
        "poses": looked.pose.accuracies,
        "warnings": list(looked.warnings),
        "precision": run.result.get("precision"),
        "versions": run.result.get("versions"),
        "git": run.result.get("git"),
    }
    write_json(out / "fit.json", content)
    return write_page(out, content)
