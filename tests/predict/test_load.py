"""`pcl_clora.load`: a run folder or an adapter file, ready for clouds however they come."""

import copy
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pcl_clora
from pcl_clora.adapters.files import AdapterFileError, open_adapter, read_header, write_adapter
from pcl_clora.adapters.share import HubError, push_adapter, write_folder
from pcl_clora.cli import app
from pcl_clora.config import ConfigError, build
from pcl_clora.engine import RunConfig, RunFolder, Trainer
from pcl_clora.engine.novelty import calibrate_run
from pcl_clora.models.weights.load import LoadReport
from pcl_clora.predict import Predictor, load_several, read_table
from tests.support.cli_cases import TINY
from tests.support.fake_hub import FakeHub

CLOSE = 1e-5


def cloud(seed=0, count=100):
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def change_header(file, to, **changes):
    """Write an adapter file again with another header, as earlier versions wrote it."""
    header, state = open_adapter(file)
    write_adapter(to, state, header.model_copy(update=changes))
    return to


@pytest.fixture(scope="module")
def builtin_run(tmp_path_factory):
    """A run on the weights in the package, of one step."""
    values = {
        **TINY,
        "model": {"name": "point_mae_tiny", "num_classes": 3, "num_groups": 8},
        "weights": {"path": "builtin"},
        "data": {**TINY["data"], "train_size": 9, "test_size": 3},
        "optim": {"epochs": 1, "batch_size": 9, "warmup_epochs": 0},
    }
    return Trainer(build(RunConfig, values), run_dir=tmp_path_factory.mktemp("builtin")).fit().run_dir


@pytest.mark.parametrize("run", ["classification_run", "segmentation_run", "builtin_run"])
def test_a_bare_adapter_file_answers_as_its_run(run, request, tmp_path):
    run = request.getfixturevalue(run)
    file = tmp_path / "chairs.safetensors"
    shutil.copy(RunFolder(run).chosen, file)

    bare, whole = pcl_clora.load(file), Predictor(run)

    category = "mug" if whole.segments else ""
    found, expected = bare(cloud(), category), whole(cloud(), category)
    np.testing.assert_array_equal(found.probability, expected.probability)
    assert (bare.name, bare.names) == ("chairs", whole.names)
    assert bare.rule == whole.rule
    assert not bare.model.training
    if whole.segments:
        assert bare.taxonomy == whole.taxonomy


def test_an_adapter_of_the_hub_or_a_shared_folder_is_named_where_a_file_is(
    classification_run, tmp_path, monkeypatch
):
    FakeHub.put_in_place(tmp_path / "hub", monkeypatch)
    calibrated = tmp_path / "run"
    shutil.copytree(classification_run, calibrated)
    calibrate_run(calibrated)
    name = push_adapter(RunFolder(calibrated).chosen, "me/chairs")
    write_folder(RunFolder(calibrated).chosen, tmp_path / "tables")
    wanted = Predictor(calibrated)(cloud())

    for source, called in ((name, "chairs"), (tmp_path / "tables", "tables")):
        found = pcl_clora.load(source)
        assert found.name == called
        assert np.array_equal(found(cloud()).probability, wanted.probability)
        assert found(cloud()).novelty == wanted.novelty is not None
    np.save(tmp_path / "scan.npy", cloud())
    command = ["predict", str(tmp_path / "scan.npy"), "--out", str(tmp_path / "a.csv")]
    done = CliRunner().invoke(app, [*command, "--adapter", name, "--adapter", str(tmp_path / "tables")])
    assert done.exit_code == 0, done.output
    assert [row.model for row in read_table(tmp_path / "a.csv")] == ["chairs", "tables"]
    with pytest.raises(HubError, match="404 me/chairs 1234"):
        pcl_clora.load("hub:me/chairs@1234")


def test_a_file_says_its_weights(builtin_run, classification_run):
    card = pcl_clora.models.builtin.builtin_card("point_mae_tiny")

    assert read_header(RunFolder(builtin_run).chosen).base_weights == {
        "source": "builtin",
        "sha256": card["sha256"],
    }
    assert read_header(RunFolder(classification_run).chosen).base_weights == {"source": "random:0"}


def test_an_id_of_the_hub_is_named_with_its_revision():
    report = LoadReport("hub", "", (), (), given="hub:name@" + "0" * 40)

    assert report.described() == {"source": "hub:name@" + "0" * 40}
    assert LoadReport("state dict", "", (), ()).described() == {}


def test_an_old_file_asks_for_weights_and_takes_them(builtin_run, tmp_path):
    old = change_header(RunFolder(builtin_run).chosen, tmp_path / "old.safetensors", base_weights={})

    with pytest.raises(
        AdapterFileError, match=r"does not say which weights it stands on; name them: weights="
    ):
        pcl_clora.load(old)

    found = pcl_clora.load(old, weights="builtin")(cloud())
    np.testing.assert_array_equal(found.probability, Predictor(builtin_run)(cloud()).probability)
    with pytest.raises(AdapterFileError, match="was made for base"):
        pcl_clora.load(old, weights="random:0")


