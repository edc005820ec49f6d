"""Calibrate the novelty score of a run on training clouds, and keep it in a small file beside the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.files import read_header
from pcl_clora.adapters.share import NOVELTY
from pcl_clora.config import ConfigError
from pcl_clora.data import PointDataset
from pcl_clora.data.input_rule import thin
from pcl_clora.data.transforms import make_augment
from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.modes import autocast, evaluation_mode
from pcl_clora.engine.novelty.scores import SCORES, NoveltyScore
from pcl_clora.engine.precision import Precision, precision_of_run
from pcl_clora.engine.product_route import product_of_run
from pcl_clora.engine.randomness import make_generator
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.engine.setup import RunData, choose_device, load_run, make_data
from pcl_clora.engine.tap import FeatureTap
from pcl_clora.engine.tasks import ClassificationTask, as_logits
from pcl_clora.io import DataError, load_tensors, save_tensors
from pcl_clora.models.layers.product import Route, use_route

FORMAT, VERSION = "pcl_clora.novelty", 1
SCORE = "knn_logit"  # the best of SCORES where they were compared, see docs/prediction.md
KNOWN = 0.95  # share of known clouds that stay below the threshold
HELD_OUT = 0.2  # share of the training clouds that the score does not know, and that give the threshold
FEWEST = 20  # clouds below which a threshold would mean nothing
BATCH_SIZE = 32

Outputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class NoveltyScale:
    """A fitted score on a scale of its own: 0 is the median of held-out known clouds, 1 what 95 % stay below.

    Attributes:
        score: the score.
        median: of the held-out clouds.
        threshold: what 95 % of them stay below.
        facts: how it was calibrated: clouds known and held out, digest of the adapter.
    """

    score: NoveltyScore
    median: float
    threshold: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Say how novel clouds are: features (n, F) and logits (n, C) -> (n,), float64; above 1 is novel."""
        spread = max(self.threshold - self.median, 1e-12)
        return 1 + (self.score(features, logits) - self.threshold) / spread

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, whole or not at all."""
        numbers = {"median": self.median, "threshold": self.threshold}
        header = {"format": FORMAT, "version": VERSION, "score": self.score.name, **numbers, **self.facts}
        save_tensors(path, self.score.tensors(), header)


def novelty_file(adapter: str | Path) -> Path:
    """Name the file that belongs to an adapter file: best/adapter.novelty.safetensors."""
    return Path(adapter).with_suffix(NOVELTY)


def load_novelty(adapter: str | Path, digest: str) -> NoveltyScale | None:
    """Read what belongs to an adapter file; None where there is none, or it belongs to other weights.

    Args:
        adapter: the adapter file.
        digest: SHA-256 over its tensors, as its header says it.

    Raises:
        DataError: if the file is damaged or of a newer version.
    """
    path = novelty_file(adapter)
    if not path.is_file():
        return None
    tensors, header = load_tensors(path)
    if header.get("adapter_sha256") != digest:
        return None
    own = header.get("format") == FORMAT and header.get("version") == VERSION
    if not own or header.get("score") not in SCORES:
        raise DataError(path, "is no novelty score of this version", "make it again: pcl-clora novelty RUN")
    try:
        score = SCORES[header["score"]].of(tensors)
        return NoveltyScale(score, float(header["median"]), float(header["threshold"]), header)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            path, f"is damaged ({type(error).__name__}: {error})", "make it again: pcl-clora novelty RUN"
        ) from error


def calibrate(known: Outputs, held_out: Outputs, *, score: str = SCORE) -> NoveltyScale:
    """Fit a score on known clouds, and its scale on others of the same classes.

    Args:
        known: features (n, F), logits (n, C) and labels (n,).
        held_out: the same of clouds that the score does not know.
        score: one of SCORES.
    """
    fitted = SCORES[score].fit(*known)
    values = fitted(*held_out[:2])
    median, threshold = (float(torch.quantile(values, share)) for share in (0.5, KNOWN))
    return NoveltyScale(fitted, median, threshold, {"known": len(known[2]), "held_out": len(held_out[2])})


def outputs_of(
    model: AdaptedModel,
    dataset: PointDataset,
    indices: Tensor,
    num_points: int,
    *,
    precision: Precision = "float32",
    product: Route = "torch",
    change: Callable[[Tensor], Tensor] | None = None,
) -> Outputs:
    """Run a classifier over clouds: features that enter its head (n, F), logits (n, C), labels (n,); CPU.

    Args:
        model: with the adapter in place; put into evaluation mode, and back.
        dataset: the clouds.
        indices: which.
        num_points: that the model gets.
        precision: of the run.
        product: of the run.
        change: what is done to the points (B, N, 3) of a batch first.
    """
    device = next(model.parameters()).device
    tap = FeatureTap(model.get_classifier())
    found = []
    try:
        with evaluation_mode(model), torch.inference_mode(), use_route(product):
            for rows in torch.split(indices, BATCH_SIZE):
                batch = thin(dataset.read_batch(rows).to(device), num_points)
                points = batch.points if change is None else change(batch.points)
                with autocast(device, precision == "bfloat16"):
                    logits = as_logits(model(points)).float().cpu()
                found.append((tap.take().cpu(), logits, batch.label.cpu()))
    finally:
        tap.remove()
    return tuple(torch.cat(part).clone() for part in zip(*found, strict=True))  # type: ignore[return-value]


def split_clouds(indices: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose training clouds that the score knows, and others that are held out from it; at most so many.

    Args:
        indices: (n,), of the training clouds.
        most: clouds of both together.
        seed: decides which.

    Returns:
        Indices, ascending; a fifth of the clouds is held out.
    """
    order = torch.randperm(len(indices), generator=make_generator("novelty", seed))[:most]
    held = max(1, round(HELD_OUT * len(order)))
    return indices[order[held:]].sort().values, indices[order[:held]].sort().values


