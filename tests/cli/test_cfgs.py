"""Every yaml file of cfgs loads, and says what its name says."""

import re
from collections import Counter

import pytest
import yaml

from pcl_clora.adapters import attach_adapter
from pcl_clora.compare import load_study
from pcl_clora.config import ConfigError, read_yaml
from pcl_clora.engine import load_run_config
from pcl_clora.models import build_model
from pcl_clora.report import count_cost
from pcl_clora.report.records import build_for_cost
from pcl_clora.tune import load_search
from tests.support.cli_cases import ROOT

CFGS = ROOT / "cfgs"
STUDIES = sorted((CFGS / "compare").glob("*.yaml"))
SEARCHES = sorted((CFGS / "tune").glob("*.yaml"))
NO_RUNS = {*STUDIES, *SEARCHES}
RUNS = sorted(path for path in CFGS.rglob("*.yaml") if "_base_" not in path.parts and path not in NO_RUNS)
PARTS = sorted((CFGS / "_base_").rglob("*.yaml"))


def name_of(path):
    return str(path.relative_to(CFGS))


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_every_config_loads(path):
    cfg = load_run_config(path)
    assert cfg.protocol.name == "honest"


@pytest.mark.parametrize("path", SEARCHES, ids=name_of)
def test_every_search_loads(path):
    search = load_search(path)
    assert search.cfg.title
    assert search.chosen({}).protocol.select == "last"


def with_banks(text, folder):
    """Write the adapters of earlier runs whose spaces a study stands on, below a folder."""
    for name in re.findall(r"bank: ([\w/.]+)", text):
        adapter = folder / name
        adapter.parent.mkdir(parents=True, exist_ok=True)
        model = build_model(load_run_config(CFGS / "modelnet40" / "shots20_clora.yaml").model)
        attach_adapter(model, {"method": "clora"}).save_adapter(adapter)


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_every_study_loads(path, tmp_path, monkeypatch):
    with_banks(path.read_text(), tmp_path)
    monkeypatch.chdir(tmp_path)
    study = load_study(path)
    assert {row.cfg.protocol.select for row in study.rows.values()} == {"last"}
    assert study.cfg.title
    for row in study.rows.values():
        attach_adapter(build_model(row.cfg.model), row.cfg.adapter)


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_every_part_is_one_section_that_some_config_uses(path):
    assert list(read_yaml(path)) == [path.parent.name]
    place = f"_base_/{path.parent.name}/{path.name}"
    assert any(place in other.read_text() for other in RUNS)


@pytest.mark.parametrize("path", sorted((CFGS / "modelnet40").glob("*_*.yaml")), ids=name_of)
def test_modelnet40_configs_are_named_after_their_content(path):
    cfg = load_run_config(path)
    if path.stem.startswith("warmup"):
        assert (cfg.adapter.method, cfg.data.name) == ("full", "procedural")
        return
    _, _, method = path.stem.partition("_")
    assert cfg.adapter.method == method
    assert cfg.name == f"modelnet40_{path.stem}"
    assert (cfg.model.num_classes, cfg.data.num_points, cfg.augment) == (40, 1024, "scale_shift")


@pytest.mark.parametrize("method", ["linear_probe", "clora", "lora", "full"])
@pytest.mark.parametrize(
    ("name", "variant"), [("objbg", "obj_bg"), ("objonly", "obj_only"), ("hardest", "pb_t50_rs")]
)
def test_scanobjectnn_configs_are_the_published_recipe(name, variant, method):
    cfg = load_run_config(CFGS / "scanobjectnn" / f"{name}_{method}.yaml")
    assert (cfg.data.variant, cfg.data.num_points, cfg.data.normalize) == (variant, 2048, False)
    assert (cfg.adapter.method, cfg.augment, cfg.optim.epochs) == (method, "scale_shift", 300)
    assert (cfg.model.num_classes, cfg.model.num_groups, cfg.model.group_size) == (15, 128, 32)


@pytest.mark.parametrize("method", ["linear_probe", "clora", "lora", "full"])
def test_fewshot_configs_are_the_published_recipe(method):
    cfg = load_run_config(CFGS / "fewshot" / f"modelnet_{method}.yaml")
    assert (cfg.adapter.method, cfg.data.num_points, cfg.optim.epochs) == (method, 1024, 150)
    assert (cfg.optim.lr, cfg.optim.batch_size, cfg.optim.warmup_epochs) == (5e-4, 32, 10)


