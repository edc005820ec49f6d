"""Randomness under control: seeds by name, deterministic algorithms, all generators saved and set."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pcl_clora.data.loader import derive_seed

logger = logging.getLogger("pcl_clora")


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded_apart(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block; the caller's numbers go on as if nothing had been drawn.

    Models are built on the CPU, so that generators of GPUs are not touched.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def make_generator(*parts: int | str) -> torch.Generator:
    """Make a CPU generator for one purpose, for example (seed, "augment", epoch, batch)."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def deterministic_mode(enabled: bool = True) -> Iterator[None]:
    """Let torch use only algorithms that give the same bits every time; the old state comes back afterwards.

    An operation that has no such algorithm raises. On a GPU the BLAS workspace is fixed as well, which works
    only if no matrix product ran before.
    """
    if not enabled:
        yield
        return
    memory: Any = torch.utils.deterministic
    before = (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode(
        "error"
    )  # as use_deterministic_algorithms, without importing a compiler
    torch.backends.cudnn.benchmark = False
    memory.fill_uninitialized_memory = False  # a tenth of a step, and no code here reads such memory
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]
        memory.fill_uninitialized_memory = before[2]


def capture_rng_state() -> dict[str, Any]:
    """Take the state of the global generators: python, numpy, torch and every GPU.

    Returns:
        A tree of plain values and tensors that `restore_rng_state` takes.
    """
    numpy = np.random.get_state(legacy=False)
    version, internal, gauss = random.getstate()
    return {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": {
            "kind": numpy["bit_generator"],
            "keys": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "cached": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to a state of `capture_rng_state`.

    States of GPUs that are not here are left out, and GPUs that were not there keep theirs: with a warning.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    known, here = list(state["cuda"]), torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number, one in enumerate(known[:here]):
        torch.cuda.set_rng_state(one, number)
    if len(known) != here:
        logger.warning(
            "The run began where torch saw %d GPUs and goes on where it sees %d: generators of the others "
            "cannot be set, so that what is drawn on them (dropout, masks) differs. Remedy: go on with %d "
            "GPUs (CUDA_VISIBLE_DEVICES); a run on the CPU is not concerned.",
            len(known),
            here,
            len(known),
        )
