"""Json and yaml that nest without end are errors of the package, whichever file holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pcl_clora.cli.diagnose import read_reference
from pcl_clora.data.packed.format import read_index
from pcl_clora.data.part_taxonomy import read_taxonomy
from pcl_clora.engine.run.lock import RunLock
from pcl_clora.errors import PclCloraError
from pcl_clora.models.weights.hub import RECORD, _recorded

DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "robustness of another run": ("robustness.json", read_reference),
    "index of packed data": ("index.json", lambda file: read_index(file.parent)),
    "taxonomy of parts": ("parts.yaml", read_taxonomy),
    "record of a download": (RECORD, _recorded),
}


@pytest.mark.parametrize("kind", READERS)
def test_json_without_end_is_refused(kind: str, tmp_path: Path) -> None:
    name, read = READERS[kind]
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(PclCloraError, match=name):
        read(tmp_path / name)


def test_a_lock_file_of_odd_content_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text(DEEP)
    with RunLock(tmp_path / "run"):
        assert (tmp_path / ".run.lock").stat().st_size < 1000


def test_a_category_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parts.yaml").write_text("Chair: [back, seat]\nChair: [leg]\n")
    with pytest.raises(PclCloraError, match=r"Chair"):
        read_taxonomy(tmp_path / "parts.yaml")
