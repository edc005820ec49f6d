"""Weights by id: downloaded once from a pinned address, kept in a cache, checked every time they are used."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_clora.io import read_json, sha256_file, write_json
from pcl_clora.io.folders import user_cache_folder
from pcl_clora.models.errors import WeightsError
from pcl_clora.models.weights.hub_catalogue import HUB_FILE, HUB_OWNER, PRETRAINED, UNKNOWN

HUB_PREFIX = "hub:"
RECORD = "record.json"
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*)(@(?P<revision>[0-9a-f]{40}))?")


@dataclass(frozen=True)
class HubFile:
    """A file of the cache.

    Attributes:
        path: where it is.
        notes: repository, revision, digest and licence, a line each.
    """

    path: Path
    notes: tuple[str, ...]


def hub_folder() -> Path:
    """Name the folder of downloaded weights: `hub` in $PCL_CLORA_CACHE, else in the user's cache folder."""
    return user_cache_folder() / "hub"


def cached_path(name: str, *, folder: Path | None = None) -> Path:
    """Name the place of a file in the cache, whether it is there or not.

    Raises:
        WeightsError: if the id is not known.
    """
    spec_id, revision = _parse(name)
    return (folder or hub_folder()) / spec_id / revision / HUB_FILE


def pinned_name(name: str) -> str:
    """Write an id with its revision: "hub:<id>@<revision>".

    Raises:
        WeightsError: if the id is not known.
    """
    return f"{HUB_PREFIX}{'@'.join(_parse(name))}"


def fetch(name: str, *, folder: Path | None = None) -> HubFile:
    """Find a file of pre-trained weights in the cache, or download it.

    The file is `<folder>/<id>/<revision>/model.safetensors`; one that was put there by hand is taken as well.
    Its SHA-256 is written down beside it when it is seen for the first time, and compared ever after. Every
    file has a record of its own, so that two processes cannot lose each other's.

    Args:
        name: "hub:<id>" with an id of `list_pretrained`, or "hub:<id>@<revision>" for any repository of the
            hub that holds one model.safetensors.
        folder: instead of `hub_folder()`.

    Raises:
        WeightsError: if the id is not known, the file is not there and cannot be downloaded (the message
            names the file and the place to put it), or the file is not the one that was recorded.
    """
    spec_id, revision = _parse(name)
    path = cached_path(name, folder=folder)
    place = path.parent
    how = "put there by hand"
    if not path.is_file():
        _download(spec_id, revision, place)
        how = "downloaded"
    digest = _check(spec_id, revision, place, how)
    spec = PRETRAINED.get(spec_id)
    licence = f"{spec.licence} (of the authors' code repository)" if spec else UNKNOWN
    notes = (
        f"from {HUB_OWNER}/{spec_id} at revision {revision}",
        f"file {path}, sha256 {digest}",
        f"licence: {licence}" + (f"; {spec.paper}" if spec else ""),
    )
    return HubFile(path, notes)


def _parse(name: str) -> tuple[str, str]:
    """Split a name into (id, revision)."""
    fits = _ID.fullmatch(name.removeprefix(HUB_PREFIX))
    if fits is None:
        raise WeightsError(
            f"{name!r} is not an id; expected {HUB_PREFIX}<id> or {HUB_PREFIX}<id>@<revision>, the "
            "revision as 40 hex digits."
        )
    spec_id, revision = fits["id"], fits["revision"]
    if revision is None:
        if spec_id not in PRETRAINED:
            near = difflib.get_close_matches(spec_id, PRETRAINED, n=3, cutoff=0.4)
            raise WeightsError(
                f"{HUB_PREFIX}{spec_id} has no pinned revision here; "
                + (f"nearest ids: {', '.join(near)}. " if near else "")
                + f"list_pretrained() lists all; {HUB_PREFIX}{spec_id}@<revision> names any other."
            )
        revision = PRETRAINED[spec_id].revision
    return spec_id, revision


def _download(spec_id: str, revision: str, place: Path) -> None:
    """Put the file into its place, or say what to put there by hand."""
    by_hand = (
        f"Where there is no network, get {HUB_FILE} of {HUB_OWNER}/{spec_id} at revision {revision} on "
        f"another machine and put it at {place / HUB_FILE}."
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise WeightsError(
            f"{HUB_PREFIX}{spec_id} is not in the cache, and huggingface-hub is not installed to download "
            f"it: pip install 'pcl-clora[hub]'. {by_hand}"
        ) from error
    place.mkdir(parents=True, exist_ok=True)
    try:
        hf_hub_download(f"{HUB_OWNER}/{spec_id}", HUB_FILE, revision=revision, local_dir=place)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{HUB_PREFIX}{spec_id} is not in the cache and could not be downloaded "
            f"({type(error).__name__}: {(str(error) or 'no details').splitlines()[0]}). {by_hand}"
        ) from error
    if not (place / HUB_FILE).is_file():
        raise WeightsError(
            f"The download of {HUB_PREFIX}{spec_id} left no file at {place / HUB_FILE}. {by_hand}"
        )


def _check(spec_id: str, revision: str, place: Path, how: str) -> str:
    """Compare a file with its record, or record it; return its SHA-256."""
    path, record = place / HUB_FILE, place / RECORD
    digest = sha256_file(path)
    known = PRETRAINED[spec_id].sha256 if spec_id in PRETRAINED else ""
    expected = known or _recorded(record)
    if expected and digest != expected:
        raise WeightsError(
            f"{path} has SHA-256 {digest}; expected {expected}, as "
            f"{'published' if known else 'recorded when it was first used'}. The file was changed or "
            f"damaged: delete the folder {place} and load it again."
        )
    if not expected or not record.is_file():
        content: dict[str, Any] = {
            "repository": f"{HUB_OWNER}/{spec_id}",
            "revision": revision,
            "file": HUB_FILE,
            "size_bytes": path.stat().st_size,
            "sha256": digest,
            "how": how,
        }
        write_json(record, content)
    return digest


def _recorded(record: Path) -> str:
    if not record.is_file():
        return ""
    try:
        return str(read_json(record)["sha256"])
    except (ValueError, KeyError) as error:
        raise WeightsError(
            f"{record} is damaged, so that the file beside it cannot be checked; delete the folder "
            f"{record.parent} and load it again."
        ) from error
