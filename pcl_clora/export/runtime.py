"""Run an exported model with numpy and onnxruntime alone; this file needs nothing else and may be copied.

model = Model("chairs.onnx")
probabilities = model([points])          # (N, 3) arrays of any unit -> (1, classes)
print(model.classes[probabilities[0].argmax()])
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


def prepare(points: ArrayLike, rule: Mapping[str, Any], name: str = "") -> Array:
    """Turn, cut, move, scale and thin a cloud as the training did.

    Args:
        points: (N, 3), numbers of any unit.
        rule: "rule" of the exported file.
        name: decides which points of a large cloud are drawn.

    Returns:
        (num_points, 3), float32.
    """
    cloud = np.asarray(points)
    if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud) or not np.isfinite(cloud).all():
        raise ValueError(f"points are {cloud.shape}; expected (N, 3) finite numbers, N >= 1.")
    cloud = cloud.astype(np.float64)
    cloud = np.stack([cloud[:, column] * sign for column, sign in TURNS[rule["up"]]], axis=1)
    moves = rule["frame"] == "unit_sphere"
    if moves and rule["centre_on"] == "whole":
        cloud = unit_sphere(cloud)
    cloud = cloud[_choose(cloud, rule, name)]
    if moves and rule["centre_on"] == "cut":
        cloud = unit_sphere(cloud)
    cloud = cloud[: rule["read_points"]].astype(np.float32)
    if len(cloud) > rule["num_points"]:
        cloud = cloud[farthest_points(cloud, rule["num_points"], rule["fps"] == "pointnet2")]
    return cloud


def unit_sphere(points: Array) -> Array:
    """Move the mean to the origin and the farthest point to distance 1: (N, 3) -> (N, 3), float64."""
    centred = points - points.mean(axis=0)
    peak = np.abs(centred).max()
    centred = centred / (peak if peak > 0 else 1.0)
    radius = np.sqrt(np.square(centred).sum(axis=1).max())
    scaled: Array = centred / (radius if radius > 0 else 1.0)
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
    """An exported classifier.

    Attributes:
        classes: names, in the order of the logits.
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

    def patches(self, clouds: Sequence[ArrayLike]) -> tuple[Array, Array]:
        """Prepare and cut clouds: a list of (N, 3) -> center (B, G, 3) and neighborhood (B, G, K, 3)."""
        sizes = self.about["num_groups"], self.about["group_size"], self.about["skip_origin"]
        pairs = [group(prepare(cloud, self.rule), *sizes) for cloud in clouds]
        center, neighborhood = zip(*pairs, strict=True)
        return np.stack(center), np.stack(neighborhood)

    def logits(self, clouds: Sequence[ArrayLike]) -> Array:
        """Say what the network says of clouds: a list of (N, 3) -> (B, classes)."""
        center, neighborhood = self.patches(clouds)
        found: Array = self.session.run(None, {"center": center, "neighborhood": neighborhood})[0]
        return found

    def __call__(self, clouds: Sequence[ArrayLike]) -> Array:
        """Classify clouds: a list of (N, 3) -> probabilities (B, classes)."""
        logits = self.logits(clouds).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: Array = shares / shares.sum(axis=1, keepdims=True)
        return probabilities
