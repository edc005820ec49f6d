"""Files that are something else than the weights of a network: each is named, with the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pcl_clora.models.errors import WeightsError

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
RUN_CONFIG = "config.yaml"
RUN_ADAPTER = "best/adapter.safetensors"

_UNPACK = "unpack it, and give the file that is inside"
_FILE = "get the file itself"
# What a file begins with when it is something else -> what it is, what to do.
_OTHER_CONTENT: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(start, re.IGNORECASE | re.DOTALL), what, remedy)
    for start, what, remedy in (
        (
            rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|\?xml)",
            "a web page: the download asked for a login or a confirmation",
            _FILE,
        ),
        (
            rb"version https://git-lfs",
            "a pointer of git-lfs",
            "run `git lfs pull`, or download the file it stands for",
        ),
        (
            rb'(\xef\xbb\xbf)?\s*\{\s*"(metadata|weight_map)"\s*:.*(weight_map|total_size)',
            "the index of weights in several files (json text)",
            "give one file that holds all tensors",
        ),
        (rb'(\xef\xbb\xbf)?\s*[\[{]\s*["{\[]', "json text, often an error message of a server", _FILE),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed file", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (
            rb"\x89HDF\r\n",
            "an HDF5 file, as data sets and Keras have them",
            "give weights of a torch network",
        ),
        (rb"\x93NUMPY", "a numpy array", "save it as a tensor with safetensors"),
        (rb"GGUF", "a GGUF file with quantised tensors", "take the file in full or half precision"),
        (rb"ply\r?\n|(ST)?C?N?OFF\s|# \.PCD", "a point cloud", "give it to `pcl-clora predict` or `view`"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF", "a picture or a document", "give the file of the weights"),
        (rb"\x7fELF|MZ", "a program", "give the file of the weights"),
        (
            rb"[\w.-]+:[ \t]*([^\x00]*\n)?[\x09\x0a\x0d\x20-\x7e]*$",
            "text, such as settings",
            "give a weights file, or the folder of a run",
        ),
    )
)


@dataclass(frozen=True)
class OtherFile:
    """What a file with tensors is, if not the weights of a network.

    Attributes:
        title: continues "it is ...".
        remedy: what to do with it.
    """

    title: str
    remedy: str


def refuse_other_content(path: Path, start: bytes) -> None:
    """Refuse a file whose first bytes are those of something else.

    Raises:
        WeightsError: which says what it is and what to do.
    """
    if not start:
        raise WeightsError(f"{path} is empty; get it again.")
    for pattern, what, remedy in _OTHER_CONTENT:
        if pattern.match(start):
            raise WeightsError(f"{path} is not a torch or safetensors file: it is {what}; {remedy}.")


def other_file(keys: Collection[str], metadata: Mapping[str, object]) -> OtherFile | None:
    """Tell what a file with tensors is, by its metadata and keys; None for weights of a network."""
    if metadata.get("format") == "pcl_clora.checkpoint":
        return OtherFile(
            "the checkpoint of a run, from which training goes on",
            "give the folder of the run, whose chosen model is taken once it is finished",
        )
    method = _adapter_method(metadata.get("header"))
    if method:
        return OtherFile(
            f"an adapter of pcl_clora ({method})",
            "use load_adapter(), which puts it on the backbone it was trained on",
        )
    if {"points", "offsets", "label"} <= set(keys):
        return OtherFile("a shard of a packed data set", "name its folder as data.root")
    if any(re.search(r"\.lora_(A|B|embedding_A)\.|\.lora_magnitude_vector", key) for key in keys):
        return OtherFile("an adapter of peft", "merge it into its base with peft, and save that state_dict")
    if {"state", "param_groups"} <= metadata.keys() or any(
        re.search(r"(^|[./])(exp_avg|exp_avg_sq|momentum_buffer)$", key) for key in keys
    ):
        return OtherFile("the state of an optimizer", "give the weights that were saved beside it")
    return None


def _adapter_method(header: object) -> str:
    """Name the method of one of our adapter files by its header, json text; "" for another file."""
    try:
        content = json.loads(header) if isinstance(header, str) else None
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict) or content.get("format") != "pcl_clora.adapter":
        return ""
    adapter = content.get("adapter")
    return str(adapter.get("method", "?"))[:50] if isinstance(adapter, dict) else "?"


def describe_folder(path: Path) -> str:
    """Say what a folder that is no run is, and what to give instead."""
    names = sorted(item.name for item in path.iterdir())
    runs = [name for name in names if (path / name / RUN_CONFIG).is_file()]
    weights = [name for name in names if name.endswith(WEIGHTS_SUFFIXES)]
    if (path.parent / RUN_CONFIG).is_file():
        found = f"part of a run; give the folder of the run, {path.parent}"
    elif runs:
        found = f"it holds {len(runs)} run(s); give one of them, such as {path / runs[0]}"
    elif weights:
        found = f"it holds {len(weights)} weights file(s); give one of them, such as {path / weights[0]}"
    else:
        found = f"it holds {', '.join(names[:5]) or 'nothing'}"
    return f"{path} is a folder; expected a weights file, or the folder of a finished run ({found})."
