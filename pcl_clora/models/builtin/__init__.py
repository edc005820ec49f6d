"""Weights that ship with the package: `weights="builtin"`, one file for a model id, its card beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pcl_clora.models.errors import WeightsError

BUILTIN = "builtin"
FOLDER = Path(__file__).parent

# Settings of a model that decide the shapes or the meaning of its tensors. The number of patches does not.
SIZES = ("embed_dim", "depth", "num_heads", "encoder_dim", "encoder_widths", "mlp_ratio", "group_size")


def list_builtin() -> dict[str, Path]:
    """List the weights in the package: model id -> file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def builtin_card(name: str) -> dict[str, Any]:
    """Read the model card of weights in the package: data, steps, time, probes, SHA-256.

    Raises:
        WeightsError: if there are no weights for this id.
    """
    file = _file(name).with_suffix(".json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content["sizes"], dict):
            raise TypeError(f"sizes={content['sizes']!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"{file} is damaged ({type(error).__name__}: {error}); install pcl-clora again."
        ) from error
    return dict(content)


def builtin_file(config: object) -> Path:
    """Find the weights in the package for a model.

    Args:
        config: settings of the model.

    Raises:
        WeightsError: if the package has none for this id or these sizes; the message says which it has.
    """
    name = str(getattr(config, "name", type(config).__name__))
    file = _file(name)
    sizes = builtin_card(name)["sizes"]
    given = {key: _plain(getattr(config, key, None)) for key in sizes}
    other = [f"{key}={given[key]} (there: {sizes[key]})" for key in sizes if given[key] != sizes[key]]
    if other:
        raise WeightsError(
            f"The weights in the package for {name} have other sizes: {', '.join(other)}. Leave these "
            f"settings out, or name a weights file instead of {BUILTIN!r}. {_what_exists()}"
        )
    return file


def only_builtin() -> Path:
    """Find the weights in the package where no model says which.

    Raises:
        WeightsError: unless there is exactly one file.
    """
    files = list_builtin()
    if len(files) != 1:
        raise WeightsError(f"{BUILTIN!r} alone does not say which weights. {_what_exists()}")
    return next(iter(files.values()))


def sizes_of(config: object) -> dict[str, Any]:
    """Pick the settings that weights depend on, as json has them."""
    return {key: _plain(getattr(config, key)) for key in SIZES}


def _file(name: str) -> Path:
    files = list_builtin()
    if name not in files:
        raise WeightsError(f"The package has no weights for {name!r}. {_what_exists()}")
    return files[name]


def _what_exists() -> str:
    listed = []
    for name in list_builtin():
        sizes = builtin_card(name)["sizes"]
        listed.append(f'create_model("{name}"): ' + ", ".join(f"{key}={sizes[key]}" for key in sizes))
    return f"In the package: {'; '.join(listed) or 'nothing'}."


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
