"""A writer of cloud-optimised laser scans (COPC 1.0): laz by lazrs in an octree, with its two records.

The info record comes first, each node of the octree is a chunk of its own, and the hierarchy stands in an
extended record behind the points: a root that holds a sample, and the rest in the cells of the levels below.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

HEADER, RECORD, EXTENDED = (
    375,
    54,
    60,
)  # bytes of the header of LAS 1.4, of a record's head, of an extended one's


def write_copc(
    path: Path, points: np.ndarray, labels: np.ndarray | None = None, chunk: int = 1 << 16
) -> None:
    """Write points (N, 3) and classes (N,); every `chunk` points of a child go into a level of their own."""
    import laspy
    import lazrs

    header = laspy.LasHeader(version="1.4", point_format=7)
    header.scales, header.offsets = np.full(3, 1e-3), np.floor(points.min(axis=0))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = points.T
    if labels is not None:
        cloud.classification = labels
    cloud.update_header()
    packing = lazrs.LazVlr.new_for_compression(7, 0, True)
    header.vlrs.insert(0, laspy.VLR("copc", 1, "COPC info VLR", bytes(160)))
    header.vlrs.append(laspy.vlrs.known.LasZipVlr(packing.record_data()))
    header.are_points_compressed = True

    low = points.min(axis=0)
    half = max(float((points.max(axis=0) - low).max()) / 2, 1e-3) * 1.001
    center = low + half
    entries = []
    with path.open("wb+") as file:
        header.write_to(file, ensure_same_size=False)
        file.seek(0, 2)
        packer = lazrs.LasZipCompressor(file, packing)
        packer.reserve_offset_to_chunk_table()
        for key, rows in _nodes(points, center, half, chunk):
            packer.compress_many(np.frombuffer(cloud.points.array[rows].tobytes(), np.uint8))
            begin = file.tell() if not entries else entries[-1][1] + entries[-1][2]
            packer.finish_current_chunk()
            file.seek(0, 2)
            entries.append((key, begin, file.tell() - begin, len(rows)))
        packer.done()
        file.seek(0, 2)
        record = file.tell()
        page = b"".join(struct.pack("<iiiiQii", *key, *rest) for key, *rest in entries)
        file.write(struct.pack("<H16sHQ32s", 0, b"copc", 1000, len(page), b"EPT hierarchy") + page)
        info = struct.pack("<5d2Q2d", *center, half, half / 64, record + EXTENDED, len(page), 0.0, 0.0)
        file.seek(HEADER + RECORD)
        file.write(info.ljust(160, b"\0"))
        file.seek(235)
        file.write(struct.pack("<QI", record, 1))


def _nodes(points: np.ndarray, center: np.ndarray, half: float, chunk: int):
    """Give key and rows of every node: a sample in the root, then `chunk` points a cell of each level."""
    every = np.arange(len(points))
    yield (0, 0, 0, 0), every[::9]
    rest = every[every % 9 != 0]
    depth = 1
    while True:
        side = 2 * half / 2**depth
        cells = np.clip(((points[rest] - (center - half)) / side).astype(int), 0, 2**depth - 1)
        found, place = np.unique(cells, axis=0, return_inverse=True)
        place = place.reshape(-1)
        left = []
        for number, cell in enumerate(found):
            rows = rest[place == number]
            yield (depth, *(int(part) for part in cell)), rows[:chunk]
            left.append(rows[chunk:])
        rest, depth = np.concatenate(left), depth + 1
        if not len(rest):
            return
