from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.ops_backends import BACKENDS

GOLDEN_FILE = Path(__file__).parents[1] / "golden" / "ops_pointnet2.npz"


@pytest.fixture(params=BACKENDS)
def backend(request):
    """A backend, in use for the test."""
    with request.param.in_use() as chosen:
        yield chosen


@pytest.fixture(scope="session")
def golden_ops():
    """The golden arrays of the published CUDA ops, as tensors; scalars are numbers."""
    with np.load(GOLDEN_FILE) as arrays:
        return {
            name: torch.from_numpy(arrays[name]) if arrays[name].ndim else arrays[name].item()
            for name in arrays.files
        }
