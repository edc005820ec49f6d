"""Files of every method, as they were written first, must load for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pcl_clora.adapters import list_adapters, load_adapter, read_adapter
from tests.support.kept_files import FOLDER, POINTS, kept, logits_of, make_base


def test_every_method_has_a_file_that_is_kept() -> None:
    assert kept() == list_adapters()


@pytest.mark.parametrize("name", kept())
def test_a_kept_file_gives_the_logits_that_it_gave(name: str) -> None:
    model = load_adapter(FOLDER / f"{name}.safetensors", make_base())

    # another processor may add in another order
    torch.testing.assert_close(model(POINTS), logits_of(name), rtol=1e-4, atol=1e-4)
    assert read_adapter(FOLDER / f"{name}.safetensors")[0].extra == {"seed": 3}
    assert model.config.method == name


@pytest.mark.parametrize("name", kept())
def test_a_kept_file_written_again_has_the_same_names_and_bits(name: str, tmp_path: Path) -> None:
    old = load_file(FOLDER / f"{name}.safetensors")

    load_adapter(FOLDER / f"{name}.safetensors", make_base(), "again").save_adapter(
        tmp_path / "a.safetensors"
    )

    new = load_file(tmp_path / "a.safetensors")
    assert new.keys() == old.keys()
    assert all(torch.equal(new[key], old[key]) for key in old)
