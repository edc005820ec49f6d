"""The spaces that the layers of a CLoRA adapter share, and banks of them.

A bank is the spaces of a trained adapter, which adapters of further tasks use as they are.
An adapter on a bank trains its cores and its head alone, and its file holds only these. Ours: the paper
trains one task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pcl_clora.adapters.files import AdapterFileError, read_adapter
from pcl_clora.errors import UserValueError
from pcl_clora.io.digest import digest_tensors


class Spaces(nn.Module):
    """E pairs of projections that several modules share, side by side.

    Args:
        dim: d, width of a token.
        num_spaces: E.
        rank: R, width of one.
        like: gives device and dtype.
        tied: U = D^T.
        zero_up: U starts at zero.

    Attributes:
        down: D = [D_1 .. D_E], (d, E R), every D_h Xavier uniform.
        up: U = [U_1; ..; U_E], (E R, d), every U_h Xavier uniform or zero; None if U = D^T.
    """

    down: Tensor
    up: Tensor | None

    def __init__(
        self, dim: int, num_spaces: int, rank: int, *, like: Tensor, tied: bool = False, zero_up: bool = False
    ) -> None:
        super().__init__()
        width, bound = num_spaces * rank, (6 / (dim + rank)) ** 0.5
        self.down = nn.Parameter(
            torch.empty(dim, width, device=like.device, dtype=like.dtype).uniform_(-bound, bound)
        )
        self.up = None
        if not tied:
            up = torch.zeros(width, dim, device=like.device, dtype=like.dtype)
            self.up = nn.Parameter(up if zero_up else up.uniform_(-bound, bound))

    def stacked_up(self) -> Tensor:
        """Return U, (E R, d)."""
        return self.down.t() if self.up is None else self.up


class BankSpaces(Spaces):
    """Spaces of a bank: not trained, and not in the adapter's file."""

    def __init__(self, found: Mapping[str, Tensor], like: Tensor) -> None:
        nn.Module.__init__(self)
        self.register_buffer("down", found["down"].to(like), persistent=False)
        up = found.get("up")
        self.register_buffer("up", None if up is None else up.to(like), persistent=False)


SHAPING = {"rank": 8, "num_spaces": 8, "sharing": "global", "tied": False}
"""Settings that shape the spaces -> what an adapter file means that does not say them."""


class Bank(NamedTuple):
    """What an adapter file gives to others.

    Attributes:
        path: the file.
        spaces: by who shares them ("global", or "attention" and "ffn") -> "down" (d, E R), and "up" (E R, d)
            unless it is tied; on the CPU.
        digest: SHA-256 over them.
    """

    path: Path
    spaces: Mapping[str, Mapping[str, Tensor]]
    digest: str

    def digest_bytes(self) -> Tensor:
        """Return the SHA-256 as (32,) uint8."""
        return torch.tensor(list(bytes.fromhex(self.digest)), dtype=torch.uint8)

    def check_digest(self, theirs: Tensor) -> None:
        """Refuse what was trained on another bank.

        Args:
            theirs: (32,) uint8, as `digest_bytes` gives it.

        Raises:
            ValueError: naming both.
        """
        if not torch.equal(theirs.cpu(), self.digest_bytes()):
            raise UserValueError(
                f"It was trained on a bank with SHA-256 {bytes(theirs.tolist()).hex()}, but {self.path} has "
                f"{self.digest}; give the bank that it was trained on."
            )

    def take(self, key: str, dim: int, width: int) -> Mapping[str, Tensor]:
        """Return the spaces that share a name.

        Args:
            key: the name.
            dim: d, width of a token of the backbone.
            width: E R.

        Raises:
            ValueError: if there are none of this name, or they are for another width of token.
        """
        found = self.spaces.get(key)
        if found is None:
            raise UserValueError(
                f"The bank {self.path} has no spaces {key!r}, only {', '.join(self.spaces)}; give one that "
                "was trained with these settings."
            )
        if found["down"].shape != (dim, width):
            raise UserValueError(
                f"The bank {self.path} has spaces of shape {tuple(found['down'].shape)}, but this backbone "
                f"needs ({dim}, {width}); give one that was trained on this backbone."
            )
        return found


def read_bank(path: str | Path, settings: Mapping[str, Any]) -> Bank:
    """Read the spaces of an adapter file.

    Args:
        path: the file of an adapter with shared spaces.
        settings: of the adapter that is to use them.

    Raises:
        AdapterFileError: if it is no adapter file, or the adapter has no spaces of its own.
        ValueError: if its spaces have other settings; the message names both values.
    """
    header, state = read_adapter(path)
    spaces: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("method.spaces."):
            _, _, key, leaf = name.split(".")
            spaces.setdefault(key, {})[leaf] = value
    if not spaces:
        method = header.adapter.get("method")
        raise AdapterFileError(
            path,
            f"holds no shared spaces (its method is {method!r})",
            "give the file of a clora adapter that was trained with sharing and without a bank",
        )
    for setting, default in SHAPING.items():
        theirs, ours = header.adapter.get(setting, default), settings[setting]
        if theirs != ours:
            raise UserValueError(
                f"{setting}={ours!r}, but the bank {path} was trained with {theirs!r}; set "
                f"{setting}={theirs!r}."
            )
    flat = {f"{key}.{leaf}": value for key, found in spaces.items() for leaf, value in found.items()}
    return Bank(Path(path), spaces, digest_tensors(flat))


def find_bank(path: str, adapter_file: str | Path) -> str:
    """Say where the bank of an adapter file is: where the file says, or else beside the file.

    Raises:
        AdapterFileError: if it is in neither place.
    """
    beside = Path(adapter_file).parent / Path(path).name
    for place in (Path(path), beside):
        if place.is_file():
            return str(place)
    raise AdapterFileError(
        adapter_file,
        f"stands on the bank {path}, which is neither there nor beside it",
        f"put it at {beside}, or pass bank=... to load_adapter()",
    )
