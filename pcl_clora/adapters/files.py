"""Adapter files: safetensors with a header that says what the adapter is and which base it belongs to."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterStateError
from pcl_clora.adapters.paths import at_or_inside
from pcl_clora.config import Config, ConfigError, build
from pcl_clora.errors import UserValueError
from pcl_clora.io.digest import digest_tensors
from pcl_clora.io.errors import DataError
from pcl_clora.io.safe import load_tensors, save_tensors

FORMAT = "pcl_clora.adapter"
FORMAT_VERSION = 1


class AdapterFileError(DataError):
    """An adapter file that is missing, torn, foreign, too new, or made for another base."""


class AdapterHeader(Config):
    """What an adapter file says about itself: json in the entry "header" of the safetensors metadata."""

    format_version: int = FORMAT_VERSION  # raised when a reader of the old format would be wrong
    adapter: Mapping[str, Any]  # the method and its settings
    base_id: str  # what the base calls itself, for people
    base_sha256: str  # over all base tensors that are neither trained nor listed in not_in_weights
    not_in_weights: tuple[str, ...] = ()  # base tensors that its weights left random
    tensors_sha256: str = ""  # over the tensors of the file
    base_model: Mapping[str, Any] = Field(default_factory=dict)  # settings of the backbone, if it has any
    base_weights: Mapping[str, Any] = Field(default_factory=dict)  # what filled the base: source, SHA-256
    num_classes: int | None = None  # logits of the head
    head_dtype: str = "float32"  # precision the head is stored in
    classes: tuple[str, ...] = ()  # names of the classes, in the order of the logits
    parts: Mapping[str, Any] = Field(default_factory=dict)  # categories and the numbers of their parts
    input_rule: Mapping[str, Any] = Field(default_factory=dict)  # what the model sees of a cloud
    computed: Mapping[str, Any] = Field(default_factory=dict)  # precision and product of the training
    protocol: Any = ""  # how checkpoint and test points were chosen
    metrics: Mapping[str, Any] = Field(default_factory=dict)  # under that protocol, accuracies in [0, 1]
    licence: str = ""  # of these weights
    git: Any = ""  # commit of the code that made them
    extra: Mapping[str, Any] = Field(default_factory=dict)  # anything else


_FREE_FIELDS = (
    *("base_id", "base_weights", "classes", "parts", "input_rule", "computed"),
    *("protocol", "metrics", "licence", "git", "extra"),
)


def base_id(base: nn.Module) -> str:
    """Return what a backbone calls itself: the name in its settings, else its class."""
    described = getattr(base, "config", None)
    return str(getattr(described, "name", type(base).__name__))


def make_header(base: nn.Module, metadata: Mapping[str, Any], **facts: Any) -> AdapterHeader:
    """Describe an adapter.

    Args:
        base: its backbone.
        metadata: what the user says besides; keys that are no field go to `extra`.
        facts: what the adapted model knows: adapter, base_sha256, not_in_weights, num_classes, head_dtype.

    Raises:
        ConfigError: if a known key of the metadata has a value of the wrong type.
    """
    described = getattr(base, "config", None)
    free = {key: value for key, value in metadata.items() if key in _FREE_FIELDS}
    extra = {key: value for key, value in metadata.items() if key not in _FREE_FIELDS}
    values = {
        "base_id": base_id(base),
        "base_model": described.model_dump(mode="json") if isinstance(described, Config) else {},
        "base_weights": _weights_of(base),
        **facts,
        **free,
        "extra": {**free.get("extra", {}), **extra},
    }
    return build(AdapterHeader, values, source="metadata of the adapter file")


def _weights_of(base: nn.Module) -> dict[str, Any]:
    """Ask the report of what filled a backbone; nothing where it was filled by hand, or not at all."""
    ask = getattr(getattr(base, "load_report", None), "described", None)
    return {} if ask is None else dict(ask())


def hash_tensors(tensors: Mapping[str, Tensor], without: Collection[str]) -> str:
    """Return the SHA-256 over tensors, except those at or below the dotted paths in `without`."""
    return digest_tensors({name: t for name, t in tensors.items() if not at_or_inside(name, without)})


def to_half(name: str, value: Tensor) -> Tensor:
    """Cast a floating tensor to half precision.

    Raises:
        ValueError: if a finite value does not fit.
    """
    if not value.is_floating_point():
        return value
    half = value.to(torch.float16)
    if not torch.equal(half.isfinite(), value.isfinite()):
        raise UserValueError(
            f"{name} has values beyond 65504, which half precision cannot hold; use head_dtype='float32'."
        )
    return half


def write_adapter(path: str | Path, state: Mapping[str, Tensor], header: AdapterHeader) -> None:
    """Write an adapter file, whole or not at all; missing folders are made.

    Raises:
        ConfigError: if the header cannot be written as json.
    """
    # Cloned, because the format refuses tensors that share memory, as tied weights do.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    content = {"format": FORMAT, **header.model_dump(), "tensors_sha256": digest_tensors(state)}
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The metadata cannot be written as json: {error}; give finite numbers, text, lists and mappings."
        ) from error
    save_tensors(path, state, content)


def read_header(path: str | Path) -> AdapterHeader:
    """Read the header of an adapter file, and none of its tensors.

    Raises:
        AdapterFileError: if the file is missing, torn, no adapter, or of a newer format.
    """
    return open_adapter(path, header_only=True)[0]


def read_adapter(path: str | Path) -> tuple[AdapterHeader, dict[str, Tensor]]:
    """Read an adapter file: its header and its tensors on the CPU.

    Raises:
        AdapterFileError: if the file is missing, torn, no adapter, of a newer format, or if its tensors are
            not those that were written (their SHA-256, which files of earlier versions lack) or not finite.
    """
    header, state = open_adapter(path)
    check_values(path, header, state)
    return header, state


def open_adapter(path: str | Path, *, header_only: bool = False) -> tuple[AdapterHeader, dict[str, Tensor]]:
    """Read an adapter file without a look at the values of its tensors; with header_only, none of them."""
    if Path(path).is_dir():
        raise AdapterFileError(path, "is a folder", "give the file in it, of a run best/adapter.safetensors")
    try:
        state, values = load_tensors(path, header_only=header_only)
    except DataError as error:
        raise AdapterFileError(path, error.problem, _remedy(path, error.remedy)) from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise AdapterFileError(path, "is a safetensors file but no adapter of pcl_clora", _use_of(path))
    version = values.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise AdapterFileError(
            path,
            f"has format version {version}; the newest known here is {FORMAT_VERSION}",
            "update pcl_clora",
        )
    said = values.pop("normalisation", "")  # files of before `input_rule`: text that nothing reads
    if said:
        extra = values.get("extra", {})
        values["extra"] = {**extra, "normalisation": said} if isinstance(extra, dict) else extra
    try:
        return build(AdapterHeader, values, source=f"header of {path}"), state
    except (ConfigError, RecursionError) as error:
        raise AdapterFileError(
            path, f"has a wrong header ({error})", "write it with save_adapter()"
        ) from error


def check_values(path: str | Path, header: AdapterHeader, state: Mapping[str, Tensor]) -> None:
    """Check that the tensors of a file are those that were written, and finite.

    Raises:
        AdapterFileError: if not.
    """
    if header.tensors_sha256 not in ("", digest_tensors(state)):
        raise AdapterFileError(
            path, "is damaged: its tensors have another SHA-256 than its header says", "get or write it again"
        )
    try:
        refuse_non_finite(state, "It holds values that no training gives")
    except AdapterStateError as error:
        raise AdapterFileError(path, str(error).rstrip("."), "get or write it again") from error


def _use_of(path: str | Path) -> str:
    """Say what to do with a safetensors file that is no adapter."""
    with safe_open(path, framework="pt") as file:
        if "checkpoint" in (file.metadata() or {}).get("format", ""):
            return (
                "this is a checkpoint of a run: give its best/adapter.safetensors, or load_run() its folder"
            )
    return "this is a weights file: use load_weights(), or give a file that save_adapter() wrote"


def _remedy(path: str | Path, remedy: str) -> str:
    """Say what to do with a file that is no safetensors file; those of torch.save are told by their start."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(4)
    except OSError:
        return remedy
    torch_made = start.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    return "this is a weights file: use load_weights()" if torch_made else remedy


