"""Which points a model sees, and where they lie: one rule for training, evaluation and all that follows.

A reader, the training loop, an evaluation and a prediction ask the same `InputRule`. It travels with a run
and its adapter file, so that a cloud that is predicted later is read as those of the training were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from pcl_clora.config import Config
from pcl_clora.data.dataset import Batch, PointDataset, Sample, stack_samples
from pcl_clora.data.frame import TURNS
from pcl_clora.data.norms import Norms
from pcl_clora.data.one_cloud import count_distinct, crowded_share, has_distinct, is_line, radius_and_offset
from pcl_clora.data.shapes import Draw, Mesh
from pcl_clora.data.transforms import (
    Compat,
    fps_index,
    normalize_unit_sphere,
    pool_size,
    resample_index,
)
from pcl_clora.errors import UserValueError, warn_once
from pcl_clora.io import DataError
from pcl_clora.io.formats import Axis

Up = Axis

# Where float32 holds a cloud: an offset of 256 extents leaves 16 of its 24 bits to the shape. The sizes keep
# squares, and sums of them, inside its range.
MAX_OFFSET = 256.0
SMALLEST, LARGEST = 1e-15, 1e15

MOVE = "move the clouds nearer to the origin, or set data.normalize=true"
LAYOUT_ROWS = (".h5", ".hdf5", ".dat", ".pkl")  # a row of these is a cloud of the layout that was trained on


class SeenCloud:
    """One cloud as a model sees it.

    Args:
        points: (num_points, 3), float32.
        whole: (N, 3), float32; or what makes it, called when it is asked for.
        kept: (num_points,), int64, or None.
        doubts: sentences.

    Attributes:
        points: what the model is given.
        kept: places of the given points in the file; None where they were drawn from the surface of a mesh.
        doubts: why the answer may be wrong, each a sentence without a full stop.
    """

    def __init__(
        self,
        points: Tensor,
        whole: Tensor | Callable[[], Tensor],
        kept: Tensor | None,
        doubts: tuple[str, ...] = (),
    ) -> None:
        self.points, self.kept, self.doubts = points, kept, doubts
        self._whole = whole

    @cached_property
    def whole(self) -> Tensor:
        """All points of the file in the frame of the model, (N, 3), float32."""
        return self._whole if isinstance(self._whole, Tensor) else self._whole()


class InputRule(Config):
    """What is done to a cloud before a model sees it.

    A cloud goes through these in order: points of the background are left out, it is turned, cut down to the
    points that a sample holds, moved and scaled, and thinned by farthest point sampling to what the model
    sees. A mesh gives points uniform over its area instead of its vertices.
    """

    kind: Literal["points", "images"] = "points"  # images go to the model as they are read
    num_points: PositiveInt = 1024  # N, points that the model sees
    read_points: PositiveInt = 1024  # points of a sample, of which num_points are drawn or thinned
    frame: Literal["unit_sphere", "file"] = "unit_sphere"  # where the model sees a cloud
    framed_by: Literal["reader", "file"] = "reader"  # "file": stored clouds fill the unit sphere already
    centre_on: Literal["whole", "cut"] = "whole"  # points whose mean and farthest distance make the frame
    cut: Literal["first", "random"] = "first"  # which points of a file are read, in its order or drawn
    draw: tuple[str | int, ...] = ()  # beginning of the key of the draws, before the name of the cloud
    naming: Literal["path", "parent", "stem", "file"] = "file"  # what of a path names a cloud
    repeat: bool = False  # training fills small clouds up with copies; otherwise it refuses them
    object_only: bool = False  # points that a file marks as background are left out
    stored_points: NonNegativeInt = 0  # points a pack holds, of which the first are read; 0 = not packed
    up: Up = "y"  # axis of the files that points up; clouds are turned so that it is y
    fps: Compat = "none"  # rule of the thinning, see `ops.farthest_point_sample`
    norms: Norms | None = None  # what training met
    image_size: NonNegativeInt = 0  # height and width of images; 0 = these are clouds
    image_mean: tuple[float, ...] = ()  # a channel, taken from grey values in 0..1
    image_std: tuple[float, ...] = ()  # what they are divided by then

    def turn(self, points: Tensor) -> Tensor:
        """Turn points (..., 3) so that y points up; no bit changes but signs."""
        if self.up == "y":
            return points
        return torch.stack([points[..., column] * sign for column, sign in TURNS[self.up]], dim=-1)

    def hold(self, points: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Bring clouds (..., N, 3) of any type into float32 without losing their shape.

        Those that float32 holds stay as they are. Where the reader brings clouds into the unit sphere, which
        forgets place and size, the others are moved and scaled in float64 first. Where they are taken as they
        are stored, the others lose their shape, with a warning.

        Raises:
            ValueError: if a cloud is not in reach of float32 and is taken as it is stored.
        """
        array = np.asarray(points)
        with np.errstate(over="ignore"):
            held = np.ascontiguousarray(array, dtype=np.float32)
        if not self._moves:
            if not np.isfinite(held).all():
                raise UserValueError(
                    f"coordinates of up to {np.abs(array).max():.4g} are beyond float32, and this rule takes "
                    "clouds as they are stored; scale them, or set data.normalize=true."
                )
            if self.frame == "file" and array.size:
                size, most = _extent(array)
                for place in np.argwhere(most > MAX_OFFSET * size)[:1]:
                    warn_once(f"{_blurred(size[tuple(place)], most[tuple(place)])}; {MOVE}", kind="blurred")
            return held if held.flags.writeable else held.copy()
        size, most = _extent(array)
        lost = (most > MAX_OFFSET * size) | (most > LARGEST) | ((size < SMALLEST) & (size > 0))
        if not lost.any():
            return held if held.flags.writeable else held.copy()
        if np.shares_memory(held, array):
            held = held.copy()
        for place in zip(*np.nonzero(lost), strict=True) if lost.ndim else [()]:
            held[place] = _unit_sphere64(array[place])
        return held

    def dtype_of(self, stored: np.dtype[Any]) -> type[np.float32] | type[np.float64]:
        """Say in which type clouds that are stored so are read before `place`: float64 where that helps."""
        small = stored.itemsize <= (4 if stored.kind == "f" else 2)
        return np.float64 if self._moves and not small else np.float32

    def place(self, points: ArrayLike | Tensor) -> Tensor:
        """Bring clouds (..., N, 3) into the frame of the model: float32."""
        turned = self.turn(torch.from_numpy(self.hold(points)))
        return normalize_unit_sphere(turned) if self._moves else turned

    def name_of(self, path: str | Path, root: str | Path = "") -> str:
        """Name a cloud for its draws; the same on every machine.

        Args:
            path: of the file, with "#row" where it holds several.
            root: folder of the data set; a file outside of it is named without its folders.
        """
        path = Path(path)
        if self.naming == "parent":
            return f"{path.parent.name}/{path.name}"
        if self.naming == "stem":
            return f"{path.parent.name}/{path.stem}"
        if self.naming == "path" and str(root) and path.resolve().is_relative_to(Path(root).resolve()):
            return path.resolve().relative_to(Path(root).resolve()).as_posix()
        return path.name

    def choose(self, available: int, name: str = "", *, at_random: bool = False) -> NDArray[np.int64]:
        """Choose the points of a sample: all in their order where they are as many as wanted.

        Args:
            available: points of the cloud.
            name: of the cloud, decides the draw.
            at_random: draw where the rule takes the first ones.

        Returns:
            (read_points,), or what a pack holds; int64, copies where there are too few.
        """
        wanted = self.stored_points or self.read_points
        order = np.arange(available, dtype=np.int64)
        if available != wanted and (at_random or self.cut == "random"):
            order = np.argsort(Draw(*self.draw, name).array(available), kind="stable")
        return np.resize(order, wanted)

    def read(
        self,
        points: ArrayLike,
        *,
        name: str,
        file: str | Path = "",
        faces: NDArray[np.int64] | None = None,
        inside: NDArray[np.bool_] | None = None,
    ) -> tuple[Tensor, NDArray[np.int64] | None]:
        """Make a sample of a whole cloud, as a reader does.

        Args:
            points: (N, 3), or the vertices of a mesh.
            name: decides the draws, see `name_of`.
            file: for messages.
            faces: (F, 3), triangles of a mesh.
            inside: (N,), bool, points that are not background.

        Returns:
            (read_points, 3), float32, and their places in the file; None for a mesh.

        Raises:
            DataError: if there are too few points and `repeat` is not set, none at all, or no area.
        """
        taken = self._take(points, name, file, faces, inside, strict=True)
        return taken.points, taken.index

    def see(
        self,
        points: ArrayLike | Tensor,
        *,
        name: str = "",
        faces: NDArray[np.int64] | None = None,
        inside: NDArray[np.bool_] | None = None,
    ) -> SeenCloud:
        """Read a whole cloud as an evaluation does, of any size; small ones are filled up with copies.

        Where the rule takes the first points of a file, they are drawn instead if they do not lie all over
        the cloud, as those of a scan do not; a row of a file in the layout of the training is left its order.

        Args:
            points: (N, 3), any type, unit and number; or the vertices of a mesh.
            name: of the cloud, decides draws, see `name_of`.
            faces: (F, 3), triangles of a mesh.
            inside: (N,), bool, points that are not background.

        Raises:
            ValueError: if points is not (N, 3), is empty, not finite, or the rule is one for images.
        """
        array = self._checked(points)
        at_random, place = not self._is_spread(array, name), name or "the cloud"
        rule, taken = self, None
        if self.frame == "unit_sphere" and not self._moves:  # those that do not lie there are brought there
            if float(np.abs(array).max()) <= LARGEST:
                taken = self._take(array, name, place, faces, inside, at_random=at_random)
            if taken is None or not self._fits(taken.points):
                rule, taken = self.model_copy(update={"framed_by": "reader"}), None
        if taken is None:
            taken = rule._take(array, name, place, faces, inside, at_random=at_random)
        seen, kept = taken.points, None if taken.index is None else torch.from_numpy(taken.index)
        available = None if kept is None else len(taken.whole)
        whole: Tensor | Callable[[], Tensor] = taken.whole
        if rule._moves:
            whole = partial(_placed, taken.whole, taken.anchor, kept, seen)
        if self.read_points > self.num_points:
            thinned = fps_index(seen[None], self.num_points, compat=self.fps)[0]
            seen, kept = seen[thinned], None if kept is None else kept[thinned]
        return SeenCloud(seen, whole, kept, tuple(self._doubts(seen, taken.whole, available)))

    @property
    def _moves(self) -> bool:
        """Whether the reader brings clouds into the unit sphere."""
        return self.frame == "unit_sphere" and self.framed_by == "reader"

    def _take(
        self,
        points: ArrayLike,
        name: str,
        file: str | Path,
        faces: NDArray[np.int64] | None,
        inside: NDArray[np.bool_] | None,
        *,
        strict: bool = False,
        at_random: bool = False,
    ) -> _Taken:
        held = self.hold(points)
        whole = self.turn(torch.from_numpy(held))
        if faces is not None and len(faces):
            drawn = self.turn(torch.from_numpy(self._sample(held, faces, name, file)))
            placed = normalize_unit_sphere(drawn) if self._moves else drawn
            return _Taken(placed[: self.read_points], None, whole, drawn)
        index = np.arange(len(held), dtype=np.int64)
        if self.object_only and inside is not None:
            index = np.flatnonzero(inside)
            if not index.size:
                remedy = "leave the file out, or set data.background=true"
                raise DataError(file, "no point is labelled as an object", remedy)
        wanted = self.stored_points or self.read_points
        if strict and len(index) < wanted and not self.repeat:
            raise DataError(
                file,
                f"has {len(index)} points, but {wanted} were asked for",
                "lower data.num_points (and data.pool_points), or fill up with copies: data.repeat=true",
            )
        chosen = self.choose(len(index), name, at_random=at_random)
        anchor = cloud = whole[torch.from_numpy(index)] if len(index) < len(held) else whole
        if self._moves and self.centre_on == "whole":
            cloud = normalize_unit_sphere(cloud)
        taken = cloud[torch.from_numpy(chosen)]
        if self._moves and self.centre_on == "cut":
            anchor, taken = taken, normalize_unit_sphere(taken)
        return _Taken(taken[: self.read_points], index[chosen][: self.read_points], whole, anchor)

    def _sample(
        self, vertices: NDArray[np.float32], faces: NDArray[np.int64], name: str, file: str | Path
    ) -> NDArray[np.float32]:
        """Draw the points of a mesh, uniform over its area."""
        mesh = Mesh(vertices.astype(np.float64), faces, np.zeros(len(faces), np.int64))
        if not mesh.areas().sum() > 0:
            raise DataError(file, "the triangles of this mesh have no area", "mend or remove the file")
        count = self.stored_points or self.read_points
        return mesh.sample(count, Draw(*self.draw, name))[0].astype(np.float32)

    def see_sample(self, points: Tensor) -> SeenCloud:
        """Thin a sample of a data set, (read_points, 3), which lies in the frame already."""
        kept = torch.arange(len(points))
        if len(points) > self.num_points:
            kept = fps_index(points[None], self.num_points, compat=self.fps)[0]
        return SeenCloud(points[kept], points, kept)

    def _checked(self, points: ArrayLike | Tensor) -> NDArray[Any]:
        array = np.asarray(points)
        if self.kind == "images":
            raise UserValueError(
                "this run was trained on images, which are no points; it cannot predict clouds."
            )
        if array.ndim != 2 or array.shape[1] != 3 or not len(array):
            raise UserValueError(f"points are {array.shape}; expected (N, 3), N >= 1.")
        if array.dtype.kind not in "iuf":
            raise UserValueError(f"points are {array.dtype}; expected numbers.")
        if not np.isfinite(array).all():
            raise UserValueError("points are not all finite; remove those that are not.")
        return array

    def _is_spread(self, points: NDArray[Any], name: str) -> bool:
        """Tell whether the first points may stand for all: their mean is that of a random choice."""
        wanted = self.stored_points or self.read_points
        of_the_layout = Path(name.partition("#")[0]).suffix.lower() in LAYOUT_ROWS
        if self.cut != "first" or len(points) <= wanted or of_the_layout:
            return True
        given = np.ascontiguousarray(points.T, dtype=np.float64)
        error = np.abs(given[:, :wanted].mean(axis=1) - given.mean(axis=1))
        return bool((error <= 6 * given.std(axis=1) / wanted**0.5).all())

    def _fits(self, taken: Tensor) -> bool:
        """Tell whether a cloud lies where those of the training lay, so that it is taken as it is."""
        radius, offset = radius_and_offset(taken)
        if self.norms is None:
            return 0.8 <= radius <= 1.1 and offset <= 0.15
        return self.norms.hold(radius, offset)

    def _doubts(self, seen: Tensor, whole: Tensor, available: int | None) -> Iterator[str]:
        """Find what makes an answer doubtful; `whole` may have any place and size where the rule moves it."""
        radius, offset = radius_and_offset(seen)
        crowded = crowded_share(whole)
        if radius == 0 or crowded == 1:
            yield "all points coincide"
        elif crowded >= 0.5:
            yield (
                f"{100 * crowded:.1f} % of the points lie within a thousandth of the cloud's radius of one "
                "another: points far off leave no room for the shape"
            )
        elif is_line(seen):
            yield "all points lie on one line"
        if available is not None and available < self.num_points:
            yield f"the cloud has {available} points, the model sees {self.num_points}: filled up with copies"
        else:
            few = self.num_points / 2
            distinct = 0 if has_distinct(seen, few) else count_distinct(seen)
            if 1 < distinct < few:
                yield f"only {distinct} of the {self.num_points} points that the model sees are distinct"
        if self.frame == "file":
            size, most = (float(value) for value in _extent(whole.numpy()))
            if most > MAX_OFFSET * size > 0:
                yield _blurred(size, most)
        if self.norms is not None and radius > 0:
            said = self.norms.doubt(radius, offset)
            if said:
                yield f"the cloud lies far outside what training met: {said}"


