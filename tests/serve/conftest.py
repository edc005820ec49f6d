"""A server in this process, on two tiny runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcl_clora.predict import load_several
from tests.vis.conftest import classification_run, segmentation_run

__all__ = ["classification_run", "segmentation_run"]


@pytest.fixture(scope="session")
def predictors(classification_run: Path, segmentation_run: Path) -> list[Any]:
    pytest.importorskip("fastapi")
    return load_several([classification_run, segmentation_run], device="cpu")


@pytest.fixture(scope="session")
def make_client(predictors: list[Any]) -> Iterator[Callable[..., Any]]:
    """Make a client of a server with its own limits; one for the same limits."""
    testing = pytest.importorskip("fastapi.testclient")
    from pcl_clora.serve import ServeSettings, make_app

    opened: dict[str, Any] = {}

    def make(**limits: Any) -> Any:
        key = repr(sorted(limits.items()))
        if key not in opened:
            settings = ServeSettings(**{"app": False, "readers": 1, **limits})
            client = testing.TestClient(
                make_app(predictors, settings), base_url="http://127.0.0.1", raise_server_exceptions=False
            )
            opened[key] = client.__enter__()
        return opened[key]

    yield make
    for client in opened.values():
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., Any]) -> Any:
    return make_client()


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 3))
