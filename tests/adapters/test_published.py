"""Settings by name: what was published, where, and what it counts."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pcl_clora
from pcl_clora.adapters import (
    AdaptedModel,
    attach_adapter,
    list_adapters,
    list_published,
    parse_adapter_config,
    published_adapter,
)
from pcl_clora.config import ConfigError, build, config_hash, dump_yaml
from pcl_clora.engine import RunConfig, load_run_config
from pcl_clora.models import create_model, published_form
from pcl_clora.report.macs import count_executed, count_layers
from tests.support.engine_cases import VALUES

CFGS = Path(__file__).parents[2] / "cfgs" / "published"
ALL = list_published()
SETS = ("scanobjectnn", "scanobjectnn_objbg", "scanobjectnn_objonly", "modelnet40")


def name_of(entry: dict[str, str]) -> str:
    parts = (entry["method"], entry["variant"], entry["backbone"], entry["dataset"])
    return "_".join(part for part in parts if part)


def test_what_is_published_is_what_the_papers_have() -> None:
    backbones = {
        "dapt": ["point_mae"], "idpt": ["point_mae"], "vpt": ["point_mae"], "stag": ["point_mae"],
        "pointgst": ["point_mae", "act", "recon_plain"], "ppt": ["point_mae", "recon_plain"],
        "gft": ["point_mae", "point_bert", "act"],
    }  # fmt: skip
    expected = {(m, b, s) for m, some in backbones.items() for b in some for s in SETS}
    expected |= {("pointlora", "point_mae", "scanobjectnn"), ("point_peft", "point_mae", "scanobjectnn")}
    expected |= {(m, "point_mae", "shapenetpart") for m in ("idpt", "ppt", "gft")}
    expected |= {("ppt", "recon_plain", "shapenetpart")}

    assert {(e["method"], e["backbone"], e["dataset"]) for e in ALL} == expected
    assert {e["method"] for e in ALL if e["variant"]} == {"stag"}


@pytest.mark.parametrize(
    ("method", "where", "message"),
    [
        ("dapt", {"backbone": "act"}, "scanobjectnn on point_mae"),
        ("dapt", {"task": "part_segmentation"}, "was not published with .*shapenetpart"),
        ("idpt", {"dataset": "shapenetpart"}, "task='classification'"),
        ("gft", {"task": "part_segmentation", "backbone": "point_bert"}, "shapenetpart on point_mae"),
        ("pointlora", {"dataset": "modelnet40"}, "There is: scanobjectnn on point_mae"),
        ("dapt", {"variant": "sl"}, "variant='sl'"),
        ("stag", {"variant": "large"}, "also variant='sl'"),
        ("dapt", {"dataset": "scanobjectnn_hardest"}, "scanobjectnn_objbg on"),
        ("dabt", {}, "did you mean 'dapt'"),
        ("clora", {}, "not a method with published settings"),
        ("dapt", {"task": "segmentation"}, "did you mean 'part_segmentation'"),
        ("dapt", {"ranc": 3}, "did you mean 'rank'"),
        ("dapt", {"rank": 0}, "greater than 0"),
    ],
)
def test_what_was_not_published_is_refused_with_what_was(method, where, message) -> None:
    with pytest.raises(ConfigError, match=message):
        published_adapter(method, **where)


def test_settings_that_differ_are_laid_over_the_published_ones() -> None:
    config = published_adapter("dapt", dataset="modelnet40", rank=8, mode="corrected")

    assert (config.rank, config.mode, config.prompt_token) == (8, "corrected", "none")
    assert config.freeze.norm_stats == "frozen"


def test_the_recipe_is_in_no_dump_hash_or_comparison() -> None:
    config = pcl_clora.published_adapter("gft")
    plain = parse_adapter_config(config.model_dump())

    assert config.recipe.weight_decay == 0.005
    assert plain.recipe is None
    assert config == plain
    assert hash(config) == hash(plain)
    assert config_hash(config) == config_hash(plain)
    assert dump_yaml(config) == dump_yaml(plain)
    assert "recipe" not in repr(config)
    assert pickle.loads(pickle.dumps(config)).recipe == copy.deepcopy(config).recipe == config.recipe
    assert config.model_dump().keys() <= type(config).model_fields.keys()


@pytest.mark.parametrize("entry", ALL, ids=name_of)
def test_the_yaml_file_of_a_setting_says_what_python_says(entry: dict[str, str]) -> None:
    cfg = load_run_config(CFGS / f"{name_of(entry)}.yaml")
    config = published_adapter(**entry)
    recipe = config.recipe

    assert cfg.adapter == config
    assert cfg.name == f"published_{name_of(entry)}"
    assert (cfg.model.name, cfg.model.task) == (entry["backbone"], entry["task"])
    assert (cfg.model.drop_path, cfg.model.num_groups) == (recipe.drop_path, recipe.num_groups)
    assert (cfg.data.num_points, cfg.augment) == (recipe.num_points, recipe.augment)
    for name in (
        "lr", "weight_decay", "epochs", "warmup_epochs", "batch_size", "clip_norm", "double_step"
    ):  # fmt: skip
        assert getattr(cfg.optim, name) == getattr(recipe, name), name


def test_every_yaml_file_is_a_published_setting() -> None:
    assert {path.stem for path in CFGS.glob("*.yaml")} == {name_of(entry) for entry in ALL}


def test_a_section_names_published_settings_and_what_differs() -> None:
    config = parse_adapter_config({"published": "stag", "variant": "sl", "neighbors": 4})
    assert config == published_adapter("stag", variant="sl", neighbors=4)
    with pytest.raises(ConfigError, match="leave one of them out"):
        parse_adapter_config({"published": "stag", "method": "dapt"})


def test_a_run_on_other_data_has_to_say_whose_settings_it_wants() -> None:
    adapter = {"published": "dapt", "rank": 3}
    with pytest.raises(ConfigError, match=r"set adapter\.dataset"):
        build(RunConfig, {**VALUES, "adapter": adapter})

    cfg = build(RunConfig, {**VALUES, "adapter": {**adapter, "dataset": "modelnet40"}})

    assert cfg.adapter == published_adapter("dapt", dataset="modelnet40", rank=3)
    assert build(RunConfig, cfg.model_dump(mode="json")) == cfg


def test_another_method_replaces_published_settings_on_the_command_line() -> None:
    cfg = load_run_config(CFGS / "dapt_point_mae_scanobjectnn.yaml", ["adapter.method=clora"])
    assert cfg.adapter == parse_adapter_config({"method": "clora"})
    cfg = load_run_config(CFGS / "dapt_point_mae_scanobjectnn.yaml", ["adapter.rank=3"])
    assert cfg.adapter == published_adapter("dapt", rank=3)


def test_methods_are_listed_by_task() -> None:
    offered = list_adapters(task="part_segmentation")

    assert set(list_adapters()) - set(offered) == {"stag"}
    assert list_adapters(task="classification") == list_adapters()
    with pytest.raises(ConfigError, match="did you mean 'part_segmentation'"):
        list_adapters(task="segmentation")  # type: ignore[arg-type]


@pytest.mark.shared_data
@pytest.mark.parametrize("entry", [e for e in ALL if e["dataset"] != "shapenetpart"], ids=name_of)
def test_recipes_and_settings_are_those_of_the_released_files(entry: dict[str, str], shared: Path) -> None:
    folders = {
        "dapt": "DAPT/cfgs/finetune_{}_dapt", "idpt": "ICCV23-IDPT/cfgs/finetune_{}_idpt",
        "vpt": "ICCV23-IDPT/cfgs/finetune_{}_vpt", "pointgst": "PointGST/cfgs/{}/finetune_{}_pgst",
        "ppt": "PPT/cfgs/{}_configs/finetune_{}", "pointlora": "PointLoRA/cfgs/finetune_{}_pointlora",
        "point_peft": "Point-PEFT/MAE/cfgs/finetune_{}",
    }  # fmt: skip
    if entry["method"] not in folders:
        pytest.skip(f"{entry['method']}: the table has no files of its settings")
    sets = dict(zip(SETS, ("scan_hardest", "scan_objbg", "scan_objonly", "modelnet"), strict=True))
    short = {
        "pointgst": {"point_mae": "mae", "act": "act", "recon_plain": "recon"},
        "ppt": {"point_mae": "pointmae", "recon_plain": "recon"},
    }
    where = [short[entry["method"]][entry["backbone"]]] if entry["method"] in short else []
    file = folders[entry["method"]].format(*where, sets[entry["dataset"]])
    lines = (shared / "reference" / "configs_table.txt").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{file}.yaml |")]
    _, lr, decay, epochs, warmup, _, batch, points, clip, _, classes, _, groups, more = line.split(" | ")
    given, config = ast.literal_eval(more), published_adapter(**entry)
    recipe = config.recipe

    found = (recipe.lr, recipe.weight_decay, recipe.epochs, recipe.warmup_epochs, recipe.clip_norm)
    assert found == (float(lr), float(decay), int(epochs), int(warmup), float(clip))
    assert (recipe.batch_size, recipe.num_points, recipe.num_groups) == (int(batch), int(points), int(groups))
    assert classes == ("40" if entry["dataset"] == "modelnet40" else "15")
    assert recipe.drop_path == given["drop_path_rate"]
    ours = {
        "rank": "rank", "local": "local", "dropout": "drop_adapter_rate", "num_prompts": "prompt_nums",
        "num_extra": "prompt_num_group", "extra_size": "prompt_group_size",
    }  # fmt: skip
    for name, official in ours.items():
        if official in given:
            assert getattr(config, name) == given[official], name
    if entry["method"] == "dapt":
        assert (config.prompt_token, config.patch_token) == tuple(
            given[key].lower() for key in ("prompt_token", "patch_token")
        )
    if entry["method"] == "idpt":
        assert config.blocks[0] % 12 == given["prompt_layer"]
        assert config.head_tokens == {"all": "all", "promptonly": "prompt"}[given["cls_type"]]


# (method, variant, dataset) -> trained numbers, parameters in all, and MACs in G by both counters.
COUNTS = {
    ("dapt", "", "scanobjectnn"): (1_087_771, 22_912_795, 4.957, 5.124),
    ("dapt", "", "modelnet40"): (1_069_716, None, 2.555, 2.601),
    ("idpt", "", "scanobjectnn"): (1_696_783, 23_522_191 - 384, 7.084, 7.256),  # a position is a buffer here
    ("idpt", "", "modelnet40"): (1_703_208, None, 3.554, 3.597),
    ("idpt", "", "shapenetpart"): (5_686_066, 27_511_090, None, None),
    ("vpt", "", "scanobjectnn"): (360_463, 22_185_487, 4.973, 5.151),
    ("stag", "", "scanobjectnn"): (428_431, 22_254_223, 5.015, 5.169),
    ("stag", "", "modelnet40"): (434_856, None, 2.518, 2.557),
    ("stag", "sl", "scanobjectnn"): (1_020_751, 22_846_543, 5.086, 5.239),
    ("pointgst", "", "scanobjectnn"): (622_831, 22_447_855, 4.807, 4.983),
    ("pointgst", "", "modelnet40"): (629_256, None, 2.415, 2.460),
    ("ppt", "", "scanobjectnn"): (1_042_191, 22_783_375, 10.710, 11.320),
    ("ppt", "", "shapenetpart"): (5_617_842, None, None, None),
    ("gft", "", "scanobjectnn"): (733_455, 22_524_687, 6.127, 6.431),
    ("gft", "", "modelnet40"): (739_880, 22_531_112, 6.127, 6.431),
    ("gft", "few shots", "modelnet40"): (739_880, 22_531_112, 2.409, 2.475),
    ("gft", "", "shapenetpart"): (3_447_730, 25_238_962, 9.559, 9.892),
    ("pointlora", "", "scanobjectnn"): (772_752, 22_513_960 - 24, 8.666, 10.163),  # 24 factors are buffers
    ("point_peft", "", "scanobjectnn"): (773_017, 22_560_409, 5.246, 5.424),
}
FEW_SHOTS = {"num_groups": 32, "num_points": 1024}  # of one setting, which has no file of its own here


def released_products(method: str, groups: int) -> int:
    """Multiply-adds of the released code where this one multiplies no matrices for the same numbers."""
    neighbors = groups * 2048 * 3  # distances of all points from all centres
    if method == "ppt":
        return 2 * neighbors
    if method == "point_peft":
        return neighbors + 2 * groups * (groups // 2) * 3  # and of centres from every second one
    if method == "pointgst":  # two products with diagonal matrices a Laplacian: of all patches, of each 32
        return 2 * groups**3 + 2 * groups // 32 * 32**3
    return 0


def full_size(entry: dict[str, str], **sizes: int) -> tuple[AdaptedModel, list[Tensor]]:
    """A published setting on the full-size network without values, and what it takes."""
    config = published_adapter(**entry)
    seg = entry["task"] == "part_segmentation"
    classes = {} if seg else {"num_classes": 40 if entry["dataset"] == "modelnet40" else 15}
    groups, points = (sizes.get(name, getattr(config.recipe, name)) for name in ("num_groups", "num_points"))
    with torch.device("meta"):
        base = create_model(entry["backbone"], task=entry["task"], num_groups=groups, **classes)
        inputs = [torch.empty(1, points, 3)] + seg * [torch.zeros(1, dtype=torch.int64)]
        given = {
            "pointgst": {
                "basis": torch.empty(1, groups, groups),
                "local_basis": torch.empty(1, groups // 32, 32, 32),
                "order": torch.zeros(1, groups, dtype=torch.int64),
            },
            "point_peft": {"bank": torch.empty(384, 11392), "cp_feat": torch.empty(1, 384)},
        }
    model = attach_adapter(base.eval(), config).eval()
    model.method.provide(**given.get(entry["method"], {}))
    return model, inputs


@pytest.mark.slow
@pytest.mark.parametrize("key", COUNTS, ids=lambda key: "_".join(filter(None, key)))
def test_a_published_setting_trains_and_multiplies_what_the_official_code_does(key) -> None:
    method, variant, dataset = key
    task = "part_segmentation" if dataset == "shapenetpart" else "classification"
    entry = dict(method=method, dataset=dataset, task=task, backbone="point_mae")
    entry["variant"] = variant if variant == "sl" else ""
    trained, total, layers, executed = COUNTS[key]

    model, inputs = full_size(entry, **(FEW_SHOTS if variant == "few shots" else {}))
    counts = model.parameter_counts()

    assert counts["trainable"] == trained
    assert total in (None, counts["total"])
    with published_form(model):
        if layers is not None:
            assert round(sum(count_layers(model, *inputs).values()) / 1e9, 3) == layers
        if executed is not None:
            macs = count_executed(model, *inputs).macs
            macs += released_products(method, model.base.config.num_groups)
            assert round(macs / 1e9, 3) == executed


def test_the_encoder_of_a_bank_is_that_of_the_pre_training_without_class_token_and_head() -> None:
    with torch.device("meta"):
        base, points = (
            create_model("point_mae", num_classes=40, num_groups=64).eval(),
            torch.empty(1, 1024, 3),
        )
    with published_form(base):
        layers, executed = count_layers(base, points), count_executed(base, points)
    token = sum(macs for name, macs in layers.items() if name.startswith("blocks.")) // 65
    head = sum(macs for name, macs in layers.items() if name.startswith("head."))
    attention = executed.attention_macs * 64**2 // 65**2

    encoder = sum(layers.values()) - token - head
    assert [round(macs / 1e9, 3) for macs in (encoder, encoder + attention)] == [2.370, 2.407]


@pytest.mark.parametrize(
    ("backbone", "settings", "expected"),
    [
        ("point_mae", {"method": "linear_probe"}, {"trainable": 267_535}),
        ("recon", {"method": "linear_probe"}, {"trainable": 464_143}),
        ("point_mae", {"method": "vpt", "depth": "shallow"}, {"adapter": 7_680}),
        ("point_mae", {"method": "clora_geo"}, {"adapter": 61_440 + 6_144}),
        ("point_mae", {"method": "full"}, {"trainable": 22_093_327}),
        ("recon", {"method": "full"}, {"trainable": 43_571_215}),
        ("point_bert", {"method": "full"}, {"trainable": 22_059_535}),
        ("point_mae_tiny", {"method": "clora"}, {"adapter": 30_720}),
        ("point_mae_tiny", {"method": "lora", "rank": 7}, {"adapter": 32_256}),
        ("point_mae_tiny", {"method": "clora_geo"}, {"adapter": 33_792}),
        ("point_mae_tiny", {"method": "full"}, {"besides": 2_815_744}),
    ],
    ids=str,
)
def test_a_method_that_has_no_released_code_trains_as_many_as_stated(backbone, settings, expected) -> None:
    with torch.device("meta"):
        model = attach_adapter(create_model(backbone, num_classes=15), settings)

    counts = model.parameter_counts()

    counts["besides"] = counts["trainable"] - counts["head"] - counts["tokens"]
    assert {name: counts[name] for name in expected} == expected