@dataclass(frozen=True)
class _Taken:
    """A sample of a whole cloud: its points, their places (None of a mesh), and what its frame comes from."""

    points: Tensor
    index: NDArray[np.int64] | None
    whole: Tensor
    anchor: Tensor


def _extent(points: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure clouds (..., N, 3): their longest side, and how far they reach from 0; both (...), float64."""
    columns = np.ascontiguousarray(np.moveaxis(points, -1, -2))  # numpy is 15 times as fast along them
    low, high = columns.min(axis=-1).astype(np.float64), columns.max(axis=-1).astype(np.float64)
    return (high - low).max(axis=-1), np.maximum(np.abs(low), np.abs(high)).max(axis=-1)


def _blurred(size: float, most: float) -> str:
    """Say how little float32 leaves of a cloud that lies far off for its size."""
    steps = size / float(np.spacing(np.float32(most)))
    return (
        f"a cloud that is {size:.4g} wide lies up to {most:.4g} from the origin, where float32 has "
        f"{steps:.3g} steps for its longest side, and is taken as it is stored"
    )


def _placed(whole: Tensor, anchor: Tensor, kept: Tensor | None, seen: Tensor) -> Tensor:
    """Move and scale a whole cloud as `normalize_unit_sphere` does its anchor; some points were seen so."""
    mean = anchor.double().mean(dim=0)
    radius = (anchor.double() - mean).norm(dim=-1).max()
    placed = ((whole.double() - mean) / (radius if radius > 0 else 1.0)).float()
    if kept is not None:
        placed[kept] = seen
    return placed


def _unit_sphere64(points: NDArray[Any]) -> NDArray[np.float32]:
    """Bring one cloud (N, 3) of any type into the unit sphere, computed in float64."""
    # Whole numbers are moved while they are exact; others so that neither sums nor squares overflow.
    low = points.min(axis=0)
    moved = (points - low).astype(np.float64) if points.dtype.kind in "iu" else points / 4.0 - low / 4.0
    peak = np.abs(moved).max()
    if peak > 0:
        moved = moved / np.exp2(np.floor(np.log2(peak)))
    moved = moved - moved.mean(axis=0)
    radius = np.sqrt(np.square(moved).sum(axis=1).max())
    return np.asarray(moved / (radius if radius > 0 else 1.0), dtype=np.float32)


def draw_points(batch: Batch, num_points: int, generator: torch.Generator) -> Batch:
    """Draw the points of a training step, their labels with them; see `data.resample`. Images stay whole."""
    if batch.holds_images:
        return batch
    return batch.take(resample_index(batch.points, num_points, generator))


def keep_pool(batch: Batch, num_points: int) -> Batch:
    """Keep the points that `draw_points` draws from, so that several draws run FPS once."""
    return batch if batch.holds_images else thin(batch, pool_size(num_points, batch.points.shape[1]))


def thin(batch: Batch, num_points: int, compat: Compat = "none") -> Batch:
    """Take the points of a test step, their labels with them; see `data.fps_resample`. Images stay whole."""
    if batch.holds_images or batch.points.shape[1] == num_points:
        return batch
    return batch.take(fps_index(batch.points, num_points, compat=compat))


class ThinnedDataset:
    """A data set thinned by farthest point sampling; every cloud once, then it is remembered.

    Args:
        dataset: clouds of at least num_points points; read as it is where they have exactly that many.
        num_points: points to keep.
    """

    def __init__(self, dataset: PointDataset, num_points: int) -> None:
        self._dataset, self._num_points = dataset, num_points
        self.class_names, self.labels = dataset.class_names, dataset.labels
        self._kept: dict[str, Tensor] = {}
        self._known = torch.zeros(len(dataset), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        batch = thin(stack_samples([sample]), self._num_points)
        return replace(
            sample,
            points=batch.points[0],
            part_labels=None if batch.part_labels is None else batch.part_labels[0],
            mask=None if batch.mask is None else batch.mask[0],
        )

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Copy clouds of num_points points into one batch."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        if bool(self._known[index].all()):
            return Batch(index=index, **{name: value[index] for name, value in self._kept.items()})
        batch = thin(self._dataset.read_batch(index), self._num_points)
        for field in fields(batch):
            value = getattr(batch, field.name)
            if field.name != "index" and value is not None:
                if field.name not in self._kept:
                    self._kept[field.name] = value.new_empty(len(self), *value.shape[1:])
                self._kept[field.name][index] = value
        self._known[index] = True
        return batch