def calibrate_model(
    model: AdaptedModel,
    cfg: RunConfig,
    data: RunData,
    *,
    most: int,
    precision: Precision = "float32",
    product: Route = "torch",
    score: str = SCORE,
) -> NoveltyScale | None:
    """Calibrate the score of a run; None where it does not classify clouds, or has too few of them.

    Held-out clouds are those of the validation split, where the run has one. Otherwise a fifth of the
    training clouds is kept from the score. The model has trained on these, so they are shown to it augmented,
    which takes part of its familiarity away; docs/prediction.md says how many of the test clouds lie above
    the threshold then.

    Args:
        model: with the adapter in place.
        cfg: settings of its run.
        data: of its run.
        most: training clouds that are looked at.
        precision: of the run.
        product: of the run.
        score: one of SCORES.
    """
    if not isinstance(data.task, ClassificationTask) or cfg.data.kind != "points":
        return None
    known, held = split_clouds(data.train.indices, most, cfg.seed)
    if len(known) + len(held) < FEWEST:
        return None

    how: dict[str, Any] = {"precision": precision, "product": product}
    first = outputs_of(model, data.train.dataset, known, cfg.data.num_points, **how)
    other = data.validation
    if other is not None and len(other.indices) >= FEWEST:
        chosen = other.indices[:most]
        apart = outputs_of(model, other.dataset, chosen, cfg.data.num_points, **how)
        return calibrate(first, apart, score=score)
    return calibrate(first, as_in_training(model, cfg, data, held, **how), score=score)


def as_in_training(
    model: AdaptedModel,
    cfg: RunConfig,
    data: RunData,
    indices: Tensor,
    *,
    precision: Precision = "float32",
    product: Route = "torch",
) -> Outputs:
    """Run a classifier over training clouds as training showed them to it: augmented; see `outputs_of`."""
    augment, generator = make_augment(cfg.augment), make_generator("novelty", "augment", cfg.seed)
    return outputs_of(
        model,
        data.train.dataset,
        indices,
        cfg.data.num_points,
        precision=precision,
        product=product,
        change=lambda points: augment(points, generator),
    )


def calibrate_run(
    run: str | Path, *, most: int = 1000, score: str = SCORE, device: str = "auto"
) -> NoveltyScale:
    """Calibrate a finished classification run, and write the file beside its adapter.

    Args:
        run: its folder; its data must be there.
        most: training clouds that are looked at.
        score: one of SCORES.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: if it is no finished classification run, or its training clouds are too few.
        DataError: if its data are not there.
    """
    cfg, model = load_run(run)
    data = make_data(cfg)
    precision, product = precision_of_run(run, cfg), product_of_run(run, cfg)
    model.to(choose_device(device))
    found = calibrate_model(model, cfg, data, most=most, precision=precision, product=product, score=score)
    if found is None:
        raise ConfigError(
            f"{run}: novelty needs a run that classifies clouds, with {FEWEST} training clouds or more; this "
            f"one has task={cfg.model.task} and {data.num_train} clouds."
        )
    return write_beside(RunFolder(Path(run)).chosen, found)


def write_beside(adapter: Path, scale: NoveltyScale) -> NoveltyScale:
    """Write a calibration beside its adapter file, with the digest of its tensors."""
    facts = {**scale.facts, "adapter_sha256": read_header(adapter).tensors_sha256}
    kept = NoveltyScale(scale.score, scale.median, scale.threshold, facts)
    kept.save(novelty_file(adapter))
    return kept
