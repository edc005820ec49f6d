"""Parsers of other libraries, run in a process of their own: nothing here is imported by the package.

`io.child` starts this file as a program, with the import path of its parent, and asks it for one file after
another. A file that crashes a library, hangs it or makes it ask for much memory ends this process only.

One request is a line of json on standard input, one answer a line of json on standard output, followed by the
bytes of the arrays that the line announces. It imports nothing of the package, so that it starts quickly; but
for `read_any`, which is the package's own reading of all formats, for files of strangers.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Found = dict[str, Any]

_CHUNK = 1 << 20  # points that are decoded at once
_LAS_PLACES = {"X", "Y", "Z"}  # whole numbers before scale and offset
_VALUES = 10_000  # that a point of a pcd file may have
_LAS_COLORS = ("red", "green", "blue")


class Refused(Exception):
    """A file that the parser does not take: what is wrong, what to do, and the kind of fault."""

    def __init__(self, problem: str, remedy: str = "get or write the file again", kind: str = "") -> None:
        super().__init__(problem)
        self.remedy, self.kind = remedy, kind


def read_las(path: str, part: str, most: int | None) -> Found:
    """Read las and laz, copc among them: coordinates as scale * number + offset, in float64.

    Dimensions that are zero everywhere are left out, but for the classification.
    """
    _check_las(path)
    import laspy

    found: Found = {}
    with laspy.open(path, read_evlrs=False) as file:
        announced = int(file.header.point_count)
        wanted = announced if most is None else min(announced, most)
        names = [name for name in file.header.point_format.dimension_names if name not in _LAS_PLACES]
        points = np.empty((wanted, 3))
        at = 0
        while at < wanted:
            chunk = file.read_points(min(_CHUNK, wanted - at))
            if not len(chunk):
                break
            rows = slice(at, at + len(chunk))
            for axis, values in enumerate((chunk.x, chunk.y, chunk.z)):
                points[rows, axis] = values
            for name in names:
                values = np.asarray(chunk[name])
                if name not in found and (values.any() or name == "classification"):
                    found[name] = np.zeros((wanted, *values.shape[1:]), values.dtype)
                if name in found:
                    found[name][rows] = values
            at = rows.stop
    if at < wanted:
        raise Refused(f"is not a complete las file: it announces {announced} points and holds {at}")
    if all(name in found for name in _LAS_COLORS):
        colors = np.stack([found.pop(name) for name in _LAS_COLORS], axis=1)
        if colors.max() < 256:
            colors = colors.astype(np.uint8)
        elif not (colors % 257).any():
            colors = (colors // 257).astype(np.uint8)
        found["colors"] = colors
    return {"points": points, **{f"field {name}": values for name, values in found.items()}}


def _check_las(path: str) -> None:
    """Compare how many records a header announces with their room; laspy would look for every one of them."""
    with open(path, "rb") as file:
        head = file.read(104)
        size = os.fstat(file.fileno()).st_size
    if len(head) < 104:
        raise Refused(f"is not a complete las file: it has {size} bytes")
    header, points, records = struct.unpack_from("<HII", head, 94)
    if header + 54 * records > min(points, size):
        raise Refused(
            f"announces {records} records of 54 bytes or more between its header of {header} bytes and its "
            f"points at byte {points}, in {size} bytes"
        )


def read_pcd(path: str, part: str, most: int | None) -> Found:
    """Read pcd of text, binary or compressed; rows of nan in a picture of depths are no measurements."""
    _check_pcd(path)
    import pypcd4

    cloud = pypcd4.PointCloud.from_path(path)
    table = np.atleast_1d(cloud.pc_data)
    meta, names = cloud.metadata, list(table.dtype.names or ())
    if len(table) != meta.points or meta.points != meta.width * meta.height:
        raise Refused(
            f"is not a complete pcd file: it announces {meta.width} x {meta.height} points, again "
            f"{meta.points}, and holds {len(table)}"
        )
    missing = [axis for axis in "xyz" if axis not in names]
    if missing:
        raise Refused(f"its points have {', '.join(names)}, expected x, y, z")
    points = np.stack([table[axis] for axis in "xyz"], axis=1)
    seen = np.isfinite(points).all(axis=1) if meta.height > 1 else np.ones(len(points), bool)
    points = points[seen][:most]
    found: Found = {"points": points}
    for name, count in zip(meta.fields, meta.count, strict=True):
        if name in "xyz" or name.startswith("#$%&~~"):  # how pypcd4 calls what only fills up a record
            continue
        parts = [name] if count == 1 else [f"{name}__{number:04d}" for number in range(count)]
        values = np.stack([table[part] for part in parts], axis=1)[seen][:most]
        if name in ("rgb", "rgba") and count == 1 and values.dtype.itemsize == 4:
            packed = np.ascontiguousarray(values[:, 0]).view(np.uint32)
            found["field colors"] = np.stack(
                [(packed >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)], 1
            )
        else:
            found[f"field {name}"] = values[:, 0] if count == 1 else values
    return found


def _check_pcd(path: str) -> None:
    """Compare what a header says with the file's size, before anything is made of it."""
    head: dict[str, list[str]] = {}
    with open(path, "rb") as file:
        for line in iter(lambda: file.readline(1 << 16), b""):
            words = line.decode("latin-1").split()
            if words and not words[0].startswith("#"):
                head[words[0].lower()] = words[1:]
            if "data" in head or len(head) > 20:
                break
        left = os.fstat(file.fileno()).st_size - file.tell()
        sizes = file.read(8)
    try:
        width = [int(word) for word in head["size"]]
        counts = [int(word) for word in head.get("count", ["1"] * len(width))]
        points, way = int(head["points"][0]), head["data"][0]
    except (KeyError, IndexError, ValueError):
        raise Refused("is not a complete pcd file: its header does not say size, points and data") from None
    lengths = {len(head.get(name, ())) for name in ("fields", "type")} | {len(width), len(counts)}
    if len(lengths) > 1 or min((*width, *counts), default=0) < 1 or sum(counts) > _VALUES or max(width) > 8:
        raise Refused("is not a complete pcd file: its header does not say one size, type and count a field")
    row = sum(size * count for size, count in zip(width, counts, strict=True))
    if way == "ascii":
        needed = 2 * sum(counts) * points
    elif way == "binary":
        needed = row * points
    else:
        packed, whole = (int.from_bytes(sizes[at : at + 4], "little") for at in (0, 4))
        if whole != row * points or whole > 300 * max(packed, 1):
            raise Refused(f"is not a complete pcd file: {packed} bytes are to become {whole}")
        needed = packed + 8
    if points < 0 or needed > left + (way == "ascii"):
        raise Refused(f"is not a complete pcd file: it announces {points} points, and {left} bytes follow")


