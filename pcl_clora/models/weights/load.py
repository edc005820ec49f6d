"""Load weights safely and say exactly what was loaded: matched, missing, unexpected, and why.

The tables stand elsewhere: `_containers.py`, `_left_out.py`, `_hub_names.py` and the models' `official_keys`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcl_clora.io import sha256_file
from pcl_clora.io.text import visible
from pcl_clora.models.errors import WeightsError
from pcl_clora.models.interface import adopt_settings
from pcl_clora.models.key_map import LeftOut
from pcl_clora.models.weights._containers import Checkpoint, read_state_dict
from pcl_clora.models.weights._identify import TRAINED_WITH, trained_with
from pcl_clora.models.weights._match import Match, advice, count_not_finite, match, names_of_parts
from pcl_clora.models.weights._naming import native_name
from pcl_clora.models.weights._sources import (
    Source,
    missing_source,
    open_source,
    pinned,
    register_run_reader,
    source_file,
)
from pcl_clora.models.weights._target import Target, target_of

__all__ = [
    "TRAINED_WITH",
    "LoadReport",
    "WeightsError",
    "load_weights",
    "missing_source",
    "native_name",
    "preview",
    "read_state_dict",
    "register_run_reader",
    "source_file",
]

_log = logging.getLogger("pcl_clora")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        source: the file, run folder or id, or "state dict".
        container: the entry of the file that held the weights, "" for a plain state dict.
        matched: names of the model that were filled.
        missing: names of the model that keep their values.
        unexpected: key of the file -> why it was left out.
        holds: what the file is, in words.
        naming: how its keys are called: "official", "hub" or "native".
        cast: types of the file that were turned into the model's, with the number of tensors.
        notes: where it comes from, a line each.
        given: what was given as the source, with the revision of an id; "" for a state dict.
        partial: whether tensors of the backbone were allowed to keep their values.
        tuned: those of the backbone's learned tokens that were filled from a file of the active adapter's
            method; pre-trained weights do not have them.
    """

    source: str
    container: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: Mapping[str, LeftOut] = field(default_factory=dict)
    holds: str = ""
    naming: str = "official"
    cast: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    given: str = ""
    partial: bool = False
    tuned: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """Say it so that an adapter file can name the weights it stands on; empty for a state dict.

        Returns:
            "source": "builtin", "hub:<id>@<revision>" or a path as it was given; "sha256" of its file, of a
            run that of its adapter file; "partial" if it left tensors of the backbone unfilled.
        """
        if not self.given:
            return {}
        file = source_file(self.given, self.source)
        digest = {} if file is None or not file.is_file() else {"sha256": sha256_file(file)}
        return {"source": self.given, **digest, **({"partial": True} if self.partial else {})}

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {len(self.matched)} matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected"
            + (f" (weights under {self.container!r})" if self.container else "")
        ]
        lines += [f"  {note}" for note in self.notes]
        if self.holds:
            lines.append(f"  holds: {self.holds}; {self.naming} names")
        lines += [f"  {count} tensors cast from {kind}" for kind, count in self.cast.items()]
        lines += _grouped("missing, keep their values", self.missing)
        for reason in sorted(set(self.unexpected.values())):
            lines += _grouped(f"left out, {reason}", [k for k, r in self.unexpected.items() if r == reason])
        return "\n".join(map(visible, lines))


