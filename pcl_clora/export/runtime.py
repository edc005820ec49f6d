"""Run an exported model with numpy and onnxruntime alone; this file needs nothing else and may be copied.

model = Model("chairs.onnx")
probabilities = model([points])          # (N, 3) arrays of any unit -> (1, classes)
print(model.classes[probabilities[0].argmax()])

model = Model("chair_parts.onnx")        # of a part segmenter
labels, confidence = model.parts([points], "chair")[0]      # (N,) and (N,), for every point
print(model.classes[labels[0]])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

ORIGIN_DIST2 = 1e-3  # where the model was trained with points this close to the origin left out
TURNS = {  # axis of the files that points up -> (column, sign) of x, y and z
    "y": ((0, 1), (1, 1), (2, 1)),
    "-y": ((0, 1), (1, -1), (2, -1)),
    "z": ((0, 1), (2, 1), (1, -1)),
    "-z": ((0, 1), (2, -1), (1, 1)),
    "x": ((1, -1), (0, 1), (2, 1)),
    "-x": ((1, 1), (0, -1), (2, 1)),
}


def farthest_points(points: Array, count: int, skip_origin: bool = False) -> Array:
    """Choose points far apart, one after another, from the first on; ties go to the lowest index.

    Args:
        points: (N, 3), float32.
        count: how many.
        skip_origin: never choose a point within 0.0316 of the origin, except the first.

    Returns:
        (count,), int64.
    """
    x, y, z = (np.ascontiguousarray(points[:, axis], dtype=np.float32) for axis in range(3))
    nearest = np.full(len(x), 1e10 if skip_origin else np.inf, np.float32)
    if skip_origin:
        nearest[((x * x + y * y) + z * z).astype(np.float64) <= ORIGIN_DIST2] = -1.0
    chosen = np.zeros(count, np.int64)
    for place in range(1, count):
        last = chosen[place - 1]
        dx, dy, dz = x - x[last], y - y[last], z - z[last]
        np.minimum(nearest, (dx * dx + dy * dy) + dz * dz, out=nearest)
        chosen[place] = nearest.argmax()
    return chosen


def group(
    points: ArrayLike, num_groups: int, group_size: int, skip_origin: bool = False
) -> tuple[Array, Array]:
    """Cut a cloud into patches: the points nearest to points far apart.

    Args:
        points: (N, 3), float32, as the model sees them.
        num_groups: G.
        group_size: K.
        skip_origin: see `farthest_points`.

    Returns:
        center (G, 3) and neighborhood (G, K, 3), points minus their centre; float32.
    """
    cloud = np.asarray(points, np.float32)
    center = cloud[farthest_points(cloud, num_groups, skip_origin)]
    d = cloud[None] - center[:, None]
    d *= d
    nearest = np.argsort((d[..., 0] + d[..., 1]) + d[..., 2], axis=1, kind="stable")[:, :group_size]
    return center, cloud[nearest] - center[:, None]


def three_nearest(points: Array, known: Array) -> tuple[Array, Array]:
    """Find the three known points that features are carried from to every point, and their weights.

    Args:
        points: (N, 3), float32.
        known: (M, 3), float32, M >= 3.

    Returns:
        (N, 3), int64, and inverse squared distances that sum to 1, (N, 3), float32.
    """
    places, dist2 = [], []
    for part in np.array_split(points, len(points) * len(known) // 2**22 + 1):
        d = known[None] - part[:, None]
        d *= d
        apart = (d[..., 0] + d[..., 1]) + d[..., 2]
        places.append(np.argsort(apart, axis=1, kind="stable")[:, :3])
        dist2.append(np.take_along_axis(apart, places[-1], axis=1))
    inverse = np.float32(1) / (np.concatenate(dist2) + np.float32(1e-8))
    return np.concatenate(places), inverse / inverse.sum(axis=1, keepdims=True)


def nearest(points: Array, known: Array) -> Array:
    """Find the nearest known point (M, 3) of every point (N, 3): (N,), int64."""
    chunks = np.array_split(points, len(points) * len(known) // 2**22 + 1)
    found = [np.square(known[None] - part[:, None]).sum(axis=2).argmin(axis=1) for part in chunks]
    return np.concatenate(found)


def prepare(points: ArrayLike, rule: Mapping[str, Any], name: str = "") -> Array:
    """Turn, cut, move, scale and thin a cloud as the training did.

    Args:
        points: (N, 3), numbers of any unit.
        rule: "rule" of the exported file.
        name: decides which points of a large cloud are drawn.

    Returns:
        (num_points, 3), float32.
    """
    return prepare_whole(points, rule, name)[0]


def prepare_whole(points: ArrayLike, rule: Mapping[str, Any], name: str = "") -> tuple[Array, Array]:
    """Prepare a cloud; see `prepare`.

    Returns:
        What the model sees, (num_points, 3), and all points in the same frame, (N, 3); float32.
    """
    cloud = np.asarray(points)
    if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud) or not np.isfinite(cloud).all():
        raise ValueError(f"points are {cloud.shape}; expected (N, 3) finite numbers, N >= 1.")
    cloud = cloud.astype(np.float64)
    whole = np.stack([cloud[:, column] * sign for column, sign in TURNS[rule["up"]]], axis=1)
    moves = rule["frame"] == "unit_sphere"
    if moves and rule["centre_on"] == "whole":
        whole = unit_sphere(whole, whole)
    taken = whole[_choose(whole, rule, name)]
    if moves and rule["centre_on"] == "cut":
        whole, taken = unit_sphere(whole, taken), unit_sphere(taken, taken)
    seen = taken[: rule["read_points"]].astype(np.float32)
    if len(seen) > rule["num_points"]:
        seen = seen[farthest_points(seen, rule["num_points"], rule["fps"] == "pointnet2")]
    return seen, whole.astype(np.float32)


def unit_sphere(points: Array, anchor: Array) -> Array:
    """Move (N, 3) so that the mean of an anchor (M, 3) is the origin and its farthest point at distance 1."""
    mean = anchor.mean(axis=0)
    centred, of_anchor = points - mean, anchor - mean
    peak = np.abs(of_anchor).max()
    peak = peak if peak > 0 else 1.0
    radius = np.sqrt(np.square(of_anchor / peak).sum(axis=1).max())
    scaled: Array = centred / peak / (radius if radius > 0 else 1.0)
    return scaled


def _choose(points: Array, rule: Mapping[str, Any], name: str) -> Array:
    """Choose the points of a sample; those of a scan are drawn where its first ones lie in one place."""
    wanted = rule["stored_points"] or rule["read_points"]
    order, drawn = np.arange(len(points)), rule["cut"] == "random"
    if len(points) > wanted and not drawn:
        error = np.abs(points[:wanted].mean(axis=0) - points.mean(axis=0))
        drawn = bool((error > 6 * points.std(axis=0) / wanted**0.5).any())
    if drawn and len(points) != wanted:
        key = "/".join(map(str, (*rule["draw"], name)))
        digest = hashlib.sha256(key.encode()).digest()
        bits = np.random.Philox(key=int.from_bytes(digest[:16], "big"))
        numbers = bits.random_raw(len(points)) >> np.uint64(11)
        order = np.argsort(numbers, kind="stable")
    return np.resize(order, wanted)


class Model:
    """An exported classifier or part segmenter.

    Attributes:
        classes: names, in the order of the logits; of a part segmenter those of all parts.
        categories: category -> numbers of its parts; empty for a classifier.
        rule: how clouds are prepared.
        about: everything else that the file says of itself.
    """

    def __init__(self, path: object, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["pcl_clora"])
        self.classes, self.rule = self.about["classes"], self.about["rule"]
        self.categories: Mapping[str, Sequence[int]] = self.about.get("categories", {})

    def patches(self, clouds: Sequence[ArrayLike]) -> tuple[Array, Array]:
        """Prepare and cut clouds: a list of (N, 3) -> center (B, G, 3) and neighborhood (B, G, K, 3)."""
        return self._cut([prepare(cloud, self.rule) for cloud in clouds])

    def _cut(self, seen: Sequence[Array]) -> tuple[Array, Array]:
        sizes = self.about["num_groups"], self.about["group_size"], self.about["skip_origin"]
        center, neighborhood = zip(*[group(cloud, *sizes) for cloud in seen], strict=True)
        return np.stack(center), np.stack(neighborhood)

    def inputs(self, seen: Sequence[Array], category: str = "") -> dict[str, Array]:
        """Make the inputs of the graph of prepared clouds, a list of (num_points, 3)."""
        center, neighborhood = self._cut(seen)
        given = {"center": center, "neighborhood": neighborhood}
        if not self.categories:
            return given
        given["points"] = np.stack(seen)
        given["category"] = np.full(len(seen), self._category(category), np.int64)
        steps = [[(cloud, at)] for cloud, at in zip(seen, center, strict=True)]
        if self.about["levels"]:
            many, few = self.about["levels"]
            skip = self.about["skip_origin"]
            level = given["level"] = np.stack([cloud[farthest_points(cloud, many, skip)] for cloud in seen])
            steps = [
                [(cloud, chosen), (chosen, at), (chosen[:few], at)]
                for cloud, chosen, at in zip(seen, level, center, strict=True)
            ]
        pairs = [[three_nearest(*step) for step in of_one] for of_one in steps]
        for place, name in enumerate(("near", "weight")):
            given[name] = np.stack([np.concatenate([pair[place] for pair in of_one]) for of_one in pairs])
        return given

    def _category(self, name: str) -> int:
        known = list(self.categories)
        if name not in known and (name or len(known) > 1):
            raise ValueError(f"category {name!r} is not known; give one of {', '.join(known)}.")
        return known.index(name) if name else 0

    def logits(self, clouds: Sequence[ArrayLike], category: str = "") -> Array:
        """Ask the network: a list of (N, 3) -> logits (B, classes), or (B, num_points, parts)."""
        seen = [prepare(cloud, self.rule) for cloud in clouds]
        found: Array = self.session.run(None, self.inputs(seen, category))[0]
        return found

    def __call__(self, clouds: Sequence[ArrayLike]) -> Array:
        """Classify clouds: a list of (N, 3) -> probabilities (B, classes)."""
        if self.categories:
            raise ValueError("this model labels the parts of clouds; call model.parts(clouds, category).")
        return _shares(self.logits(clouds))

    def parts(self, clouds: Sequence[ArrayLike], category: str = "") -> list[tuple[Array, Array]]:
        """Label every point of clouds.

        Args:
            clouds: a list of (N, 3).
            category: what they show; may be left out where the model knows one only.

        Returns:
            For every cloud the part of each of its points, (N,), int64, a place in `classes`, and its
            probability among the parts of the category, (N,).
        """
        if not self.categories:
            raise ValueError("this model classifies whole clouds; call model(clouds).")
        allowed = np.asarray(self.categories[list(self.categories)[self._category(category)]])
        pairs = [prepare_whole(cloud, self.rule) for cloud in clouds]
        logits: Array = self.session.run(None, self.inputs([seen for seen, _ in pairs], category))[0]
        said = []
        for (seen, whole), row in zip(pairs, logits, strict=True):
            shares = _shares(row[:, allowed])[nearest(whole, seen)]
            said.append((allowed[shares.argmax(axis=1)], shares.max(axis=1)))
        return said


def _shares(logits: Array) -> Array:
    """Turn logits (..., C) into probabilities, float64."""
    risen = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: Array = risen / risen.sum(axis=-1, keepdims=True)
    return shares
