"""The model of a finished run, ready for clouds of any number of points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.files import read_header
from pcl_clora.config import ConfigError
from pcl_clora.data import InputRule, PartTaxonomy, PointDataset, Sample, build_dataset
from pcl_clora.data.input_rule import SeenCloud, Up
from pcl_clora.data.readers.whole import WholeCloud, read_whole
from pcl_clora.engine import (
    ClassificationTask,
    PartSegmentationTask,
    RunConfig,
    RunFolder,
    choose_device,
    load_run,
    make_task,
)
from pcl_clora.engine.modes import autocast
from pcl_clora.engine.precision import Precision, precision_of_run
from pcl_clora.engine.product_route import product_of_run
from pcl_clora.engine.run.rule import rule_of_run
from pcl_clora.engine.tasks import Task
from pcl_clora.models.layers.product import Route, use_route
from pcl_clora.predict.prediction import Prediction
from pcl_clora.predict.taxonomy import taxonomy_of_run


def parse_up(text: str) -> Up | None:
    """Read the name of an axis; None of an empty one.

    Raises:
        ConfigError: if it is no axis.
    """
    for axis in get_args(Up):
        if text == axis:
            known: Up = axis
            return known
    if text:
        raise ConfigError(f"up={text!r} is no axis; use one of {', '.join(get_args(Up))}.")
    return None


class Predictor:
    """The model of a finished run, ready for clouds of any number of points.

    A cloud is read by the rule that the run's adapter file carries, as its evaluation read the test clouds:
    a mesh gives points of its surface, a cloud is cut down, moved and scaled, and thinned, or filled up with
    copies. The labels of points go back to all points from their nearest seen one.

    Args:
        run: folder of a finished run.
        data: folder of the data, where it is not where the run found it; only asked for names.
        device: "auto", "cpu" or "cuda".
        up: axis that points up in the clouds to come, "x", "y", "z" or one of them after a minus; None for
            that of the run's data.

    Attributes:
        rule: which points the model sees, and where they lie.
        precision: in which the run was trained, and predicts.
        product: the library by which the run multiplied, and predicts.

    Raises:
        ConfigError: if the folder holds no finished run, or its task has no labels.
    """

    cfg: RunConfig
    model: AdaptedModel
    task: Task
    rule: InputRule
    precision: Precision
    product: Route

    def __init__(
        self,
        run: str | Path,
        *,
        data: str | Path | None = None,
        device: str = "auto",
        up: Up | None = None,
    ) -> None:
        self.cfg, model = load_run(run)
        if data is not None:
            values = {**self.cfg.data.model_dump(), "root": str(data)}
            self.cfg = self.cfg.model_copy(update={"data": type(self.cfg.data).model_validate(values)})
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self._dataset: PointDataset | None = None
        header = read_header(RunFolder(Path(run)).chosen)
        self.precision = precision_of_run(run, self.cfg)
        self.product = product_of_run(run, self.cfg)
        rule = rule_of_run(self.cfg, header)
        self.rule = rule if up is None else InputRule.model_validate({**rule.model_dump(), "up": up})
        self.task = self._make_task(Path(run), header.classes)

    def _make_task(self, run: Path, names: tuple[str, ...]) -> Task:
        if self.cfg.model.task == ClassificationTask.name:
            return ClassificationTask(names if names else int(self.model.num_classes or 0))
        if self.cfg.model.task == PartSegmentationTask.name:
            taxonomy = taxonomy_of_run(RunFolder(run), names)
            if taxonomy is None:
                return make_task(self.cfg.model, self.dataset())
            return PartSegmentationTask(taxonomy)
        raise ConfigError(f"{run}: a run of the task {self.cfg.model.task!r} predicts no labels.")

    @property
    def segments(self) -> bool:
        """Whether every point gets a label of its own."""
        return isinstance(self.task, PartSegmentationTask)

    def dataset(self) -> PointDataset:
        """Open the test split of the run's data; once."""
        if self._dataset is None:
            self._dataset = build_dataset(self.cfg.data, "test")
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
            raise ConfigError(f"{what}; choose one of {', '.join(known)}.")
        return known.index(name)

    def name_of(self, path: str | Path) -> str:
        """Name a cloud for the draws of its points, as the run's data set names it."""
        try:
            root = self.cfg.data.file_root()
        except (ConfigError, OSError, ValueError):  # the data are elsewhere: files are named without folders
            root = ""
        return self.rule.name_of(path, root)

    def predict_file(self, path: str | Path, category: str | int = "") -> Prediction:
        """Predict the cloud or mesh in a file as the evaluation does; see `read_whole` for the kinds.

        Raises:
            DataError: if it cannot be read.
        """
        return self.predict_whole(read_whole(path), self.name_of(path), category)

    def predict_whole(self, cloud: WholeCloud, name: str, category: str | int = "") -> Prediction:
        """Predict a cloud that was read whole."""
        return self(cloud.points, category, name=name, faces=cloud.faces, inside=cloud.inside)

    def predict_sample(self, sample: Sample) -> Prediction:
        """Predict a sample of the run's data, which lies in the frame of the model already."""
        category = "" if sample.category is None else sample.category
        return self._predict(self.rule.see_sample(sample.points), category)

    def __call__(
        self,
        points: ArrayLike | Tensor,
        category: str | int = "",
        *,
        name: str = "",
        faces: NDArray[np.int64] | None = None,
        inside: NDArray[np.bool_] | None = None,
    ) -> Prediction:
        """Predict one cloud.

        Args:
            points: (N, 3), finite, any type, unit and number; or the vertices of a mesh.
            category: name or number of the category, in part segmentation with several categories.
            name: decides which points are drawn, see `InputRule.name_of`.
            faces: (F, 3), triangles of a mesh.
            inside: (N,), bool, points that are not background.
        """
        return self._predict(self.rule.see(points, name=name, faces=faces, inside=inside), category)

    def _predict(self, seen: SeenCloud, category: str | int) -> Prediction:
        few = seen.points[None].to(self.device)
        task = self.task
        bfloat16 = self.precision == "bfloat16"
        with torch.inference_mode(), autocast(self.device, bfloat16), use_route(self.product):
            if not isinstance(task, PartSegmentationTask):
                probability = self.model(few).float().softmax(-1)[0]
                return Prediction(task.logit_names, probability.cpu().numpy(), seen)
            number = category if isinstance(category, int) else self.category(category)
            chosen = torch.tensor([number], device=self.device)
            probability = self.part_probability(self.model(few, chosen), chosen)[0].cpu()
        taxonomy = task.taxonomy
        found = Prediction(taxonomy.part_names, probability.numpy(), seen, taxonomy.categories[number])
        return replace(found, probability=probability[found.nearest].numpy())

    def part_probability(self, logits: Tensor, category: Tensor) -> Tensor:
        """Turn logits (B, N, P) into probabilities among the parts of the clouds' categories (B,)."""
        allowed = self.taxonomy.mask().to(logits.device)[category][:, None]
        return logits.float().masked_fill(~allowed, -torch.inf).softmax(-1)
