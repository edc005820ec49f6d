"""Procedural shapes: an unlimited labelled data set that needs no files.

The k-th chair of a split is the same cloud on every machine, whatever classes stand beside it: its random
numbers depend on (seed, split, class, k) only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator
from torch import Tensor

from pcl_clora.config import unknown_name
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import Batch, Sample, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.part_taxonomy import PartTaxonomy
from pcl_clora.data.shapes import CATALOG, Draw, Mesh, ShapeBuilder
from pcl_clora.errors import UserIndexError, UserValueError

PROCEDURAL_CLASSES: tuple[str, ...] = tuple(CATALOG)
"""Names of all classes of the generator, in alphabetical order."""

PROCEDURAL_PARTS: Mapping[str, tuple[str, ...]] = {name: entry.parts for name, entry in CATALOG.items()}
"""Names of the parts of every class, in label order."""

Pose = Literal["small", "y", "so3"]


class ProceduralConfig(DataConfig):
    """Procedural shapes, made when they are first asked for."""

    reads_files: ClassVar[bool] = False
    may_turn: ClassVar[bool] = False

    name: Literal["procedural"] = "procedural"
    classes: tuple[str, ...] = PROCEDURAL_CLASSES  # classes to use, in label order
    train_size: PositiveInt = 4000  # shapes of the training split, classes in turn
    test_size: PositiveInt = 1000  # shapes of the test split; never those of the training split
    seed: NonNegativeInt = 0  # another seed gives other shapes
    pose: Pose = "small"  # "small" tilts by a few degrees, "y" turns about the vertical axis, "so3" anyhow
    deform: NonNegativeFloat = 1.0  # strength of stretching, taper, twist and bend; 0 = none
    noise: float = Field(default=0.005, ge=0.0, le=0.2)  # largest noise level of a shape; unit sphere = 1
    keep: bool = True  # keep made shapes in memory

    def input_rule(self) -> InputRule:
        """Return the rule for clouds like these: random points of the surface, moved and scaled."""
        return self.make_rule(centre_on="cut", cut="random", draw=("procedural", self.seed))

    @field_validator("classes", mode="before")
    @classmethod
    def _all_classes(cls, value: object) -> object:
        return PROCEDURAL_CLASSES if value == "all" else value

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in CATALOG:
                raise UserValueError(unknown_name(name, CATALOG, what="procedural class"))
        if not value or len(set(value)) != len(value):
            raise UserValueError(f"classes={list(value)} must name at least one class, none of them twice.")
        return value


class ProceduralShape(NamedTuple):
    """One cloud of the generator.

    Attributes:
        points: (N, 3), float32, mean 0, farthest point at distance 1, y up.
        part_labels: (N,), int64, index into PROCEDURAL_PARTS of the class.
    """

    points: np.ndarray
    part_labels: np.ndarray


def generate_mesh(class_name: str, draw: Draw, *, deform: float = 1.0) -> Mesh:
    """Build the mesh of one shape, deformed but not normalised.

    Args:
        class_name: one of PROCEDURAL_CLASSES.
        draw: where random numbers come from.
        deform: strength of stretching, taper, twist and bend; 0 leaves the shape as it was built.

    Returns:
        A mesh with part labels, y up, the middle of its bounding box at the origin.
    """
    if class_name not in CATALOG:
        raise UserValueError(unknown_name(class_name, CATALOG, what="procedural class"))
    entry = CATALOG[class_name]
    builder = ShapeBuilder(entry.parts)
    entry.build(builder, draw)
    mesh = builder.mesh()
    vertices = mesh.vertices
    vertices -= (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    if deform > 0:
        _deform(vertices, draw, deform)
    return mesh


def _deform(vertices: np.ndarray, draw: Draw, strength: float) -> None:
    """Stretch, and sometimes taper, twist and bend along a random axis, in place."""
    vertices *= np.exp(0.12 * strength * (2 * draw.array(3) - 1))
    axis = draw.integer(0, 2)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    half = np.abs(vertices[:, axis]).max() + 1e-9
    along = vertices[:, axis] / half
    if draw.chance(0.4):
        vertices[:, [first, second]] *= (1.0 + 0.18 * strength * draw.uniform(-1, 1) * along)[:, None]
    if draw.chance(0.3):
        angle = 0.2 * strength * draw.uniform(-1, 1) * along
        a, b = vertices[:, first].copy(), vertices[:, second].copy()
        vertices[:, first] = np.cos(angle) * a - np.sin(angle) * b
        vertices[:, second] = np.sin(angle) * a + np.cos(angle) * b
    if draw.chance(0.3):
        vertices[:, first] += 0.12 * half * strength * draw.uniform(-1, 1) * along**2


def draw_rotation(draw: Draw, pose: Pose) -> np.ndarray:
    """Draw a rotation matrix for rows of points."""
    if pose == "so3":
        w, x, y, z = (quaternion := draw.normal(4)) / np.sqrt((quaternion**2).sum())
    else:
        turn = draw.uniform(-math.pi, math.pi) if pose == "y" else math.radians(draw.uniform(-12, 12))
        tilt = math.radians(draw.uniform(0, 4)) / 2
        lean = draw.uniform(0, 2 * math.pi)
        # First about y by `turn`, then by `tilt` about a horizontal axis in the direction `lean`.
        cos, sin = math.cos(turn / 2), math.sin(turn / 2)
        a, bx, bz = math.cos(tilt), math.sin(tilt) * math.cos(lean), math.sin(tilt) * math.sin(lean)
        w, x, y, z = a * cos, bx * cos - bz * sin, a * sin, bz * cos + bx * sin
    rotation: np.ndarray = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).T
    return rotation


def generate_shape(
    class_name: str,
    index: int,
    num_points: int = 1024,
    *,
    seed: int = 0,
    split: str = "train",
    pose: Pose = "small",
    deform: float = 1.0,
    noise: float = 0.005,
) -> ProceduralShape:
    """Make one cloud with part labels, points independent and uniform over the area of the surface.

    Args:
        class_name: one of PROCEDURAL_CLASSES.
        index: which shape of this class, 0 or more; there is no last one.
        num_points: N.
        seed: another seed gives other shapes.
        split: "train" or "test"; their shapes differ.
        pose: "small" turns by up to 12 degrees about y and tilts by up to 4; "y" turns about y by any angle;
            "so3" turns in any way.
        deform: strength of stretching, taper, twist and bend; 0 for none.
        noise: every shape gets a noise level between 0 and this, the standard deviation of its points' normal
            noise in the unit sphere.

    Returns:
        Points and part labels, in random order.

    Raises:
        ValueError: if the class or the split is not known.
    """
    draw = Draw("shape", seed, check_split(split), class_name, index)
    mesh = generate_mesh(class_name, draw, deform=deform)
    rotation = draw_rotation(draw, pose)
    level = draw.uniform(0.0, noise)
    points, part = mesh.sample(num_points, draw)
    points = unit_sphere(points @ rotation)
    if level > 0:
        points = unit_sphere(points + level * draw.normal(num_points, 3))
    return ProceduralShape(points.astype(np.float32), part)


def unit_sphere(points: np.ndarray) -> np.ndarray:
    """Move the mean of (N, 3) points to the origin and the farthest one to distance 1."""
    centered = points - points.mean(axis=0)
    x, y, z = centered.T
    unit: np.ndarray = centered / max(math.sqrt((x * x + y * y + z * z).max()), 1e-12)
    return unit


class ProceduralShapes:
    """A data set of procedural shapes, classes in turn: sample i is of class i % C.

    Part labels count through all classes of the data set: those of class c lie in `part_ranges[c]`;
    `taxonomy` says the same.

    Args:
        config: what to make.
        split: "train" or "test".
    """

    def __init__(self, config: ProceduralConfig, split: str) -> None:
        self.config = config
        self.split = check_split(split)
        self.class_names = config.classes
        size = config.train_size if split == "train" else config.test_size
        self.labels = torch.arange(size) % len(self.class_names)
        counts = np.cumsum([0] + [len(PROCEDURAL_PARTS[name]) for name in self.class_names]).tolist()
        self.part_ranges = tuple(range(a, b) for a, b in pairwise(counts))
        self.part_names = tuple(
            f"{name}/{part}" for name in self.class_names for part in PROCEDURAL_PARTS[name]
        )
        self.taxonomy = PartTaxonomy.counted({name: PROCEDURAL_PARTS[name] for name in self.class_names})
        self._points = np.empty((size if config.keep else 0, config.read_points, 3), dtype=np.float32)
        self._parts = np.empty(self._points.shape[:2], dtype=np.uint8)
        self._made = np.zeros(size, dtype=bool)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        batch = self.read_batch([index])
        label = int(batch.label[0])
        path = f"procedural:{self.config.seed}/{self.split}/{self.class_names[label]}/{self._number(index)}"
        assert batch.part_labels is not None  # every procedural shape has parts
        return Sample(batch.points[0], label, index, path, batch.part_labels[0], label)

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Make the clouds of several samples, or copy those made before."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        label = self.labels[index]
        wanted = index.tolist()
        if self.config.keep:
            for one in wanted:
                self._keep(one)
            points, parts = self._points[index.numpy()], self._parts[index.numpy()]
        else:
            shapes = [self._make(one) for one in wanted]
            points = np.stack([shape.points for shape in shapes])
            parts = np.stack([shape.part_labels for shape in shapes])
        first_part = torch.tensor([self.part_ranges[one].start for one in label.tolist()])
        return Batch(
            points=torch.from_numpy(points),
            label=label,
            index=index,
            part_labels=torch.from_numpy(parts.astype(np.int64)) + first_part[:, None],
            category=label.clone(),
        )

    def materialize(self) -> ProceduralShapes:
        """Make all shapes now, where they are kept; gives the data set back."""
        if self.config.keep:
            for index in range(len(self)):
                self._keep(index)
        return self

    def _number(self, index: int) -> int:
        return index // len(self.class_names)

    def _keep(self, index: int) -> None:
        if not self._made[index]:
            shape = self._make(index)
            self._points[index], self._parts[index] = shape.points, shape.part_labels
            self._made[index] = True

    def _make(self, index: int) -> ProceduralShape:
        config = self.config
        return generate_shape(
            self.class_names[int(self.labels[index])],
            self._number(index),
            config.read_points,
            seed=config.seed,
            split=self.split,
            pose=config.pose,
            deform=config.deform,
            noise=config.noise,
        )
