"""What every backbone owes the package: its entry says all, and no file elsewhere knows it by name."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pcl_clora.config import ConfigError, Registry
from pcl_clora.models import build_model, create_model, parse_model_config, registry
from pcl_clora.models.config import ModelConfig
from pcl_clora.models.entry import BackboneEntry, FileFacts, OfficialFiles
from pcl_clora.models.interface import ModelInterface
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.registry import entries, find_entry, model_classes
from pcl_clora.models.weights._identify import identify, recognise
from pcl_clora.models.weights._left_out import reason_left_out, unwrap, wrap, wrappers_of
from pcl_clora.models.weights._naming import key_map_of
from pcl_clora.models.weights.inspect import inspect_weights

MODELS = Path(registry.__file__).parent
ENTRIES = {entry.name: entry for entry in entries()}
OWN_FILES = {name: entry for name, entry in ENTRIES.items() if name != "timm"}  # timm loads its own
FORMS = [(name, task) for name, entry in OWN_FILES.items() for task in entry.tasks]
SIZES = {
    "published": {},
    "small": {"embed_dim": 48, "depth": 3, "num_heads": 3, "group_size": 8, "encoder_dim": 24},
    "odd": {"embed_dim": 60, "depth": 4, "num_heads": 3, "mlp_ratio": 2.0, "encoder_widths": (8, 16, 24)},
}


def make(name, task, sizes):
    """A network without memory; width and depth of the largest PointGPT are what its files show it by."""
    settings = {**SIZES[sizes]}
    if name == "pointgpt_l":
        settings = {
            key: settings[key] for key in settings.keys() & {"group_size", "encoder_dim", "mlp_ratio"}
        }
    if task == "part_segmentation" and name != "point_bert":
        settings |= {"num_parts": 9, "segmentation_widths": (24, 12)} if sizes != "published" else {}
    with torch.device("meta"):
        return create_model(name, task=task, **settings)


def official_file(model):
    """The keys and shapes of a network's official file: classifier bare, pre-training in its wrapper."""
    key_map, name = key_map_of(model), model.config.name
    found = {}
    for ours, tensor in model.state_dict().items():
        key = key_map.translate(ours, to="official")
        if key is not None:
            key = wrap(key, name) if model.config.task == "pretraining" else key
            found[key] = key_map.translate_tensor(ours, tensor, to="official")
    return found


def facts_of(file):
    return {unwrap(key): tensor.shape for key, tensor in file.items()}, wrappers_of(file)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("name", "task"), FORMS)
def test_every_network_is_recognised_from_its_own_official_keys(name, task, sizes):
    identity = identify(*facts_of(official_file(make(name, task, sizes))))
    found = find_entry(identity.model)
    assert found is not None
    assert found.network == ENTRIES[name].network
    assert identity.task == task


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("name", "task"), FORMS)
def test_the_sizes_read_from_a_file_make_the_network_it_came_from(name, task, sizes):
    model = make(name, task, sizes)
    file = official_file(model)
    identity = identify(*facts_of(file))
    read = {"num_heads": model.config.num_heads, **identity.sizes_for(task)}
    if task not in ENTRIES[identity.model].tasks:
        pytest.skip(f"{identity.model} has no network for {task}")
    with torch.device("meta"):
        again = official_file(create_model(identity.model, task=task, **read))
    assert {unwrap(k): v.shape for k, v in again.items()} == {unwrap(k): v.shape for k, v in file.items()}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("name", "task"), FORMS)
def test_no_two_entries_claim_one_file(name, task, sizes):
    shapes, wrappers = facts_of(official_file(make(name, task, sizes)))
    file = FileFacts(shapes, wrappers)
    claiming = [entry for entry in entries() if entry.files and entry.files.are(file)]
    outdone = {other for entry in claiming for other in entry.files.rather_than}
    assert len([entry for entry in claiming if entry.name not in outdone]) == 1