def refuse_non_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors with nan or infinity.

    Args:
        state: tensors by name.
        what: begins the message.

    Raises:
        AdapterStateError: naming the tensor, how many values, and the first.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            wrong = value[~value.isfinite()]
            raise AdapterStateError(
                f"{what}: {name} has {wrong.numel()} of {value.numel()} values that are not finite, the "
                f"first {wrong.flatten()[0].item()}. Train it again with a lower learning rate, or load an "
                "earlier file."
            )


def check_base(path: str | Path, header: AdapterHeader, found_id: str, found_sha256: str) -> None:
    """Check that an adapter was made for this base.

    Raises:
        AdapterFileError: if not; the message says both ids and hashes.
    """
    if header.base_sha256 != found_sha256:
        raise AdapterFileError(
            path,
            f"was made for base {header.base_id!r} with SHA-256 {header.base_sha256}, but this model is "
            f"{found_id!r} with SHA-256 {found_sha256}",
            "load the weights it was trained on first, or pass allow_other_base=True if you know they fit",
        )


def check_names(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Check that names, shapes and kinds of an adapter's tensors are those that the model expects.

    Raises:
        ValueError: if not; the message lists what is missing, left over or of another shape or kind.
    """
    problems = [f"missing {key}" for key in expected if key not in given]
    problems += [f"unexpected {key}" for key in given if key not in expected]
    for key in expected.keys() & given.keys():
        ours, theirs = expected[key], given[key]
        if ours.shape != theirs.shape:
            problems.append(f"{key} is {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        elif ours.is_floating_point() != theirs.is_floating_point() or theirs.is_complex():
            problems.append(f"{key} is {theirs.dtype}, expected {ours.dtype}")
    _refuse(problems)


def check_range(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Check that all values are finite in the dtypes that the model has.

    Raises:
        ValueError: if not.
    """
    _refuse(
        [
            f"{key} has values that are not finite or that {ours.dtype} cannot hold"
            for key, ours in expected.items()
            if not bool(given[key].to(ours.dtype).isfinite().all())
        ]
    )


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        listed = "; ".join(sorted(problems)[:8]) + more
        raise UserValueError(f"The adapter does not fit this model and these settings: {listed}.")
