"""Data that several test files look at."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mini_layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four official layouts as the shared script writes them; for tests with the marker shared_data."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
    spec = importlib.util.spec_from_file_location("make_mini_data", folder / "make_mini_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    out = tmp_path_factory.mktemp("mini")
    module.main(str(out))
    return out
