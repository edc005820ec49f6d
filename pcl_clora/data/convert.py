"""A file of points as a file of another format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcl_clora.data.frame import UNITS, guess_up, scale_between, turn
from pcl_clora.data.surface import sample_surface
from pcl_clora.errors import UserValueError
from pcl_clora.io import PointFile, format_of, read_points, refuse_overwriting_inputs, write_points
from pcl_clora.io.fields import needs_float64
from pcl_clora.io.formats import WRITE_SUFFIXES, Axis, Format, listed
from pcl_clora.io.points import not_held


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        num_points: points, or vertices of a mesh.
        num_faces: triangles.
        fields: names of what the points carry besides.
        notes: what was lost, turned or moved, each a sentence without a full stop.
    """

    num_points: int
    num_faces: int
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    sample: int = 0,
    seed: int = 0,
    max_points: int | None = None,
    up: Axis | None = None,
    to_up: Axis | None = None,
    unit: str = "",
    to_unit: str = "",
    labels: str = "",
    dataset: str = "",
) -> Converted:
    """Read a file of points and write it in another format, with all that the other one can hold.

    A format that says which axis points up and what a coordinate measures gets it so, where the source says
    it, too; so a laser scan (z) becomes a glb (y) that stands. Coordinates that need float64 are moved by
    whole numbers to the origin where the target has float32 only. Notes say so.

    Args:
        source: any file that `read_points` takes.
        target: where to; its ending says the format.
        sample: points that are drawn from the surface of a mesh, by area; 0 keeps its vertices, and its
            triangles where the target holds them.
        seed: decides these points.
        max_points: read only the first ones.
        up: axis that points up in the source; by default what its format says, else a guess of flat scans.
        to_up: axis that points up in the target; by default what its format says, else as in the source.
        unit: of the source, "m", "mm", ...; by default what its format says.
        to_unit: of the target; by default what its format says, else as in the source.
        labels: name of the field that holds the labels.
        dataset: data set of an h5 file that holds the points.

    Raises:
        DataError: if the source cannot be read.
        UserValueError: if the target has an unknown ending or cannot hold such points at all, or an axis or a
            unit is asked for and that of the source is not known.
    """
    kind = format_of(target)
    if kind is None or kind.write is None:
        raise UserValueError(
            f"{target}: cannot write {Path(target).suffix!r}; known: {listed(WRITE_SUFFIXES)}."
        )
    refuse_overwriting_inputs([target], [source])
    content = read_points(source, max_points=max_points, labels=labels, dataset=dataset)
    notes: list[str] = []
    if sample:
        content = sample_surface(content, sample, seed)
    content = _turned(content, up, to_up, kind, notes)
    content = _scaled(content, unit, to_unit, kind, notes)
    content = _fitted(content, kind, Path(target), notes)
    write_points(target, content.points, content.fields, content.faces)
    num_faces = 0 if content.faces is None else len(content.faces)
    return Converted(len(content.points), num_faces, tuple(content.fields), tuple(notes))


def _turned(
    content: PointFile, up: Axis | None, to_up: Axis | None, kind: Format, notes: list[str]
) -> PointFile:
    """Turn a cloud where the target, or the user, wants another axis up."""
    after = to_up or kind.up or None
    before = up or content.up or None
    if after is None:
        return content if before is None else replace(content, up=before)
    if before is None and to_up:
        before = guess_up(content.points)
        if before is None:
            raise UserValueError(
                f"Which axis points up in the source is not known, and {to_up} was asked for; say it, --up z."
            )
        notes.append(
            f"{before} is taken to point up, along which the source is flattest; --up says otherwise"
        )
    if before is None or before == after:
        return content
    if not to_up:
        notes.append(f"turned, {before} points up in the source and {after} in {kind.suffixes[0]}")
    fields = dict(content.fields)
    if "normals" in fields:
        fields["normals"] = turn(fields["normals"], before, after)
    return replace(content, points=turn(content.points, before, after), fields=fields, up=after)


def _scaled(content: PointFile, unit: str, to_unit: str, kind: Format, notes: list[str]) -> PointFile:
    """Scale a cloud where the target, or the user, wants another unit."""
    before, after = unit or content.unit, to_unit or kind.unit
    if to_unit and not before:
        raise UserValueError(
            f"The unit of the source is not known, and {to_unit} was asked for; say it, --unit "
            f"{' or '.join(list(UNITS)[1:5:3])}."
        )
    if not before or not after or before == after:
        return content
    factor = scale_between(before, after)
    if not to_unit:
        notes.append(f"scaled by {factor:g}, from {before} to the {after} of {kind.suffixes[0]}")
    points = content.points * content.points.dtype.type(factor)
    return replace(content, points=points, unit=after)


def _fitted(content: PointFile, kind: Format, target: Path, notes: list[str]) -> PointFile:
    """Leave out, or move, what the target cannot hold."""
    if not kind.exact and needs_float64(content.points):
        origin = np.round(np.median(content.points, axis=0))
        where = ", ".join(f"{number:.0f}" for number in origin)
        notes.append(f"moved by -({where}), {target.suffix} has float32 only")
        content = replace(content, points=(content.points - origin).astype(np.float32), origin=origin)
    lost = not_held(kind, content.points, content.fields, content.faces)
    if kind.faces == "only" and content.faces is None:
        raise UserValueError(f"{target}: {target.suffix} holds triangles, and the source has none; use .ply.")
    if lost:
        notes.append(f"left out, {target.suffix} has no room for it: {', '.join(lost)}")
        if "triangles" in lost and content.faces is not None:
            notes.append("the points are the vertices of the mesh; --sample draws them from its surface")
    fields = {name: values for name, values in content.fields.items() if name not in lost}
    return replace(content, fields=fields, faces=None if kind.faces == "no" else content.faces)
