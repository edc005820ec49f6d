"""The model of a finished run or an adapter file, ready for clouds of any number of points."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.files import AdapterFileError, AdapterHeader
from pcl_clora.config import ConfigError
from pcl_clora.data import InputRule, PartTaxonomy, PointDataset, Sample, build_dataset
from pcl_clora.data.frame import parse_axis, warn_of_up
from pcl_clora.data.input_rule import SeenCloud, Up
from pcl_clora.data.readers.whole import WholeCloud, read_whole
from pcl_clora.engine import PartSegmentationTask, RunConfig, choose_device
from pcl_clora.engine.modes import autocast
from pcl_clora.engine.novelty import load_novelty
from pcl_clora.engine.precision import Precision
from pcl_clora.engine.tap import FeatureTap
from pcl_clora.engine.trained_classes import match_classes
from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.io.text import line_of
from pcl_clora.models.layers.product import Route, use_route
from pcl_clora.predict.opened import Opened, header_of, open_source
from pcl_clora.predict.prediction import Prediction

BATCH_SIZE = 16  # clouds that go through the model together

Cloud = str | Path | ArrayLike | Tensor


def load(
    source: str | Path,
    *,
    weights: str | Path = "",
    device: str = "auto",
    up: str | None = None,
    data: str | Path | None = None,
) -> Predictor:
    """Open a finished run or an adapter file for predictions.

    Args:
        source: folder of a run, or an adapter file, which says the weights that it stands on; also a folder
            of `pcl-clora adapters card`, or "hub:user/name", with "@revision" to pin it.
        weights: what an adapter file stands on, where it does not say so (files of earlier versions) or they
            lie elsewhere: "builtin", "hub:<id>", a weights file, the folder of a run, "random:SEED".
        device: "auto", "cpu" or "cuda".
        up: axis that points up in the clouds to come, "x", "y", "z" or one of them after a minus; None for
            that of the training.
        data: folder of a run's data, where it is not where the run found it; only asked for names.

    Returns:
        A predictor in evaluation mode, which moves, scales and thins clouds as the training did. Threads may
        share it.

    Raises:
        DataError: if there is no such run or file, it is damaged, or does not say its weights.
        ConfigError: if the run is not finished, or predicts no labels.

    Example:
        >>> model = pcl_clora.load("runs/modelnet40_builtin_clora")
        >>> model("scan.ply").name
        'chair'
    """
    return Predictor(source, weights=weights, device=device, up=parse_axis(up or ""), data=data)


class Predictor:
    """The model of a finished run or an adapter file, ready for clouds of any number of points.

    A cloud is read by the rule that the adapter file carries, as the evaluation read the test clouds: a mesh
    gives points of its surface, a cloud is cut down, moved and scaled, and thinned, or filled up with copies.
    The labels of points go back to all points from their nearest seen one.

    Threads may call it side by side. Predictors of `load_several` share a backbone and take turns.

    Args:
        source: folder of a finished run, or an adapter file.
        weights: see `load`, as the others.
        data: folder of the run's data.
        device: "auto", "cpu" or "cuda".
        up: axis that points up in the clouds to come.
        beside: a predictor whose backbone this one shares.

    Attributes:
        opened: what it is made of: adapter file, header, model, precision, product.
        model: in evaluation mode, on its device.
        task: what the logits mean.
        rule: which points the model sees, and where they lie.
        novelty: how unlike the training clouds a cloud is; None where the run has no calibration.

    Raises:
        ConfigError: if the folder holds no finished run, or its task has no labels.
        DataError: if a file is missing or damaged.
    """

    opened: Opened
    model: AdaptedModel
    rule: InputRule
    device: torch.device
    lock: threading.RLock

    def __init__(
        self,
        source: str | Path,
        *,
        weights: str | Path = "",
        data: str | Path | None = None,
        device: str = "auto",
        up: Up | None = None,
        beside: Predictor | None = None,
    ) -> None:
        where = beside.device if beside is not None else choose_device(device)
        shared = beside.model if beside is not None else None
        self.opened = found = open_source(source, weights=weights, data=data, beside=shared)
        self.device, self.model, self.task = where, found.model.to(where), found.task
        rule = found.rule
        self.rule = rule if up is None else InputRule.model_validate({**rule.model_dump(), "up": up})
        self.lock = beside.lock if beside is not None else threading.RLock()
        self.shares = beside is not None  # whether its model has other adapters
        if beside is not None:
            beside.shares = True
        self._dataset: PointDataset | None = None
        self._tap = FeatureTap(self.model.get_classifier())
        self.novelty = None if self.segments else load_novelty(found.file, self.digest)

    @property
    def name(self) -> str:
        """What tables call it: the name of the run's folder or of the file."""
        return self.opened.name

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every class, or of every part."""
        return self.task.logit_names

    @property
    def digest(self) -> str:
        """SHA-256 over the tensors of its adapter, which tells its answers from those of another one."""
        return self.opened.header.tensors_sha256

    @property
    def cfg(self) -> RunConfig:
        """Settings of the run.

        Raises:
            ConfigError: if this is a bare adapter file, which does not know them.
        """
        if self.opened.cfg is None:
            raise ConfigError(
                f"{self.opened.file} is an adapter file, which knows neither the settings nor the data of "
                "its run; give the folder of the run."
            )
        return self.opened.cfg

    @property
    def precision(self) -> Precision:
        """In which the run was trained, and predicts."""
        return self.opened.precision

    @property
    def product(self) -> Route:
        """The library by which the run multiplied, and predicts."""
        return self.opened.product

    @property
    def segments(self) -> bool:
        """Whether every point gets a label of its own."""
        return isinstance(self.task, PartSegmentationTask)

    def dataset(self) -> PointDataset:
        """Open the test split of the run's data, under the labels of the model; once.

        Raises:
            ConfigError: if clouds are of classes or parts that the model does not know.
        """
        with self.lock:
            if self._dataset is None:
                test = build_dataset(self.cfg.data, "test")
                self._dataset = match_classes(test, self.opened.header, self.cfg.model.task)
            return self._dataset

    @property
    def taxonomy(self) -> PartTaxonomy:
        """Categories and parts of a part segmentation run.

        Raises:
            ConfigError: if the run classifies whole clouds.
        """
        if not isinstance(self.task, PartSegmentationTask):
            raise ConfigError("This run classifies whole clouds; a part segmentation run is needed.")
        return self.task.taxonomy

    def category(self, name: str) -> int:
        """Find a category by its name; it can be left out where there is one only.

        Raises:
            ConfigError: listing the categories.
        """
        known = self.taxonomy.categories
        if not name and len(known) == 1:
            return 0
        if name not in known:
            what = f"category {name!r} is not known" if name else "part segmentation needs the category"
            raise ConfigError(f"{what}; choose one of {line_of(known)}.")
        return known.index(name)

    def name_of(self, path: str | Path) -> str:
        """Name a cloud for the draws of its points, as the run's data set names it."""
        try:
            root = self.cfg.data.file_root()
        except (ConfigError, OSError, ValueError):  # the data are elsewhere: files are named without folders
            root = ""
        return self.rule.name_of(path, root)

    # One cloud

    def __call__(
        self,
        cloud: Cloud,
        category: str | int = "",
        *,
        name: str = "",
        faces: NDArray[np.int64] | None = None,
        inside: NDArray[np.bool_] | None = None,
    ) -> Prediction:
        """Predict one cloud.

        Args:
            cloud: a file, see `read_whole` for the kinds; or (N, 3) numbers of any type and unit, finite,
                N >= 1, as an array, a tensor or lists; or the vertices of a mesh.
            category: name or number of the category, in part segmentation with several categories.
            name: decides which points are drawn, see `InputRule.name_of`.
            faces: (F, 3), triangles of a mesh.
            inside: (N,), bool, points that are not background.

        Raises:
            DataError: if a file cannot be read.
            ValueError: if points are not (N, 3) or not finite, or the category is not known.
        """
        seen = self.see(cloud, name=name, faces=faces, inside=inside)
        return self.answer([seen], [self._number(category)])[0]

    def predict_file(self, path: str | Path, category: str | int = "") -> Prediction:
        """Predict the cloud or mesh in a file as the evaluation does; see `read_whole` for the kinds.

        Raises:
            DataError: if it cannot be read.
        """
        return self(Path(path), category)

    def predict_sample(self, sample: Sample) -> Prediction:
        """Predict a sample of the run's data, which lies in the frame of the model already."""
        category = "" if sample.category is None else sample.category
        return self.answer([self.rule.see_sample(sample.points)], [self._number(category)])[0]

    # Several clouds

    def predict(
        self,
        clouds: Iterable[Cloud],
        category: str | int | Sequence[str | int] = "",
        *,
        batch_size: int = BATCH_SIZE,
    ) -> list[Prediction]:
        """Predict several clouds, several at a time.

        Args:
            clouds: files or arrays, each as `__call__` takes it; or one array (B, N, 3).
            category: of all of them, or one a cloud.
            batch_size: clouds that go through the model together; one where the method of the adapter lets
                predictions depend on batch mates.

        Returns:
            One prediction a cloud, in their order.

        Raises:
            TypeError: if one cloud is given instead of several.
            DataError: if a file cannot be read.
            ValueError: see `__call__`.
        """
        return list(self.predict_each(clouds, category, batch_size=batch_size))

    def predict_each(
        self,
        clouds: Iterable[Cloud],
        category: str | int | Sequence[str | int] = "",
        *,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[Prediction]:
        """Predict clouds one batch after another, as `predict`; only a batch is in memory."""
        if batch_size < 1:
            raise UserValueError(f"batch_size={batch_size}; give 1 or more.")
        several = iter(_several(clouds))
        one = isinstance(category, str | int)
        told = iter(()) if one else iter(cast(Sequence[str | int], category))
        while batch := list(islice(several, batch_size)):
            said = [cast(str | int, category)] * len(batch) if one else list(islice(told, len(batch)))
            if len(said) < len(batch):
                raise UserValueError(
                    "There are fewer categories than clouds; give one a cloud, or one for all of them."
                )
            yield from self.answer(
                [self.see(cloud) for cloud in batch], [self._number(each) for each in said]
            )

    # In two steps: what the model sees, and what it says

    def see(
        self,
        cloud: Cloud | WholeCloud,
        *,
        name: str = "",
        faces: NDArray[np.int64] | None = None,
        inside: NDArray[np.bool_] | None = None,
    ) -> SeenCloud:
        """Read a cloud as the training did: the points that the model gets; arguments as `__call__`."""
        if isinstance(cloud, str | Path):
            name, cloud = name or self.name_of(cloud), read_whole(cloud)
        if isinstance(cloud, WholeCloud):
            warn_of_up(name, cloud.up, self.rule.up, "up=")
            return self.rule.see(cloud.points, name=name, faces=cloud.faces, inside=cloud.inside)
        if isinstance(cloud, Tensor):
            cloud = cloud.detach().cpu()
        return self.rule.see(cast(Any, cloud), name=name, faces=faces, inside=inside)

    def stack(self, seen: Sequence[SeenCloud]) -> Tensor:
        """Put what the model is given of clouds into one batch on its device: (B, num_points, 3)."""
        return torch.stack([cloud.points for cloud in seen]).to(self.device)

    def answer(
        self, seen: Sequence[SeenCloud], categories: Sequence[int] = (), *, points: Tensor | None = None
    ) -> list[Prediction]:
        """Predict clouds that were seen.

        Args:
            seen: what `see` gave.
            categories: number of the category of every cloud, in part segmentation.
            points: the batch that `stack` made of them, if it is at hand.
        """
        few = self.stack(seen) if points is None else points
        numbers = torch.tensor(list(categories), dtype=torch.int64)
        if self.model.slot(self.opened.adapter).method.batch_independent:
            logits, features = self._run(few, numbers)
        else:
            rows = [self._run(few[k : k + 1], numbers[k : k + 1]) for k in range(len(few))]
            logits, features = (torch.cat(each) for each in zip(*rows, strict=True))
        return list(self._said(seen, categories, logits, features))

    def _run(self, points: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model: logits and features on the CPU, float32."""
        given = (points, numbers) if self.segments else (points,)
        if not self.shares:
            return self._pass(*given)
        with self.lock:
            self.put_in_place()
            return self._pass(*given)

    def put_in_place(self) -> None:
        """Make its adapter the active one of a backbone that several share; hold `lock` around it."""
        if self.model.active != self.opened.adapter:
            self.model.set_active(self.opened.adapter)

    def _pass(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        found = self.opened
        given = tuple(each.to(self.device) for each in given)
        bfloat16 = found.precision == "bfloat16"
        with torch.inference_mode(), autocast(self.device, bfloat16), use_route(found.product):
            logits = self.model(*given).float()
            return logits.cpu(), self._tap.take().cpu()

    def _said(
        self,
        seen: Sequence[SeenCloud],
        categories: Sequence[int],
        logits: Tensor,
        features: Tensor,
    ) -> Iterator[Prediction]:
        if not self.segments:
            probability = logits.softmax(-1).numpy()
            novelty = [None] * len(seen) if self.novelty is None else self.novelty(features, logits).tolist()
            for cloud, row, feature, score in zip(seen, probability, features.numpy(), novelty, strict=True):
                yield Prediction(self.names, row, cloud, feature=feature, novelty=score)
            return
        taxonomy = self.taxonomy
        parts = self.part_probability(logits, torch.tensor(list(categories))).numpy()
        for cloud, row, number, feature in zip(seen, parts, categories, features.numpy(), strict=True):
            yield Prediction(self.names, row, cloud, taxonomy.categories[number], feature)

    def _number(self, category: str | int) -> int:
        if not self.segments:
            return 0
        return category if isinstance(category, int) else self.category(category)

    def part_probability(self, logits: Tensor, category: Tensor) -> Tensor:
        """Turn logits (B, N, P) into probabilities among the parts of the clouds' categories (B,)."""
        allowed = self.taxonomy.mask().to(logits.device)[category][:, None]
        return logits.float().masked_fill(~allowed, -torch.inf).softmax(-1)


def _several(clouds: Iterable[Cloud]) -> Iterable[Cloud]:
    """Refuse one cloud where several are expected: a path, (N, 3) numbers."""
    shape = getattr(clouds, "shape", None)
    if isinstance(clouds, str | Path) or (shape is not None and len(shape) != 3):
        what = repr(str(clouds)) if shape is None else f"an array {tuple(shape)}"
        raise UserTypeError(
            f"predict() takes several clouds, and was given {what}; give a list of files or arrays, or an "
            "array (B, N, 3). One cloud goes into the predictor itself: predictor(cloud)."
        )
    return clouds


def load_several(
    sources: Sequence[str | Path],
    *,
    weights: str | Path = "",
    device: str = "auto",
    up: str | None = None,
    data: str | Path | None = None,
) -> list[Predictor]:
    """Open several runs or adapter files; those that stand on one backbone share it, and take turns on it.

    `answer_several` asks such predictors with one pass of what they have in common.

    Args:
        sources: see `load`, as the others.
        weights: what adapter files stand on.
        device: "auto", "cpu" or "cuda".
        up: axis that points up in the clouds to come.
        data: folder of the data of the runs.

    Raises:
        UserValueError: if there are none, or two have the same name.
    """
    if not sources:
        raise UserValueError("There is nothing to load: give run folders or adapter files.")
    axis, found = parse_axis(up or ""), list[Predictor]()
    for source in sources:
        named: dict[str, Any] = {"weights": weights, "device": device, "up": axis, "data": data}
        found.append(_beside(source, found, named) or Predictor(source, **named))
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserValueError(f"Two models are called {', '.join(twice)}; rename a folder or a file.")
    return found


def _beside(source: str | Path, others: Sequence[Predictor], named: Mapping[str, Any]) -> Predictor | None:
    """Open a source on the backbone of another predictor, if it stands on it; its SHA-256 tells."""
    settings = _settings(header_of(source))
    known = {id(one.model): one for one in others if _settings(one.opened.header) == settings}
    for other in known.values():
        try:
            return Predictor(source, **named, beside=other)
        except (
            AdapterFileError
        ):  # another base; what is wrong with the file itself is said when it stands alone
            continue
    return None


def _settings(header: AdapterHeader) -> dict[str, Any]:
    """Pick what decides whether two adapters can stand on one backbone: its settings but the classes."""
    return {**header.base_model, "num_classes": None}
