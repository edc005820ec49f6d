"""Build the backbone that an adapter file stands on, from what the file says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pcl_clora.adapters.files import AdapterFileError, AdapterHeader
from pcl_clora.engine.randomness import seeded_apart
from pcl_clora.errors import UserValueError
from pcl_clora.io import sha256_file
from pcl_clora.models import build_model, load_weights
from pcl_clora.models.registry import parse_model_config
from pcl_clora.models.weights.load import source_file

RANDOM = "random:"
NAME_THEM = (
    "name them: weights='builtin', 'hub:<id>', a weights file, the folder of a run, or 'random:SEED' for a "
    "base that was never filled"
)


def random_source(seed: int) -> str:
    """Name the weights of a base that was drawn from a seed and never filled."""
    return f"{RANDOM}{seed}"


def rebuild_base(path: str | Path, header: AdapterHeader, weights: str | Path = "") -> nn.Module:
    """Build the backbone of an adapter file and fill it.

    Args:
        path: of the file; weights that are not where they were are looked for beside it, by their name.
        header: of the file.
        weights: what to fill it with, instead of what the file says: "builtin", "hub:<id>", a weights file,
            the folder of a run, or "random:SEED".

    Returns:
        The backbone on the CPU. Whether it is the right one is for `load_adapter` to say, by its SHA-256.

    Raises:
        AdapterFileError: if the file says nothing of its backbone or its weights, or these are not there or
            others.
        WeightsError: if they cannot be loaded.
    """
    if not header.base_model:
        raise AdapterFileError(
            path,
            f"does not say how its backbone {header.base_id!r} is made",
            "make it yourself, and call load_adapter(path, model)",
        )
    said = header.base_weights
    source = str(weights) or str(said.get("source", ""))
    if not source:
        raise AdapterFileError(path, "does not say which weights it stands on", NAME_THEM)
    config = parse_model_config(dict(header.base_model))
    if source.startswith(RANDOM):
        with seeded_apart(_seed(source)):
            return build_model(config)
    if not str(weights):
        source = _checked(Path(path), source, said)
    with seeded_apart(0):  # what the weights leave random, the file carries
        model = build_model(config)
        load_weights(model, source, allow_partial=bool(said.get("partial", False)))
    return model


def _seed(source: str) -> int:
    number = source.removeprefix(RANDOM)
    if not number.isdecimal():
        raise UserValueError(f"weights={source!r}: expected a whole number, as in 'random:0'.")
    return int(number)


def _checked(path: Path, source: str, said: Any) -> str:
    """Find weights that a file names by a path, and compare their digest; ids are checked by their loader."""
    if source == "builtin" or source.startswith("hub:"):
        return source
    places = [Path(source), path.parent / source, path.parent / Path(source).name]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise AdapterFileError(
            path,
            f"stands on the weights {source}, which are not there",
            f"put them there or beside the file, or {NAME_THEM}",
        )
    wanted, file = said.get("sha256"), source_file(str(found))
    if wanted and sha256_file(file) != wanted:
        raise AdapterFileError(
            path,
            f"stands on the weights {source} with SHA-256 {wanted}; {file} is another file",
            f"get the file of that digest, or {NAME_THEM}",
        )
    return str(found)