@pytest.mark.parametrize(("name", "task"), FORMS)
def test_every_tensor_of_a_network_has_an_official_name_unless_the_entry_says_why(name, task):
    model = make(name, task, "published")
    without = [
        ours for ours in model.state_dict() if key_map_of(model).translate(ours, to="official") is None
    ]
    assert without == []


@pytest.mark.parametrize(("name", "task"), FORMS)
def test_settings_come_back_from_a_dump(name, task):
    config = parse_model_config({"name": name, "task": task})
    assert parse_model_config(config.model_dump(mode="json")) == config
    assert isinstance(config, ENTRIES[name].config)
    assert config.name == name


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_names_only_entries_that_exist(name):
    entry = ENTRIES[name]
    named = {entry.network, *entry.also_takes, *(entry.files.rather_than if entry.files else ())}
    assert named <= ENTRIES.keys()
    assert all(model_classes()[name, task] is network for task, network in entry.tasks.items())
    for pattern, reason in entry.files.left_out if entry.files else ():
        assert re.compile(pattern)
        assert reason


def test_no_file_outside_its_family_branches_on_a_backbone():
    """The list of families and the catalogue of files that others published are the two that may name one."""
    names = "|".join(sorted(ENTRIES, key=len, reverse=True))
    allowed = {"registry.py", "weights/hub_catalogue.py", "interface.py"}
    found = []
    for path in sorted(MODELS.rglob("*.py")):
        place = path.relative_to(MODELS).as_posix()
        if place.startswith(("backbones/", "layers/", "builtin/")) or place in allowed:
            continue
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text(encoding="utf-8"))
        found += [f"{place}: {hit}" for hit in re.findall(rf'"(?:{names})"', code)]
    assert found == []


def test_the_room_of_models_stays_small():
    assert len([path for path in MODELS.iterdir() if path.name != "__pycache__"]) <= 14


class OtherConfig(ModelConfig):
    """Settings of a backbone that a test makes up."""

    name: str = "other"
    width: int = 4


class Other(nn.Module):
    """One layer, under names of its own."""

    official_keys = KeyMap((Rule("stem.", "layer."),))

    def __init__(self, config):
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.layer = nn.Linear(config.width, config.width)
        self.interface = ModelInterface(config.width, (), {}, {})


@pytest.fixture
def other(monkeypatch):
    """A registry with a backbone more, which nothing but its entry describes."""
    models = Registry("model", "name", ModelConfig)
    monkeypatch.setattr(registry, "_models", models)
    for entry in ENTRIES.values():
        registry.register_entry(entry)
    entry = BackboneEntry(
        "other",
        "Other",
        OtherConfig,
        {"classification": Other},
        files=OfficialFiles(
            are=lambda file: file.has("stem.weight"),
            task=lambda file: "classification",
            sizes=lambda file: {"width": file.width("stem.weight")},
            wrappers={"other_encoder.": "the encoder of Other"},
            left_out=((r"^helper\.", "helper of Other's training"),),
        ),
    )
    registry.register_entry(entry)
    return entry


def test_an_entry_alone_makes_a_backbone_known_everywhere(other, tmp_path):
    file = {"other_encoder.stem.weight": torch.ones(6, 6), "other_encoder.stem.bias": torch.ones(6)}
    shapes, wrappers = facts_of(file)
    identity = identify(shapes, wrappers)
    assert str(identity) == "Other, classification"
    assert identity.as_call() == 'create_model("other", width=6)'
    assert recognise(FileFacts(shapes)) is other
    assert build_model(parse_model_config({"name": "other", "width": 6})).layer.in_features == 6
    assert wrap("stem.weight", "other") == "other_encoder.stem.weight"
    assert reason_left_out("helper.bias", ()) == "helper of Other's training"
    torch.save(file, tmp_path / "other.pth")
    assert inspect_weights(tmp_path / "other.pth").wrappers == {"other_encoder.": "the encoder of Other"}


def test_a_name_that_no_entry_has_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'point_mae'"):
        parse_model_config({"name": "point_ma"})