def read_e57(path: str, part: str, most: int | None) -> Found:
    """Read the scans of an e57 file, one after another in the frame that they share, or one by its number."""
    import pye57

    with pye57.E57(path) as file:
        count = file.scan_count
        if part and not (part.isdecimal() and int(part) < count):
            raise Refused(
                f"has no scan {part!r}, it holds {count}", f"name one as #0 to #{max(count - 1, 0)}"
            )
        scans = []
        for number in [int(part)] if part else range(count):
            if not file.get_header(number).point_count:
                continue
            scan = file.read_scan(number, intensity=True, colors=True, ignore_missing_fields=True)
            held: Found = {"points": np.stack([scan[f"cartesian{axis}"] for axis in "XYZ"], axis=1)}
            if "intensity" in scan:
                held["field intensity"] = scan["intensity"]
            if all(f"color{name}" in scan for name in ("Red", "Green", "Blue")):
                held["field colors"] = np.stack(
                    [scan[f"color{name}"] for name in ("Red", "Green", "Blue")], 1
                )
            if count > 1 and not part:
                held["field scan"] = np.full(len(held["points"]), number, np.int32)
            scans.append(held)
    if not scans:
        raise Refused(f"holds no points in its {count} scans")
    shared = set.intersection(*(set(scan) for scan in scans))
    return {
        name: np.concatenate([scan[name] for scan in scans])[:most] for name in scans[0] if name in shared
    }


