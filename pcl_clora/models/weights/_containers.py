"""Read weights files of strangers: nothing is unpickled freely, no tensor is read before it is needed.

A file is a safetensors file, or what torch.save wrote with the weights at the top level or under one of the
entries that the published training loops use. The content decides, not the suffix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pcl_clora.models.errors import WeightsError
from pcl_clora.models.weights._other_files import (
    OtherFile,
    describe_folder,
    other_file,
    refuse_other_content,
)
from pcl_clora.models.weights._safetensors_file import SafetensorsFile
from pcl_clora.models.weights._torch_file import Refused, plain, read_torch_file

# Entries of torch files that hold the weights -> who writes them.
CONTAINERS: dict[str, str] = {
    "base_model": "classification and pre-training loops of the Point-MAE family",
    "model_state_dict": "part segmentation loops of the Point-MAE family",
    "model": "common habit; the published --test options take it first",
    "state_dict": "common habit; ACT's own teacher",
}
MAX_SHARING = 1000  # tensors may share memory; together they are not larger than this many times the file


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file, and what stands beside them.

    Attributes:
        source: the file, or "state dict".
        container: the entry that held the tensors, "" for the top level.
        tensors: key -> tensor; of a safetensors file each is read when it is asked for.
        extras: names of what else the file holds -> its value if it is a number or text, otherwise its type.
        other: what the file is if not the weights of a network; None for those.
    """

    source: str
    container: str
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Any] = field(default_factory=dict)
    other: OtherFile | None = None

    def like(self, key: str) -> Tensor:
        """Return the tensor or one of its shape and type without content, whatever costs nothing."""
        return self.tensors.like(key) if isinstance(self.tensors, SafetensorsFile) else self.tensors[key]


def open_checkpoint(source: str | Path | Mapping[str, Any]) -> Checkpoint:
    """Open a weights file without running code from it, or take the content of one.

    Args:
        source: path of a file, or a mapping: a state dict or the content of a torch file.

    Raises:
        WeightsError: if the file is missing, damaged, something else, wants to run code, or holds no tensors.
    """
    if isinstance(source, Mapping):
        return _unpack(source, "state dict")
    path = Path(source)
    try:
        if path.is_dir():
            raise WeightsError(describe_folder(path))
        if path.exists() and not path.is_file():
            raise WeightsError(f"{path} is a device or a pipe; expected a weights file.")
        if not path.is_file():
            raise WeightsError(f"Weights file {path} does not exist; check the path.")
        with path.open("rb") as file:
            start = file.read(512)
        refuse_other_content(path, start)
        if start[8:9] == b"{" or path.suffix == ".safetensors":
            tensors = SafetensorsFile(path)
            if not tensors:
                raise WeightsError(f"{path} holds no tensors.")
            return Checkpoint(
                str(path), "", tensors, dict(tensors.metadata), other_file(list(tensors), tensors.metadata)
            )
        content = read_torch_file(path)
    except Refused as error:
        raise WeightsError(f"{path} {error}.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{source} cannot be read ({error}); check its name and rights.") from error
    checkpoint = _unpack(content, str(path))
    size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    if size > MAX_SHARING * path.stat().st_size:
        raise WeightsError(
            f"{path} has {path.stat().st_size:,} bytes and tensors of {size:,} that share them; get it again."
        )
    return checkpoint


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a weights file without running code from it.

    Args:
        path: a .safetensors file, or a file of torch.save with one of the known containers or a plain state
            dict.

    Returns:
        (key -> tensor, name of the container or "").

    Raises:
        WeightsError: if the file is missing, damaged, wants to run code, or holds no tensors.
    """
    checkpoint = open_checkpoint(path)
    return {key: checkpoint.tensors[key] for key in checkpoint.tensors}, checkpoint.container


def _unpack(content: object, source: str) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{source} holds a {type(content).__name__}; expected a mapping with a state dict."
        )
    for container in CONTAINERS:
        inner = content.get(container)
        if isinstance(inner, Mapping):
            extras = {str(key): plain(value) for key, value in content.items() if key != container}
            return Checkpoint(source, container, _tensors(inner, source), extras)
    extras = {str(key): plain(value) for key, value in content.items() if not isinstance(value, Tensor)}
    other = other_file((), extras)
    if other:
        raise WeightsError(f"{source} is {other.title}; {other.remedy}.")
    return Checkpoint(source, "", _tensors(content, source), extras)


def _tensors(mapping: Mapping[Any, object], source: str) -> dict[str, Tensor]:
    tensors = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{source} holds no tensors at the top level or under {', '.join(CONTAINERS)}; found: "
            f"{', '.join(str(key)[:100] for key in list(mapping)[:10]) or 'nothing'}."
        )
    return tensors
