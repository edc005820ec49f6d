"""RunConfig: sections belong to registries, the dump loads back, and contradictions are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pcl_clora.adapters import CLoRAConfig, LoRAConfig, list_adapters
from pcl_clora.config import ConfigError, config_hash, dump_yaml
from pcl_clora.engine import OptimConfig, RunConfig, load_run_config
from pcl_clora.engine.config import FREE_ON_RESUME, differences, flatten, run_identity
from tests.support.engine_cases import CLORA, EVERYTHING, VALUES, tiny_config


def written(tmp_path: Path, values: Any) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", list_adapters())
@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
def test_the_resolved_settings_load_back_to_the_same_thing(
    tmp_path: Path, method: str, change: dict[str, Any]
) -> None:
    cfg = tiny_config(change, {"adapter": {"method": method}})
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(cfg), encoding="utf-8")
    again = load_run_config(path)
    assert again == cfg
    assert type(again.adapter) is type(cfg.adapter)
    assert config_hash(again) == config_hash(cfg)


def test_sections_are_dumped_with_the_fields_of_their_own_kind() -> None:
    dumped = yaml.safe_load(dump_yaml(tiny_config(CLORA)))
    assert dumped["adapter"]["num_spaces"] == 2
    assert dumped["model"]["encoder_widths"] == [8, 16, 16]
    assert dumped["data"]["classes"] == ["bottle", "chair", "table"]


def test_another_method_replaces_the_section_and_the_same_one_is_merged(tmp_path: Path) -> None:
    path = written(tmp_path, {**VALUES, **CLORA})
    assert load_run_config(path, ["adapter.rank=3"]).adapter.num_spaces == 2  # type: ignore[attr-defined]
    assert isinstance(load_run_config(path).adapter, CLoRAConfig)
    other = load_run_config(path, ["adapter.method=lora", "adapter.rank=3"])
    assert other.adapter == LoRAConfig(rank=3)


def test_another_run_name_keeps_every_other_setting(tmp_path: Path) -> None:
    path = written(tmp_path, VALUES)
    renamed = flatten(load_run_config(path, ["name=other"]))
    assert differences(flatten(load_run_config(path)), renamed) == ["name: 'tiny' -> 'other'"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depht=3", r"model: 'depht' is not a setting of PointMAEConfig; did you mean 'depth'"),
        ("model.name=point_mea", r"model: 'point_mea' is not a model; did you mean 'point_mae'"),
        ("adapter.method=clorra", r"adapter: 'clorra' is not .*; did you mean 'clora'"),
        ("data.trainsize=3", r"data: 'trainsize' is not .*; did you mean 'train_size'"),
        ("optim.learning_rate=3", r"optim: 'learning_rate' is not a setting of OptimConfig"),
        ("optim.lr=-1", r"optim\.lr: .*greater than 0 \(given: -1\)"),
        ("optim.warmup_epochs=3", r"optim: warmup_epochs=3 leaves nothing of epochs=3"),
        ("augment=scale", r"augment: 'scale' is not an augmentation; did you mean 'scale_shift'"),
        ("protocol.vote_augment=x", r"protocol\.vote_augment: 'x' is not an augmentation"),
        ("protocol.select=test", r"protocol: protocol honest never chooses on the test set"),
        ("model=3", r"model: expected a section of settings, not 3"),
        ("train.ema_decay=1", r"train\.ema_decay: .*less than 1"),
    ],
)
def test_a_wrong_setting_is_named_with_the_remedy(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(written(tmp_path, VALUES), [override])


def test_paper_chooses_on_test_unless_told_otherwise() -> None:
    assert tiny_config({"protocol": {"name": "paper"}}).protocol.select == "test"
    assert tiny_config({"protocol": {"name": "paper", "select": "last"}}).protocol.select == "last"
    assert tiny_config().protocol.select == "last"


def test_a_scalar_in_scientific_notation_is_a_number_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(VALUES) + "seed: 1\n" + "augment: none\n", encoding="utf-8")
    text = path.read_text(encoding="utf-8").replace("lr: 0.002", "lr: 2e-3")
    path.write_text(text, encoding="utf-8")
    assert load_run_config(path).optim.lr == 2e-3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.progress=off", ("off", "w")),
        ("weights.path=", ("auto", "")),
        ("train.progress=plain", ("plain", "w")),
    ],
)
def test_a_bare_off_and_an_empty_path_mean_what_they_say(
    tmp_path: Path, override: str, expected: tuple[str, str]
) -> None:
    values = {**VALUES, "weights": {"path": "w"}, "train": {}}
    cfg = load_run_config(written(tmp_path, values), [override])
    assert (cfg.train.progress, cfg.weights.path) == expected


def test_the_identity_of_a_run_leaves_out_exactly_the_settings_that_change_no_number() -> None:
    off = {"cache": "never", "novelty": 7}  # at their defaults they are in no identity anyway
    cfg = tiny_config({"train": off})
    left_out = flatten(cfg).keys() - run_identity(cfg).keys()
    assert left_out == set(FREE_ON_RESUME)


def test_the_defaults_are_the_published_recipe() -> None:
    cfg = OptimConfig()
    assert (cfg.epochs, cfg.batch_size, cfg.lr, cfg.lr_min) == (300, 32, 5e-4, 1e-6)
    assert (cfg.warmup_epochs, cfg.lr_warmup, cfg.weight_decay, cfg.clip_norm) == (10, 1e-6, 0.05, 10.0)
    assert (cfg.label_smoothing, cfg.lag_epochs, cfg.step_unit) == (0.0, 0, "epoch")


def test_an_instance_is_taken_as_a_section() -> None:
    assert RunConfig(**{**VALUES, "adapter": LoRAConfig(rank=3)}).adapter == LoRAConfig(rank=3)


def test_an_empty_file_names_the_sections_that_it_lacks(tmp_path):
    (tmp_path / "empty.yaml").write_text("")

    with pytest.raises(ConfigError, match=r"empty\.yaml: 3 problem") as caught:
        load_run_config(tmp_path / "empty.yaml")

    assert {where for where, _ in caught.value.problems} == {"model", "adapter", "data"}
    assert all(said.startswith("is not set, and has no default") for _, said in caught.value.problems)