def test_an_old_file_inside_its_run_needs_nothing(builtin_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(builtin_run, run)
    (run / "result.json").unlink()
    file = RunFolder(run).chosen
    change_header(file, file, base_weights={})

    assert pcl_clora.load(file).cfg.weights.path == "builtin"


@pytest.fixture
def on_a_file(builtin_run, tmp_path):
    """An adapter that stands on a weights file, which it names by path and digest."""
    weights = tmp_path / "base" / "weights.safetensors"
    weights.parent.mkdir()
    shutil.copy(pcl_clora.models.builtin.list_builtin()["point_mae_tiny"], weights)
    said = dict(read_header(RunFolder(builtin_run).chosen).base_weights, source=str(weights))
    return weights, change_header(
        RunFolder(builtin_run).chosen, tmp_path / "a.safetensors", base_weights=said
    )


def test_weights_by_path_are_found_there_or_beside_the_file(on_a_file, builtin_run, tmp_path):
    weights, file = on_a_file
    expected = Predictor(builtin_run)(cloud()).probability

    there = pcl_clora.load(file)(cloud()).probability
    weights.rename(tmp_path / weights.name)
    beside = pcl_clora.load(file)(cloud()).probability

    np.testing.assert_array_equal(there, expected)
    np.testing.assert_array_equal(beside, expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "which are not there; put them there or beside the file"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "is another file; get the file of that"),
    ],
)
def test_weights_that_are_gone_or_others_are_refused(on_a_file, spoil, message):
    weights, file = on_a_file
    spoil(weights)

    with pytest.raises(AdapterFileError, match=message):
        pcl_clora.load(file)


def test_clouds_come_as_arrays_lists_tensors_paths_and_batches(classification_run, tmp_path):
    model = pcl_clora.load(classification_run)
    points = cloud(count=48)
    np.save(tmp_path / "a.npy", points)
    expected = model(points).probability

    singles = [model(each).probability for each in (points.tolist(), torch.from_numpy(points))]
    file = model(tmp_path / "a.npy")
    several = model.predict([points, str(tmp_path / "a.npy"), cloud(1)], batch_size=2)
    stacked = model.predict(np.stack([points, cloud(1, 48)]))

    for found in (*singles, file.probability, several[0].probability, stacked[0].probability):
        np.testing.assert_allclose(found, expected, atol=CLOSE)
    np.testing.assert_allclose(several[2].probability, model(cloud(1)).probability, atol=CLOSE)
    assert file.name == model.names[int(expected.argmax())]
    assert file.best(2)[0] == (file.name, pytest.approx(float(expected.max()), abs=CLOSE))
    assert model.predict([]) == []


def test_parts_of_several_clouds_have_one_category_each(segmentation_run):
    model = pcl_clora.load(segmentation_run)

    found = model.predict([cloud(0), cloud(1)], ["chair", "mug"])

    assert [each.category for each in found] == ["chair", "mug"]
    np.testing.assert_array_equal(found[1].label, model(cloud(1), "mug").label)
    with pytest.raises(ValueError, match="fewer categories than clouds"):
        model.predict([cloud(0), cloud(1)], ["chair"])


@pytest.mark.parametrize("given", [np.zeros((5, 3)), "scan.ply"])
def test_one_cloud_where_several_are_expected_is_refused(classification_run, given):
    with pytest.raises(TypeError, match=r"predict\(\) takes several clouds"):
        pcl_clora.load(classification_run).predict(given)


def test_the_feature_of_a_cloud_is_what_enters_the_head(classification_run, segmentation_run):
    model = pcl_clora.load(classification_run)
    base = model.model.base
    found = model(cloud())

    with torch.inference_mode():
        expected = base.pool(base.forward_features(found.seen[None]))[0]
    np.testing.assert_allclose(found.feature, expected, atol=CLOSE)
    assert pcl_clora.load(segmentation_run)(cloud(), "mug").feature.ndim == 1


def test_threads_get_the_answers_that_one_thread_gets(classification_run):
    model = pcl_clora.load(classification_run)
    clouds = [cloud(seed) for seed in range(24)]
    expected = [model(each) for each in clouds]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model, clouds))

    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, atol=CLOSE)
        np.testing.assert_allclose(one.feature, other.feature, atol=1e-4)


def test_predictors_of_one_backbone_take_turns(classification_run, tmp_path):
    second = tmp_path / "second.safetensors"
    header, state = open_adapter(RunFolder(classification_run).chosen)
    moved = {key: value + 0.1 if value.is_floating_point() else value for key, value in state.items()}
    write_adapter(second, moved, header)
    sources = [classification_run, second]
    alone = [pcl_clora.load(each) for each in sources]

    together = load_several(sources)

    assert together[0].model is together[1].model
    clouds = [cloud(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        tasks = [(k % 2, each) for k, each in enumerate(clouds * 2)]
        found = list(pool.map(lambda task: together[task[0]](task[1]), tasks))
    for (which, each), said in zip(tasks, found, strict=True):
        np.testing.assert_allclose(said.probability, alone[which](each).probability, atol=CLOSE)


def test_a_model_that_is_loaded_can_be_copied(classification_run):
    model = pcl_clora.load(classification_run)

    copied = copy.deepcopy(model.model)

    assert copied is not model.model


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere", ValueError, "there is no such run folder or adapter file"),
        ("", ConfigError, "is not the folder of a finished run"),
    ],
)
def test_what_is_no_run_and_no_adapter_is_refused(source, error, message, tmp_path):
    with pytest.raises(error, match=message):
        pcl_clora.load(tmp_path / source)


def test_a_bare_file_does_not_know_its_data(builtin_run, tmp_path):
    file = tmp_path / "a.safetensors"
    shutil.copy(RunFolder(builtin_run).chosen, file)

    with pytest.raises(ConfigError, match="neither the settings nor the data"):
        pcl_clora.load(file).dataset()
    with pytest.raises(ValueError, match="belongs to a run folder"):
        pcl_clora.load(file, data=tmp_path)


def test_novelty_is_for_classifiers(segmentation_run):
    assert not RunFolder(segmentation_run).novelty.exists()
    assert pcl_clora.load(segmentation_run)(cloud(), "mug").novelty is None
    with pytest.raises(ConfigError, match="novelty needs a run that classifies clouds"):
        calibrate_run(segmentation_run)