def read_mesh(path: str, part: str, most: int | None) -> Found:
    """Read all bodies of a mesh or scene where the scene puts them; `part` is the kind of file.

    Corners of an stl file that are equal become one vertex. What lies outside the file's folder is not read.
    """
    if part == "gltf":
        _check_gltf(path)
    import trimesh

    scene = trimesh.load_scene(path, file_type=part, process=False, maintain_order=True)
    bodies = []
    for node in scene.graph.nodes_geometry:
        place, name = scene.graph[node]
        body = scene.geometry[name]
        if isinstance(body, trimesh.Trimesh | trimesh.PointCloud):
            bodies.append(_body(body, np.asarray(place)))
    if not bodies:
        raise Refused("holds neither triangles nor points")
    starts = np.cumsum([0] + [len(body["points"]) for body in bodies])
    for body, start in zip(bodies, starts, strict=False):
        body["faces"] = body["faces"] + start
    shared = set.intersection(*(set(body) for body in bodies))
    found = {name: np.concatenate([body[name] for body in bodies]) for name in bodies[0] if name in shared}
    if len(bodies) > 1:
        found["field body"] = np.repeat(np.arange(len(bodies), dtype=np.int32), np.diff(starts))
    if part == "stl":
        found = _joined(found)
    if part == "3mf":
        scale = {"micron": 1e-3, "millimeter": 1.0, "millimeters": 1.0, "centimeter": 10.0, "meter": 1e3,
                 "inch": 25.4, "inches": 25.4, "foot": 304.8, "feet": 304.8}  # fmt: skip
        found["points"] = found["points"] * scale.get(str(scene.units or "millimeter"), 1.0)
    if not len(found["faces"]) or most is not None:
        del found["faces"]
    return {name: values if name == "faces" else values[:most] for name, values in found.items()}


def _check_gltf(path: str) -> None:
    """Look for the files with the numbers of a gltf before anything is made of it."""
    from urllib.parse import unquote

    with open(path, encoding="utf-8-sig") as file:
        held = json.load(file).get("buffers", ())
    folder = os.path.dirname(os.path.abspath(path))
    for uri in [each["uri"] for each in held if "uri" in each]:
        if not uri.startswith("data:"):
            place = os.path.normpath(os.path.join(folder, unquote(uri)))
            if not place.startswith(os.path.join(folder, "")) or not os.path.isfile(place):
                raise Refused(
                    f"keeps its numbers in another file, {uri[:80]!r}, which is not beside it",
                    "write a .glb, which holds all in one file, or bring that file too",
                )


def _body(body: Any, place: np.ndarray) -> Found:
    """Take the vertices of one body with what the file says of them, moved to its place."""
    import trimesh

    points = np.asarray(body.vertices, np.float64)
    held: Found = {
        "points": points if (place == np.eye(4)).all() else points @ place[:3, :3].T + place[:3, 3]
    }
    held["faces"] = np.empty((0, 3), np.int64)
    colors = None
    if isinstance(body, trimesh.Trimesh):
        held["faces"] = np.asarray(body.faces, np.int64).reshape(-1, 3)
        if body.visual.kind == "vertex":
            colors = body.visual.vertex_colors
        if "vertex_normals" in body._cache:  # those of the file; others would be computed here
            normals = np.asarray(body.vertex_normals, np.float64) @ np.linalg.inv(place[:3, :3])
            held["field normals"] = normals / np.maximum(
                np.linalg.norm(normals, axis=1, keepdims=True), 1e-30
            )
    elif np.shape(body.colors) == (len(points), 4):
        colors = body.colors
    if colors is not None:
        held["field colors"] = np.asarray(colors)[:, :3].astype(np.uint8)
    for name, values in getattr(body, "vertex_attributes", {}).items():
        values = np.asarray(values)
        if values.dtype.kind in "biuf" and values.shape[:1] == points.shape[:1] and values.ndim < 3:
            named = name.lstrip("_").lower()
            held[f"field {named}"] = values[:, 0] if values.shape[1:] == (1,) else values
    return held


