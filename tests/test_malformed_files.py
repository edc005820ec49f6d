"""Broken files of every kind are read rightly or refused, at once, and with little memory."""

import pytest

from pcl_clora.io import POINT_SUFFIXES
from tests.support.faults import ANSWER, REFUSED, break_and_read
from tests.support.file_kinds import KINDS

PACKAGES = {
    **{"las file": "laspy", "laz file": "lazrs", "copc": "lazrs", "e57 file": "pye57"},
    **dict.fromkeys(("pcd file", "pcd of text", "pcd packed"), "pypcd4"),
    **dict.fromkeys(("stl file", "glb file", "gltf file", "3mf file"), "trimesh"),
}
COUNT = 30  # of every kind; `make faults` tries more


@pytest.mark.parametrize("name", KINDS)
def test_a_broken_file_is_answered_or_refused(tmp_path, name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    harm = {
        (how, found)
        for how, found, _ in break_and_read(name, tmp_path, seed=0, count=COUNT)
        if found not in (ANSWER, REFUSED)
    }
    assert not harm


def test_every_ending_of_points_is_broken_here(tmp_path):
    endings = set()
    for number, kind in enumerate(KINDS.values()):
        (tmp_path / str(number)).mkdir()
        endings.add(kind.make(tmp_path / str(number)).suffix)
    assert set(POINT_SUFFIXES) <= endings
