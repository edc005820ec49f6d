"""What the tests of the engine share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files live for the length of a test, so nothing has to reach the platter."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
