"""What a picture shows: one cloud with the ways its points can be coloured."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.io.pictures import PLAIN, part_colour, rgb, scalar_colours
from pcl_clora.io.text import line_of

MAX_LABELS = 65536  # what two bytes a point can tell apart


@dataclass(frozen=True)
class Legend:
    """What labels mean.

    Attributes:
        names: label -> name; labels that are not in here are refused.
        colours: label -> "#rrggbb"; the others get a colour by their place among the names.
        ious: label -> IoU in [0, 1], shown beside the name; None where it is not known.
    """

    names: Mapping[int, str]
    colours: Mapping[int, str] = field(default_factory=dict)
    ious: Mapping[int, float | None] = field(default_factory=dict)

    def colour(self, label: int) -> str:
        """Return the colour of a label."""
        given = self.colours.get(label)
        return part_colour(sorted(self.names).index(label)) if given is None else given


AnyLegend = Legend | Sequence[str] | Mapping[int, str]


@dataclass(frozen=True)
class LabelLayer:
    """Labels of points, counted from 0 in the order of the legend.

    Attributes:
        name: what the layer is called.
        index: (N,), uint8 or uint16, places in the lists below.
        labels: the labels as they were given.
        names: their names.
        colours: their colours, "#rrggbb".
        ious: their IoU, None where it is not known.
        counts: points of each.
    """

    name: str
    index: np.ndarray
    labels: tuple[int, ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    ious: tuple[float | None, ...]
    counts: tuple[int, ...]

    def rgb(self) -> np.ndarray:
        """Colour the points: (N, 3), uint8."""
        table = np.array([rgb(colour) for colour in self.colours], dtype=np.uint8)
        return table.take(self.index, axis=0)


@dataclass(frozen=True)
class ScalarLayer:
    """A number for every point.

    Attributes:
        name: what the layer is called.
        values: (N,), float32, finite.
        low: what the darkest colour stands for.
        high: what the brightest colour stands for.
    """

    name: str
    values: np.ndarray
    low: float
    high: float

    def share(self) -> np.ndarray:
        """Return where the values lie between low and high: (N,), float32, in [0, 1]."""
        spread = self.high - self.low
        if not spread > 0:
            return np.zeros_like(self.values)
        share = (self.values - np.float32(self.low)) / np.float32(spread)
        return np.asarray(share.clip(0.0, 1.0))

    def rgb(self) -> np.ndarray:
        """Colour the points: (N, 3), uint8."""
        return scalar_colours(self.share())


Layer = LabelLayer | ScalarLayer


@dataclass(frozen=True, eq=False)
class Panel:
    """One cloud, with labels and numbers of its points. Everything is checked when it is made.

    Attributes:
        points: (N, 3), numbers, finite, N >= 1, any unit.
        labels: (N,) integers; or several of them by name, such as "prediction" and "truth".
        scalars: name -> (N,) finite numbers, such as the confidence. Values within [0, 1] are shown on that
            range, others between their minimum and maximum.
        legend: what labels mean: names in label order, label -> name, or a `Legend`; or one of these for
            every name of `labels`. Without one, labels are named by their number.
        title: stands above the cloud.
        show: name of the labels or scalars that are shown first; the first ones by default.
        centers: (G, 3), further points, drawn larger where the viewer asks for them: centres of patches.
        note: a line below the title.

    Raises:
        ValueError: if something has a wrong shape or length, is not finite, or a label is not in its legend.
    """

    points: Any
    labels: Any = None
    scalars: Mapping[str, Any] = field(default_factory=dict)
    legend: Any = None
    title: str = ""
    show: str = ""
    centers: Any = None
    note: str = ""
    layers: tuple[Layer, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        points = _finite_points(self.points, "points")
        layers: list[Layer] = []
        labels = self.labels
        if labels is not None and not isinstance(labels, Mapping):
            labels = {"labels": labels}
        for name, values in (labels or {}).items():
            layers.append(_label_layer(str(name), values, _legend_of(self.legend, name), len(points)))
        for name, values in self.scalars.items():
            layers.append(_scalar_layer(str(name), values, len(points)))
        names = [layer.name for layer in layers]
        if len(set(names)) != len(names):
            raise UserValueError(f"labels and scalars share a name: {line_of(sorted(names))}; rename one.")
        if self.show and self.show not in names:
            known = line_of(names) or "nothing"
            raise UserValueError(f"show={self.show!r}, but the panel has {known}.")
        centers = None if self.centers is None else _finite_points(self.centers, "centers")
        for name, value in (("points", points), ("centers", centers), ("layers", tuple(layers))):
            object.__setattr__(self, name, value)

    def showing(self, show: str, *, title: str, note: str = "") -> Panel:
        """Make a panel of the same cloud that shows another layer first; nothing is checked again.

        Raises:
            ValueError: if there are none of that name.
        """
        if show not in ("", *(layer.name for layer in self.layers)):
            raise UserValueError(f"show={show!r} is not in the panel.")
        other = copy.copy(self)
        for name, value in (("show", show), ("title", title), ("note", note)):
            object.__setattr__(other, name, value)
        return other

    def shown(self) -> Layer | None:
        """Return the layer that is shown first; None if there are none."""
        chosen = [layer for layer in self.layers if layer.name == self.show]
        return next(iter((*chosen, *self.layers)), None)

    def rgb(self) -> np.ndarray:
        """Colour the points by the layer that is shown first: (N, 3), uint8."""
        layer = self.shown()
        if layer is None:
            return np.tile(np.array(rgb(PLAIN), dtype=np.uint8), (len(self.points), 1))
        return layer.rgb()


def check_panels(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """Require at least one panel, and nothing else.

    Raises:
        ValueError: if there are none.
        TypeError: if something else stands among them.
    """
    panels = tuple(panels)
    if not panels:
        raise UserValueError("There is nothing to show: give at least one Panel.")
    for panel in panels:
        if not isinstance(panel, Panel):
            raise UserTypeError(f"{type(panel).__name__} is not a Panel; write Panel(points, ...).")
    return panels


def as_array(values: Any) -> np.ndarray:
    """Turn a tensor of any device, or anything numpy takes, into an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _finite_points(values: Any, what: str) -> np.ndarray:
    points = as_array(values)
    if points.ndim != 2 or points.shape[-1] != 3 or points.dtype.kind not in "iuf":
        raise UserValueError(f"{what} are {points.dtype} {points.shape}; expected numbers (N, 3).")
    if not len(points):
        raise UserValueError(f"{what} are empty: a cloud needs at least one point.")
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
        raise UserValueError(
            f"{bad.size} of {len(points)} {what} are not finite, the first is point {bad[0]}: "
            f"{points[bad[0]].tolist()}; remove these points."
        )
    return points