def _grouped(title: str, names: Iterable[str]) -> list[str]:
    """One line with the first parts of the names and how often each occurs."""
    counts = Counter(name.removeprefix("module.").split(".")[0] for name in names)
    if not counts:
        return []
    return [f"  {title}: " + ", ".join(f"{top} ({n})" for top, n in sorted(counts.items()))]


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, allow_partial: bool = False
) -> LoadReport:
    """Fill a model from an official, hub or own file, and report every name.

    Half and double precision are cast to the model's dtype; a convolution of kernel size 1 fills a linear
    layer. A head for another number of classes is left out as a whole. Missing head and class tokens are
    normal for pre-trained files. One tensor of a safetensors file is in memory at a time. Official weights
    bring the rule by which their patches were chosen (`fps_compat`) to a model whose settings leave it open.

    A file of the active adapter's method, released or ours, fills the whole network: backbone, what the
    method added, and the adapter's own head and tokens. Of any other file the backbone's own tensors below
    the adapter are filled: parts that the active adapter has copies of (its head, class tokens, ...) keep the
    adapter's values while it is active, which the report and the log say.

    Args:
        model: a model of `create_model`, or an adapted one.
        source: path of a weights file; folder of a finished run; "hub:<id>", see `list_pretrained`;
            "builtin", those in the package; or a state dict, also inside one of the known containers.
        allow_partial: accept a file that leaves tensors of the backbone unfilled, or that has more blocks.

    Returns:
        The report; print it.

    Raises:
        WeightsError: if nothing matches, a backbone tensor is missing (unless allow_partial), a shape
            differs, a value is nan, infinite or too large for the model's dtype, or the file is refused (see
            `open_source`). The model is then unchanged.
        AdapterStateError: if an adapter is merged into the model.
    """
    target, opened, matched = _match(model, source, allow_partial)
    _refuse_values(target, opened, matched)
    own, tensors = target.tensors, opened.checkpoint.tensors
    with torch.no_grad():
        for name, key in matched.found.items():
            own[name].copy_(tensors[key].reshape(own[name].shape))
    given = "" if isinstance(source, Mapping) else pinned(str(source))
    report = replace(_report(target, opened, matched), given=given, partial=allow_partial)
    target.model.__dict__["load_report"] = report  # what stayed random: adapter files carry it
    if target.kept(matched.found):
        _log.warning("%s: %s.", report.source, report.notes[-1])
    recorded = trained_with(matched.identity, matched.naming, opened.checkpoint.extras)
    taken = adopt_settings(target.model, recorded, source=opened.label)
    adopted = tuple(f"{name}={value} is adopted from the weights" for name, value in taken.items())
    return replace(report, notes=report.notes + adopted)


def preview(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, allow_partial: bool = False
) -> LoadReport:
    """Report what `load_weights` would do, from names and shapes alone; the model may be on the meta device.

    Raises:
        WeightsError: as `load_weights`, except for nan and infinity.
    """
    return _report(*_match(model, source, allow_partial))


def _match(
    model: nn.Module, source: str | Path | Mapping[str, Any], allow_partial: bool
) -> tuple[Target, Source, Match]:
    """Open weights and find their places; refuse what does not fit by names and shapes."""
    opened = open_source(source, getattr(getattr(model, "base", model), "config", None))
    target = target_of(model, opened.checkpoint)
    matched = match(target, opened.checkpoint)
    _refuse_other(opened, matched)
    _refuse(target, opened.label, matched, len(opened.checkpoint.tensors), allow_partial)
    return target, opened, matched


def _report(target: Target, opened: Source, matched: Match) -> LoadReport:
    own = target.tensors
    tokens = names_of_parts(target.model, own, ("tokens",)) if target.method else set()
    return LoadReport(
        source=opened.label,
        container=opened.checkpoint.container,
        matched=tuple(name for name in own if name in matched.found),
        missing=tuple(name for name in own if name not in matched.found),
        unexpected=dict(matched.unexpected),
        holds=str(matched.identity),
        naming=matched.naming,
        cast=_casts(own, opened.checkpoint, matched),
        notes=opened.notes + _method_note(target, matched) + _copies_note(target, matched),
        tuned=tuple(name for name in matched.found if name in tokens),
    )


def _method_note(target: Target, matched: Match) -> tuple[str, ...]:
    method = matched.identity.method
    if target.method:
        return (f"backbone, head and what {target.method} added are filled: the file's whole network runs",)
    if not method:
        return ()
    return (f"what {method} added is left out: the model computes what the file's base alone computes",)


