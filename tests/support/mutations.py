"""Ways to break a file, from a seed."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np


def truncate(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(random.integers(0, len(data)))]


def flip(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for at in random.integers(0, len(data), int(random.integers(1, 9))):
        changed[at] ^= int(random.integers(1, 256))
    return bytes(changed)


def flip_the_head(data: bytes, random: np.random.Generator) -> bytes:
    head = min(len(data), 256)
    return flip(data[:head], random) + data[head:]


def zero_run(data: bytes, random: np.random.Generator) -> bytes:
    at = int(random.integers(0, len(data)))
    length = int(random.integers(1, max(2, len(data) // 4)))
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def splice(data: bytes, random: np.random.Generator) -> bytes:
    low, high = sorted(int(place) for place in random.integers(0, len(data) + 1, 2))
    at = int(random.integers(0, len(data)))
    return data[:at] + data[low:high] + data[at:]


def drop(data: bytes, random: np.random.Generator) -> bytes:
    low, high = sorted(int(place) for place in random.integers(0, len(data) + 1, 2))
    return data[:low] + data[high:] if high - low < len(data) else b""


def other_size(data: bytes, random: np.random.Generator) -> bytes:
    """Write another number over one in text, or over four or eight bytes in a row."""
    value = int(random.choice([0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, 10**10, 2**62]))
    words = list(re.finditer(rb"\d+", data[: 1 << 16]))
    if words and random.random() < 0.6:
        found = words[int(random.integers(0, len(words)))]
        sign = b"-" if random.random() < 0.2 else b""
        return data[: found.start()] + sign + str(value).encode() + data[found.end() :]
    width = int(random.choice([4, 8]))
    at = int(random.integers(0, max(1, min(len(data), 4096) - width)))
    return data[:at] + (value % 256**width).to_bytes(width, "little") + data[at + width :]


def nest(data: bytes, random: np.random.Generator) -> bytes:
    """Put very deep brackets somewhere, or in place of everything."""
    mark = [b"[", b"{", b"(", b'{"a":', b"- "][int(random.integers(0, 5))]
    deep = mark * int(random.choice([200, 20_000]))
    at = int(random.integers(0, len(data)))
    return deep if random.random() < 0.3 else data[:at] + deep + data[at:]


def other_kind(data: bytes, random: np.random.Generator) -> bytes:
    """Replace a value of json or yaml by one of another kind."""
    words = list(re.finditer(rb'"[^"\n]*"|-?\d+\.?\d*|true|false|null', data[: 1 << 16]))
    new = [b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"NaN", b"true", b"9" * 5000][
        int(random.integers(0, 9))
    ]
    if not words:
        return new
    found = words[int(random.integers(0, len(words)))]
    return data[: found.start()] + new + data[found.end() :]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    truncate, flip, flip_the_head, zero_run, splice, drop, other_size, nest, other_kind,
)  # fmt: skip


def mutate(data: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """Break a file once: how, and the new content."""
    mutation = MUTATIONS[int(random.integers(0, len(MUTATIONS)))]
    return mutation.__name__, mutation(data, random)