@pytest.mark.parametrize("method", ["linear_probe", "clora", "lora", "full"])
def test_the_full_size_recipe_is_the_published_one(method):
    cfg = load_run_config(CFGS / "modelnet40" / f"base_{method}.yaml")
    optim = cfg.optim
    assert (optim.lr, optim.weight_decay, optim.epochs, optim.warmup_epochs) == (5e-4, 0.05, 300, 10)
    assert (optim.batch_size, optim.clip_norm, optim.lr_min, optim.lr_warmup) == (32, 10, 1e-6, 1e-6)
    assert (cfg.model.num_groups, cfg.model.group_size, cfg.model.depth) == (64, 32, 12)


def test_a_misspelt_key_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'embed_dim'"):
        load_run_config(CFGS / "modelnet40" / "tiny_full.yaml", ["model.embed_dmi=3"])


@pytest.mark.slow
def test_hardest_clora_has_the_published_cost():
    model, num_points = build_for_cost(CFGS / "scanobjectnn" / "hardest_clora.yaml")
    report = count_cost(model, num_points)
    assert report["params"]["trainable"] == 329_743
    assert round(report["macs"]["published"] / 1e9, 3) == 4.761


@pytest.mark.parametrize(
    ("size", "low", "high"), [("tiny", 1e6, 3e6), ("small", 5e6, 9e6), ("base", 22.0e6, 22.2e6)]
)
def test_sizes_are_what_they_are_called(size, low, high):
    model, _ = build_for_cost(CFGS / "modelnet40" / f"{size}_full.yaml")
    assert low < model.parameter_counts()["total"] < high


PUBLISHED = ["modelnet40/base_*", "fewshot/modelnet_*", "scanobjectnn/*", "shapenetpart/*"]


@pytest.mark.parametrize(
    "path",
    [path for path in RUNS if any(map(path.match, PUBLISHED)) and "tiny" not in path.name],
    ids=name_of,
)
def test_the_comment_names_the_augmentation_of_published_tables(path):
    text = path.read_text()
    if "\naugment:" not in text:
        assert yaml.safe_load(text).keys() <= {"_base_", "name", "adapter"}  # what it builds on says it
        return
    comment = " ".join(line for line in text.splitlines() if line.startswith("#"))
    assert load_run_config(path).augment in comment
    assert "ublished" in comment or "tables" in comment


METHODS = ("linear_probe", "lora", "full")
BESIDE_CLORA = [(path, m) for path in RUNS for m in METHODS if path.stem.endswith(f"_{m}")]
BESIDE_CLORA = [(path, method) for path, method in BESIDE_CLORA if path.parent.name != "demo"]
# What full fine-tuning, and each method where a study chose its learning rate, needs besides its name.
MORE = {"builtin": "optim", "shots20": "optim", "digits": "optim", "small": "weights", "tiny": "weights"}


@pytest.mark.parametrize(("path", "method"), BESIDE_CLORA, ids=lambda value: getattr(value, "stem", value))
def test_a_config_beside_one_of_clora_says_only_what_differs(path, method):
    stem = path.stem.removesuffix(f"_{method}")
    more = {MORE[stem]} if (method == "full" or stem == "shots20") and stem in MORE else set()
    content = yaml.safe_load(path.read_text())
    assert content.keys() == {"_base_", "name", "adapter", *more}
    assert f"{stem}_clora.yaml" in content["_base_"]
    assert content["adapter"] == {"method": method}
    cfg, clora = load_run_config(path), load_run_config(path.with_name(f"{stem}_clora.yaml"))
    own = {"name", "adapter", *more} | ({"optim"} if stem == "tiny" and more else set())
    assert cfg.model_dump(exclude=own) == clora.model_dump(exclude=own)


def test_what_is_not_repeated_is_said_once():
    lines = Counter(line for path in RUNS for line in path.read_text().splitlines() if line.startswith("#"))
    assert [line for line, count in lines.items() if count > 2] == []
