"""Adapters by name of a hub, and folders that hold one: the file, and a card that says what it is."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcl_clora.adapters.card import make_card
from pcl_clora.adapters.files import AdapterFileError, AdapterHeader, read_header
from pcl_clora.errors import MissingPackageError, PclCloraError, UserValueError
from pcl_clora.io import atomic_write, explained, load_tensors, write_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_PREFIX = "hub:"
FILE, CARD = "adapter.safetensors", "README.md"
NOVELTY = ".novelty.safetensors"  # ending of the file beside an adapter that says what is unlike its training
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


class HubError(PclCloraError, RuntimeError):
    """A hub that does not answer, or does not have what was asked for."""


def find_adapter(source: str | Path) -> Path:
    """Find the file of an adapter.

    Args:
        source: the file; a folder that holds `adapter.safetensors`; or "hub:user/name", with "@revision" (a
            commit, tag or branch) to pin it.

    Raises:
        AdapterFileError: if a folder holds none.
        HubError: if the hub does not have it.
        UserValueError: if a name of the hub is none.
    """
    if str(source).startswith(HUB_PREFIX):
        return _download(str(source))
    path = Path(source)
    return path / FILE if path.is_dir() and (path / FILE).is_file() else path


def write_folder(file: str | Path, folder: str | Path, *, name: str = "", picture: str | Path = "") -> Path:
    """Write the folder that is shared: the adapter file, its card, a picture, its novelty score.

    Args:
        file: the adapter file.
        folder: where to; missing folders are made.
        name: title of the card; the folder's name by default.
        picture: a png for the card.

    Returns:
        The folder.

    Raises:
        AdapterFileError: if the file is no adapter.
    """
    file, folder = Path(file), Path(folder)
    header = read_header(file)
    with explained(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE).exists() or not file.samefile(folder / FILE):
        atomic_write(folder / FILE, lambda aside: _copy(file, aside))
    shown = ""
    if picture:
        shown = f"figures{Path(picture).suffix}"
        atomic_write(folder / shown, lambda aside: _copy(Path(picture), aside))
    novelty = _novelty(file, header)
    if novelty and file.with_suffix(NOVELTY).resolve() != (folder / FILE).with_suffix(NOVELTY).resolve():
        atomic_write(
            (folder / FILE).with_suffix(NOVELTY), lambda aside: _copy(file.with_suffix(NOVELTY), aside)
        )
    card = make_card(
        header,
        name=name or folder.resolve().name,
        file_bytes=file.stat().st_size,
        picture=shown,
        novelty=novelty,
    )
    write_text(folder / CARD, card)
    return folder


def _novelty(file: Path, header: AdapterHeader) -> dict[str, Any]:
    """Read what the novelty score beside a file says of itself; nothing if there is none of these weights."""
    beside = file.with_suffix(NOVELTY)
    if not beside.is_file():
        return {}
    said = load_tensors(beside)[1]
    return dict(said) if said.get("adapter_sha256") == header.tensors_sha256 else {}


def push(folder: str | Path, repo: str, *, private: bool = False, message: str = "") -> str:
    """Upload a folder of `write_folder` to the hub.

    Args:
        folder: the folder.
        repo: "user/name"; made where it is not there.
        private: of a new one.
        message: of the commit.

    Returns:
        "hub:user/name@commit", which loads just this.

    Raises:
        HubError: if the hub refuses; the message has its reason.
        MissingPackageError: if huggingface-hub is not installed.
    """
    repo, _ = _parse(repo)
    api = _api()
    with explained(folder, "read"):
        if not (Path(folder) / FILE).is_file():
            raise AdapterFileError(folder, f"holds no {FILE}", "make it with `pcl-clora adapters card`")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message=message or "Adapter of pcl_clora"
        )
    except Exception as error:
        raise HubError(
            f"{repo} could not be written: {type(error).__name__}: {error}. Log in with `hf auth login`, or "
            "share the folder itself: load_adapter() takes it."
        ) from error
    return f"{HUB_PREFIX}{repo}@{commit.oid}"


def push_adapter(file: str | Path, repo: str, *, private: bool = False, picture: str | Path = "") -> str:
    """Write card and file of an adapter to a temporary folder, and upload it; see `push`."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(file, folder, name=_parse(repo)[0].partition("/")[2], picture=picture)
        return push(folder, repo, private=private)


def _download(name: str) -> Path:
    repo, revision = _parse(name)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise _missing() from error
    try:
        file = Path(hf_hub_download(repo, FILE, revision=revision))
    except Exception as error:
        raise HubError(
            f"{name} could not be had: {type(error).__name__}: {error}. Without network, get {FILE} of "
            f"{repo} on another machine and give its path."
        ) from error
    with contextlib.suppress(Exception):  # many have none; it lands beside the adapter
        hf_hub_download(repo, Path(FILE).with_suffix(NOVELTY).name, revision=revision)
    return file


def name_of(source: str | Path) -> str:
    """Name an adapter of the hub, or of a shared folder: the repository's last part, or the folder's."""
    if str(source).startswith(HUB_PREFIX):
        return _parse(str(source))[0].partition("/")[2]
    return Path(source).resolve().name


def _parse(name: str) -> tuple[str, str | None]:
    fits = _ID.fullmatch(name.removeprefix(HUB_PREFIX))
    if fits is None:
        raise UserValueError(
            f"{name!r} names no adapter of the hub; write {HUB_PREFIX}user/name, or "
            f"{HUB_PREFIX}user/name@revision."
        )
    return fits["repo"], fits["revision"]


def _api() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise _missing() from error
    return HfApi()


def _missing() -> MissingPackageError:
    return MissingPackageError(
        "Adapters of the hub need huggingface-hub, which is not installed: pip install 'pcl-clora[hub]'."
    )


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
