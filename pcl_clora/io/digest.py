"""One way to name tensors by what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_tensors(tensors: Mapping[str, Tensor], *, text: str = "", mark: str = "\n") -> str:
    r"""Return the SHA-256 over name, dtype, shape and bytes of tensors, in the order of their names.

    Args:
        tensors: the tensors by name, on any device and of any layout.
        text: what is digested before them.
        mark: what ends a tensor's description; "\n" in adapter files, ";" in checkpoints.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}{mark}".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