def _legend_of(legend: Any, name: Any) -> AnyLegend | None:
    """Choose the legend of one set of labels."""
    if isinstance(legend, Mapping) and legend and all(isinstance(key, str) for key in legend):
        chosen: AnyLegend | None = legend.get(name)
        return chosen
    known: AnyLegend | None = legend
    return known


def _as_legend(legend: AnyLegend) -> Legend:
    if isinstance(legend, Legend):
        return legend
    if isinstance(legend, Mapping):
        return Legend({int(label): str(name) for label, name in legend.items()})
    return Legend({label: str(name) for label, name in enumerate(legend)})


def _label_layer(name: str, values: Any, legend: AnyLegend | None, num_points: int) -> LabelLayer:
    labels = as_array(values)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    if labels.shape != (num_points,) or labels.dtype.kind not in "iu":
        raise UserValueError(
            f"{name}: labels are {labels.dtype} {labels.shape}; expected {num_points} integers, one a point."
        )
    low, high = int(labels.min()), int(labels.max())
    if high - low < 4 * MAX_LABELS:
        present = np.flatnonzero(np.bincount(labels.astype(np.int64) - low)) + low
    else:
        present = np.unique(labels)
    known = (
        Legend({int(label): f"label {label}" for label in present}) if legend is None else _as_legend(legend)
    )
    unknown = [int(label) for label in present if int(label) not in known.names]
    if unknown:
        shown = ", ".join(map(str, unknown[:8]))
        names = line_of(sorted(known.names)[:20])
        raise UserValueError(f"{name}: labels {shown} are not in the legend, which knows {names}.")
    order = sorted(known.names)
    if len(order) > MAX_LABELS:
        raise UserValueError(f"{name}: {len(order)} labels; at most {MAX_LABELS} can be shown.")
    dtype = np.uint8 if len(order) <= 256 else np.uint16
    place = np.searchsorted(
        np.array(order), np.arange(low, high + 1) if high - low < 4 * MAX_LABELS else labels
    )
    index = (place[labels.astype(np.int64) - low] if high - low < 4 * MAX_LABELS else place).astype(dtype)
    colours = tuple(known.colours.get(label) or part_colour(k) for k, label in enumerate(order))
    for colour in colours:
        rgb(colour)
    return LabelLayer(
        name=name,
        index=index,
        labels=tuple(order),
        names=tuple(str(known.names[label]) for label in order),
        colours=colours,
        ious=tuple(known.ious.get(label) for label in order),
        counts=tuple(np.bincount(index, minlength=len(order)).tolist()),
    )


def _scalar_layer(name: str, values: Any, num_points: int) -> ScalarLayer:
    numbers = as_array(values)
    if numbers.shape != (num_points,) or numbers.dtype.kind not in "iufb":
        raise UserValueError(
            f"{name}: scalars are {numbers.dtype} {numbers.shape}; expected {num_points} numbers, one for "
            "every point."
        )
    numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise UserValueError(f"{name}: {int((~np.isfinite(numbers)).sum())} scalars are not finite.")
    low, high = float(numbers.min()), float(numbers.max())
    if low >= 0.0 and high <= 1.0 and high > 0.1:
        low, high = 0.0, 1.0
    return ScalarLayer(name, numbers, low, high)