def _copies_note(target: Target, matched: Match) -> tuple[str, ...]:
    kept = target.kept(matched.found)
    if not kept:
        return ()
    shown = ", ".join(kept[:4]) + (f" and {len(kept) - 4} more" if len(kept) > 4 else "")
    return (
        f"the active adapter has copies of its own of {shown}, which keep their values; the backbone's own, "
        "which run while no adapter is active, were filled",
    )


def _casts(own: Mapping[str, Tensor], checkpoint: Checkpoint, matched: Match) -> dict[str, int]:
    kinds = Counter(
        f"{checkpoint.like(key).dtype} to {own[name].dtype}".replace("torch.", "")
        for name, key in matched.found.items()
        if checkpoint.like(key).dtype != own[name].dtype
    )
    return dict(kinds)


def _refuse_other(opened: Source, matched: Match) -> None:
    """Refuse files of other kinds, except an adapter that trained, and so holds, a whole backbone."""
    other = opened.checkpoint.other
    if other and (not matched.found or matched.needed):
        raise WeightsError(f"{opened.label} is {other.title}: {other.remedy}.")


def _refuse(target: Target, label: str, matched: Match, num_keys: int, allow_partial: bool) -> None:
    model = target.model
    if not matched.found and not matched.wrong_shape:
        keys = ", ".join(list(matched.unexpected)[:5])
        raise WeightsError(
            f"{label}: none of its {num_keys} keys belongs to this model (first keys: {keys}). "
            f"{advice(model, matched)}"
        )
    if matched.wrong_shape:
        name, text = next(iter(matched.wrong_shape.items()))
        raise WeightsError(
            f"{label}: {len(matched.wrong_shape)} tensor(s) have another shape, first {name}: {text}. "
            f"{advice(model, matched)}"
        )
    if matched.needed and not allow_partial:
        raise WeightsError(
            f"{label}: {len(matched.needed)} tensors of the backbone are not in the file (first: "
            f"{', '.join(matched.needed[:5])}); {len(matched.found)} match. {advice(model, matched)} "
            "Choose the right file, or pass allow_partial=True to keep random values there."
        )
    if matched.too_deep and not allow_partial:
        raise WeightsError(
            f"{label}: {len(matched.too_deep)} tensors are of blocks that the model does not have (first: "
            f"{matched.too_deep[0]}). {advice(model, matched)} Pass allow_partial=True to take the first "
            "blocks alone."
        )


def _refuse_values(target: Target, opened: Source, matched: Match) -> None:
    """Refuse what cannot be cast, and nan or infinity in what would be loaded; reads each tensor once."""
    own, checkpoint = target.tensors, opened.checkpoint
    for name, key in matched.found.items():
        like = checkpoint.like(key)
        kind = like.dtype
        if like.layout is not torch.strided:
            raise WeightsError(f"{opened.label}: {key} is {like.layout}; save its to_dense() instead.")
        if own[name].is_floating_point() and not kind.is_floating_point:
            raise WeightsError(
                f"{opened.label}: {key} holds {kind} where the model has {own[name].dtype}; quantised files "
                "are not supported, take the file in full or half precision."
            )
    bad: dict[str, int] = {}
    for name, key in matched.found.items():
        tensor = checkpoint.tensors[key]
        if tensor.is_meta or own[name].is_meta:
            where = "file" if tensor.is_meta else "model"
            raise WeightsError(
                f"{opened.label}: {name} has no values in the {where} (device meta); make the model on a "
                "real device, and give tensors with values."
            )
        if count := count_not_finite(tensor):
            bad[key] = count
        elif count_not_finite(tensor.to(own[name].dtype)):
            raise WeightsError(
                f"{opened.label}: {key} ({tensor.dtype}) holds values up to {float(tensor.abs().max()):g}, "
                f"which {own[name].dtype} of the model cannot hold; load into a model of a wider type."
            )
    if bad:
        key, count = next(iter(bad.items()))
        raise WeightsError(
            f"{opened.label}: {len(bad)} tensor(s) hold nan or infinity, first {key} ({count} of "
            f"{checkpoint.like(key).numel()} values). Its training diverged or the file is damaged; take "
            "another checkpoint."
        )
