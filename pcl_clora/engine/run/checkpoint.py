"""Checkpoints that are whole or not there: one safetensors file with a SHA-256, written aside and renamed.

A checkpoint is a tree of dicts, lists, plain values and tensors. Tensors become tensors of the file, the rest
becomes json in its header, so nothing is ever unpickled. The digest covers both: a truncated file or a
flipped bit is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pcl_clora.engine.config import differences
from pcl_clora.errors import PclCloraError, UserTypeError
from pcl_clora.io import atomic_write, parse_json
from pcl_clora.io.digest import digest_tensors

FORMAT = "pcl_clora.checkpoint"
FORMAT_VERSION = 1
TENSOR = "$tensor"  # json stand-in for a tensor
MAPPING = "$mapping"  # json stand-in for a dict whose keys are not all strings


class CheckpointError(PclCloraError, RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save_checkpoint(path: Path, tree: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: where to, ends in .safetensors.
        tree: dicts, lists, tuples, None, bool, int, float, str and tensors, nested at will.
        identity: flat mapping of what the checkpoint belongs to (settings, base); `load_checkpoint` compares
            it.
    """
    tensors: dict[str, Tensor] = {}
    header = {"identity": dict(identity), "tree": _pack(tree, "", tensors)}
    _separate(tensors)
    text = json.dumps(header)
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "content": text,
        "sha256": digest_tensors(tensors, text=text, mark=";"),
    }
    atomic_write(path, lambda aside: save_file(tensors, aside, metadata=metadata))


def load_checkpoint(path: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint and check that it is whole and belongs here.

    Args:
        path: a file of `save_checkpoint`.
        identity: what the checkpoint must belong to; None takes any.

    Returns:
        The tree, tensors on the CPU. Tuples come back as lists.

    Raises:
        CheckpointError: if the file is missing, torn, of another format, or of another run; the message names
            the difference and the remedy.
    """
    tree, owner = read_checkpoint(path)
    if identity is not None:
        refuse_another_run(path, owner, identity)
    return tree


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint and check that it is whole: its tree, and the identity that it was saved with.

    Raises:
        CheckpointError: if the file is missing, torn or of another format.
    """
    header, tensors = _read(path)
    return cast(dict[str, Any], _unpack(header["tree"], tensors)), header["identity"]


def refuse_another_run(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of other settings.

    Args:
        path: of the checkpoint, for the message.
        before: flat mapping of what it belongs to.
        now: the same of what is to go on.

    Raises:
        CheckpointError: naming what differs.
    """
    different = differences(before, now)
    if different:
        shown = "\n  ".join(different[:20])
        more = f"\n  and {len(different) - 20} more" if len(different) > 20 else ""
        raise CheckpointError(
            f"{path} belongs to another run. Checkpoint -> now:\n  {shown}{more}\nGo back to those "
            "settings and data, choose another run folder (name=...), or start over with --resume never."
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, where the file of a checkpoint should be; move it away, or copy the file "
            "again from where it is whole."
        )
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}: the run is finished, or the file was removed. Choose another "
            "run folder (name=...), or start over with --resume never, which replaces what is there."
        )
    torn = f"{path} is damaged ({{}}): its writing or copying was cut short, or the disk changed it. "
    torn += "Delete it and start over with --resume never, or copy it again from where it is whole."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format")
                raise CheckpointError(f"{path} is not a checkpoint of a run (format {found!r}).")
            if metadata.get("version") != str(FORMAT_VERSION):
                raise CheckpointError(
                    f"{path} has checkpoint format {metadata.get('version')}, this version reads "
                    f"{FORMAT_VERSION}; finish the run with the version that began it, or start over with "
                    "--resume never."
                )
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(torn.format(error)) from error
    if digest_tensors(tensors, text=metadata.get("content", ""), mark=";") != metadata.get("sha256"):
        raise CheckpointError(torn.format("its SHA-256 is another one"))
    return parse_json(path, metadata["content"]), tensors


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor of a tree by a stand-in and collect it under its path."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {TENSOR: path}
    if isinstance(value, Mapping):
        inside = f"{path}/" if path else ""
        items = {key: _pack(item, f"{inside}{key}", tensors) for key, item in value.items()}
        return items if all(isinstance(key, str) for key in items) else {MAPPING: list(items.items())}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    raise UserTypeError(f"A checkpoint cannot hold {path!r}, a {kind}; turn it into plain values.")


def _separate(tensors: dict[str, Tensor]) -> None:
    """Copy tensors that are a part of a storage or share one, as the file format wants it."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        if not whole or storage.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(storage.data_ptr())


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        if MAPPING in value:
            return {key: _unpack(item, tensors) for key, item in value[MAPPING]}
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value