def _joined(found: Found) -> Found:
    """Make one vertex of corners that have the same bits."""
    _, first, where = np.unique(found["points"], axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they come in the file
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return {"points": found["points"][first[order]], "faces": place[where.reshape(-1)[found["faces"]]]}


def read_any(path: str, part: str, most: int | None) -> Found:
    """Read a file of any format by the package's own readers, with the parsers above in this process too.

    A file of another format than its name says, or of more than `most` points or 4 times as many triangles,
    is refused. `part` is what would follow the name behind "#".
    """
    from pathlib import Path

    from pcl_clora.errors import MissingPackageError
    from pcl_clora.io import DataError, child, format_of, formats, read_points
    from pcl_clora.io.raw_object import is_raw_object, read_raw_object

    child.inside = parsed
    try:
        found, named = formats.recognised(Path(path)), format_of(path)
    except DataError as error:
        raise Refused(error.problem, error.remedy, "type") from None
    if found is not None and found is not named:
        suffix = found.suffixes[0]
        raise Refused(f"is a {suffix} file by its content", f"let its name end in {suffix}", "type")
    try:
        content = read_points(f"{path}#{part}" if part else path, dtype="float64")
    except DataError as error:
        raise Refused(error.problem, error.remedy) from None
    except MissingPackageError as error:
        remedy = str(error).partition(": ")[2]
        raise Refused("cannot be read here", f"tell who runs this: {remedy}", "package") from None
    count, triangles = len(content.points), 0 if content.faces is None else len(content.faces)
    if most is not None and (count > most or triangles > 4 * most):
        raise Refused(
            f"has {count:,} points and {triangles:,} triangles; at most {most:,} and {4 * most:,} are taken",
            "thin it out, or cut out the object",
            "large",
        )
    held: Found = {"points": content.points, "says": {"up": content.up}}
    if content.faces is not None:
        held["faces"] = content.faces
    if named is format_of("a.bin") and is_raw_object(path):
        held["inside"] = read_raw_object(path).mask
    return held


PARSERS: dict[str, Callable[[str, str, int | None], Found]] = {
    "any": read_any,
    "las": read_las,
    "pcd": read_pcd,
    "e57": read_e57,
    "mesh": read_mesh,
}


def answer(asked: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Parse one file under the limits of the request."""
    _limit(int(asked["memory"]), int(asked["seconds"]))
    return parsed(asked)


def parsed(asked: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Parse one file: what the line of the answer says, and the arrays that follow it."""
    try:
        found = PARSERS[asked["parser"]](asked["path"], asked["part"], asked["most"])
    except Refused as error:
        return {"problem": str(error), "remedy": error.remedy, "kind": error.kind}, []
    except MemoryError:
        return {"problem": "announces more than fits into memory", "remedy": "get the file again"}, []
    except Exception as error:
        words = " ".join(str(error).replace(asked["path"], "it").split())[:200]
        return {"error": f"{type(error).__name__}: {words}" if words else type(error).__name__}, []
    says = found.pop("says", {})
    arrays = {name: np.ascontiguousarray(values) for name, values in found.items()}
    arrays = {name: values.astype(values.dtype.newbyteorder("=")) for name, values in arrays.items()}
    said = [[name, values.dtype.str, values.shape] for name, values in arrays.items()]
    return {"arrays": said, **says}, list(arrays.values())


def _limit(memory: int, seconds: int) -> None:
    """Let requests for more memory fail, and more processor time end this process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    spent = resource.getrusage(resource.RUSAGE_SELF)
    until = int(spent.ru_utime + spent.ru_stime) + 1 + seconds
    for what, wanted in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, until)):
        most = resource.getrlimit(what)[1]
        resource.setrlimit(what, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def main() -> None:
    """Answer requests until there are no more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not stand between answers
    for line in sys.stdin.buffer:
        said, arrays = answer(json.loads(line))
        out.write(json.dumps(said).encode() + b"\n")
        for values in arrays:
            if values.size:
                out.write(values.reshape(-1).view(np.uint8).data)
        out.flush()


if __name__ == "__main__":
    main()
