"""Procedural shapes for pre-training: random 3D programs beside shapes of the object classes.

Shape i of a split is the same on every machine: its random numbers depend on (seed, split, i) only. Nothing
is kept, so the corpus may be of any size; loader workers make the shapes while the model trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import Batch, Sample, check_split, stack_samples
from pcl_clora.data.generated.procedural import (
    PROCEDURAL_CLASSES,
    Pose,
    draw_rotation,
    generate_mesh,
    unit_sphere,
)
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.shapes import Draw
from pcl_clora.data.shapes.programs import build_program, sample_program
from pcl_clora.errors import UserIndexError

PROGRAM = "program"


class ProceduralCorpusConfig(DataConfig):
    """Random 3D programs and procedural objects, made on the fly."""

    reads_files: ClassVar[bool] = False
    may_turn: ClassVar[bool] = False

    name: Literal["procedural_corpus"] = "procedural_corpus"
    train_size: PositiveInt = 40000  # shapes of the training split
    test_size: PositiveInt = 1000  # shapes of the test split; never those of the training split
    seed: NonNegativeInt = 0  # another seed gives other shapes
    objects: float = Field(default=0.5, ge=0.0, le=1.0)  # share of object classes, the others are programs
    pose: Pose = "y"  # "small" tilts by a few degrees, "y" turns about the vertical axis, "so3" anyhow
    deform: NonNegativeFloat = 1.5  # strength of stretching, taper, twist and bend of objects
    noise: float = Field(default=0.005, ge=0.0, le=0.2)  # largest noise level of a shape; unit sphere = 1

    def input_rule(self) -> InputRule:
        """Return the rule for clouds like these: random points of the surface, moved and scaled."""
        return self.make_rule(centre_on="cut", cut="random", draw=("procedural_corpus", self.seed))


class ProceduralCorpus:
    """A data set of procedural shapes that are made anew whenever they are read.

    Labels are 0 to C - 1 for the object classes and C for programs; they are there for probes, pre-training
    does not look at them.

    Args:
        config: what to make.
        split: "train" or "test".
    """

    def __init__(self, config: ProceduralCorpusConfig, split: str) -> None:
        self.config = config
        self.split = check_split(split)
        self.class_names = (*PROCEDURAL_CLASSES, PROGRAM)
        size = config.train_size if split == "train" else config.test_size
        kinds = Draw("corpus kinds", config.seed, split).array(size, 2).T
        objects = (kinds[1] * len(PROCEDURAL_CLASSES)).astype(np.int64)
        labels = np.where(kinds[0] < config.objects, objects, len(PROCEDURAL_CLASSES))
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        label = int(self.labels[index])
        path = f"{self.config.name}:{self.config.seed}/{self.split}/{index}"
        return Sample(torch.from_numpy(self._make(index, label)), label, index, path)

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Make the clouds of several samples."""
        return stack_samples([self[int(index)] for index in indices])

    def _make(self, index: int, label: int) -> np.ndarray:
        config = self.config
        draw = Draw("corpus", config.seed, self.split, index)
        if self.class_names[label] == PROGRAM:
            mesh, cuts = build_program(draw)
            points = sample_program(mesh, cuts, config.read_points, draw)
        else:
            mesh = generate_mesh(self.class_names[label], draw, deform=config.deform)
            points, _ = mesh.sample(config.read_points, draw)
        points = unit_sphere(points @ draw_rotation(draw, config.pose))
        level = draw.uniform(0.0, config.noise)
        if level > 0:
            points = unit_sphere(points + level * draw.normal(config.read_points, 3))
        return points.astype(np.float32)
