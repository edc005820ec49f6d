"""Broken files of every kind are read rightly or refused, at once, and with little memory."""

import pytest

from tests.support.faults import ANSWER, REFUSED, break_and_read
from tests.support.file_kinds import KINDS

COUNT = 30  # of every kind; `make faults` tries more


@pytest.mark.parametrize("name", KINDS)
def test_a_broken_file_is_answered_or_refused(tmp_path, name):
    harm = {
        (how, found)
        for how, found, _ in break_and_read(name, tmp_path, seed=0, count=COUNT)
        if found not in (ANSWER, REFUSED)
    }
    assert not harm
