"""Adapters of several tasks on the spaces of one: what is trained, saved, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcl_clora.adapters import AdapterFileError, attach_adapter, load_adapter
from pcl_clora.config import ConfigError
from pcl_clora.errors import UserValueError
from pcl_clora.models import create_model
from tests.support import adapter_cases as cases

SIZES = {"method": "clora", "rank": 2, "num_spaces": 3}
FORMS = [{}, {"sharing": "per_role"}, {"tied": True}, {"sharing": "all"}, {"core": "diagonal"}]


def bank_of(folder: Path, seed: int = 3, **settings: object) -> Path:
    """The file of a trained adapter of a first task."""
    model = attach_adapter(cases.make_backbone("point_mae"), {**SIZES, **settings})
    cases.shake(model, seed=seed)
    model.save_adapter(folder / "bank.safetensors")
    return folder / "bank.safetensors"


def second_task(bank: Path, **settings: object):
    config = {**SIZES, "bank": str(bank), **settings}
    return attach_adapter(cases.make_backbone("point_mae"), config, num_classes=5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_task_on_a_bank_trains_and_saves_its_cores_and_its_head_alone(form, tmp_path):
    model = second_task(bank_of(tmp_path, **form), **form)
    before = cases.snapshot(model)
    cases.train_steps(model)
    changed = cases.changed_names(model, before)
    assert changed
    assert not any(".spaces." in name for name in changed)
    assert not any(".spaces." in name for name in model.adapter_state())
    assert {name.split(".")[-1] for name in changed if "deltas" in name} <= {"weight"}


def test_the_page_says_what_a_task_of_full_size_trains_with_and_without_its_head(tmp_path):
    first = attach_adapter(create_model("point_mae", num_classes=15), {"method": "clora"})
    first.save_adapter(tmp_path / "bank.safetensors")
    settings = {"method": "clora", "bank": str(tmp_path / "bank.safetensors")}
    second = attach_adapter(create_model("point_mae", num_classes=15), settings)
    own, task = first.parameter_counts(), second.parameter_counts()
    assert (task["adapter"], task["head"]) == (12_288, 267_535)  # the figures of the published sizes
    page = (Path(__file__).parents[2] / "docs" / "clora.md").read_text(encoding="utf-8")
    text = " ".join(page.split())
    assert f"{task['adapter']:,} numbers without head and tokens in place of {own['adapter']:,}" in text
    assert (
        f"{task['trainable']:,} with them in place of {own['trainable']:,}: a head of {task['head']:,}"
        in text
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_its_update_is_made_of_the_spaces_of_the_bank(form, tmp_path):
    bank = bank_of(tmp_path, **form)
    model = cases.shake(second_task(bank, **form))
    own = load_adapter(bank, cases.make_backbone("point_mae"))
    for key, spaces in model.method.spaces.items():
        torch.testing.assert_close(spaces.down, own.method.spaces[key].down.detach(), rtol=0, atol=0)
        torch.testing.assert_close(
            spaces.stacked_up(), own.method.spaces[key].stacked_up().detach(), rtol=0, atol=0
        )


def test_it_is_the_base_before_the_first_step(tmp_path):
    base, points = cases.make_backbone("point_mae").eval(), cases.make_points()
    wanted = base(points)
    config = {**SIZES, "bank": str(bank_of(tmp_path))}
    assert torch.equal(attach_adapter(base, config)(points), wanted)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_its_file_loads_where_the_bank_is_beside_it_or_given(form, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    bank = bank_of(first, **form)
    model = cases.shake(second_task(bank, **form)).eval()
    model.save_adapter(second / "task.safetensors")
    points, moved = cases.make_points(), bank.rename(second / "bank.safetensors")
    beside = load_adapter(second / "task.safetensors", cases.make_backbone("point_mae"))
    assert torch.equal(beside(points), model(points))
    given = moved.rename(tmp_path / "elsewhere.safetensors")
    loaded = load_adapter(second / "task.safetensors", cases.make_backbone("point_mae"), bank=given)
    assert torch.equal(loaded(points), model(points))


def test_tasks_of_one_bank_share_a_batch_and_each_merges(tmp_path):
    bank, points = bank_of(tmp_path), cases.make_points()
    model = second_task(bank)
    model = attach_adapter(model, {**SIZES, "bank": str(bank)}, "third", num_classes=5)
    cases.shake(model).eval()
    alone = {}
    for name in ("default", "third"):
        model.set_active(name)
        alone[name] = model(points)
        with model.merged():
            torch.testing.assert_close(model(points), alone[name], rtol=1e-4, atol=1e-5)
    routed = model(points, adapters=["default", "third"] * 2)
    torch.testing.assert_close(routed[::2], alone["default"][::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(routed[1::2], alone["third"][1::2], rtol=1e-4, atol=1e-5)


def test_another_bank_is_refused_by_its_digest(tmp_path):
    bank = bank_of(tmp_path)
    cases.shake(second_task(bank)).save_adapter(tmp_path / "task.safetensors")
    bank_of(tmp_path, seed=4)
    with pytest.raises(AdapterFileError, match="trained on a bank with SHA-256"):
        load_adapter(tmp_path / "task.safetensors", cases.make_backbone("point_mae"))


def test_a_bank_that_is_gone_is_named_with_the_place_to_put_it(tmp_path):
    bank = bank_of(tmp_path)
    second_task(bank).save_adapter(tmp_path / "on" / "task.safetensors")
    bank.unlink()
    with pytest.raises(AdapterFileError, match=r"bank .*, which is neither .* bank=\.\.\. to load_adapter"):
        load_adapter(tmp_path / "on" / "task.safetensors", cases.make_backbone("point_mae"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "rank=4, but the bank .* was trained with 2; set rank=2"),
        ({"num_spaces": 8}, "num_spaces=8, but the bank"),
        ({"tied": True}, "tied=True, but the bank"),
        ({"sharing": "per_role"}, "sharing='per_role', but the bank"),
        ({"sharing": "none"}, "a bank gives shared D and U"),
        ({"init": "up_zero"}, "a bank gives shared D and U"),
        ({"method": "clora_geo", "own_spaces": True}, "has no spaces 'geo', only global"),
    ],
)
def test_settings_that_do_not_fit_the_bank_change_nothing(settings, message, tmp_path):
    bank, base = bank_of(tmp_path), cases.make_backbone("point_mae")
    names = [name for name, _ in base.named_modules()]
    with pytest.raises((ConfigError, UserValueError), match=message):
        attach_adapter(base, {**SIZES, "bank": str(bank), **settings})
    assert [name for name, _ in base.named_modules()] == names


def test_a_bank_of_another_width_is_refused(tmp_path):
    with pytest.raises(UserValueError, match="this backbone needs"):
        attach_adapter(cases.make_backbone("bare"), {**SIZES, "bank": str(bank_of(tmp_path))})


def test_a_file_without_shared_spaces_is_no_bank(tmp_path):
    attach_adapter(cases.make_backbone("point_mae"), {"method": "lora"}).save_adapter(
        tmp_path / "lora.safetensors"
    )
    with pytest.raises(AdapterFileError, match="holds no shared spaces"):
        second_task(tmp_path / "lora.safetensors")


def test_bank_given_for_an_adapter_without_one_is_refused(tmp_path):
    bank = bank_of(tmp_path)
    with pytest.raises(AdapterFileError, match="was trained without a bank"):
        load_adapter(bank, cases.make_backbone("point_mae"), bank=bank)
