"""A prediction sees what the evaluation saw, for every data set that reads files."""

import numpy as np
import pytest

from pcl_clora.data import PointLoader
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.readers.whole import read_whole
from pcl_clora.engine import PartSegmentationTask, evaluate
from pcl_clora.predict import Predictor
from tests.support.rule_runs import CASES, header_without_rule, train_case

CLOSE = 1e-4


@pytest.fixture(scope="module")
def predictor_of(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = Predictor(train_case(name, tmp_path_factory.mktemp("case")))
        return made[name]

    return make


def evaluated(predictor):
    """Probabilities of the test split, as `pcl-clora eval` computes them."""
    dataset, task = predictor.dataset(), predictor.task
    loader = PointLoader(dataset, 4)
    num_points = predictor.cfg.data.num_points
    logits = evaluate(predictor.model, loader, task=task, num_points=num_points, keep_logits=True).logits
    if isinstance(task, PartSegmentationTask):
        return predictor.part_probability(logits, dataset.labels).numpy()
    return logits.softmax(-1).numpy()


def predicted(predictor, sample, change=lambda points: points):
    """Probabilities of what the model saw of the file that a sample is from."""
    whole = read_whole(sample.path)
    found = predictor(
        change(whole.points),
        "" if sample.category is None else sample.category,
        name=predictor.name_of(sample.path),
        faces=whole.faces,
        inside=whole.inside,
    )
    if not found.is_segmentation:
        return found.probability
    return found.probability[found.kept]


@pytest.mark.parametrize("name", CASES)
def test_a_file_gets_the_probabilities_that_the_evaluation_computed(predictor_of, name):
    predictor = predictor_of(name)
    dataset = predictor.dataset()
    expected = evaluated(predictor)

    found = [predicted(predictor, dataset[index]) for index in range(min(len(dataset), 6))]

    np.testing.assert_allclose(found, expected[: len(found)], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("scale", [1e3, 1e25, 1e-30])
@pytest.mark.parametrize("name", CASES)
def test_a_cloud_of_another_size_elsewhere_gets_the_same_probabilities(predictor_of, name, scale):
    predictor = predictor_of(name)
    if predictor.rule.frame == "file" or name == "hdf5 of any size":
        pytest.skip("the model sees these clouds as they are stored")
    sample = predictor.dataset()[1]
    offset = np.array([3.1, -7.3, 1.7]) * scale

    found = predicted(predictor, sample, lambda points: points.astype(np.float64) * scale + offset)

    np.testing.assert_allclose(found, predicted(predictor, sample), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", ["scan", "folder as it is", "text as it is"])
def test_a_cloud_far_outside_what_training_met_warns_with_both_numbers(predictor_of, name):
    predictor = predictor_of(name)
    whole = read_whole(predictor.dataset()[0].path)
    near = predictor(whole.points, name="a").warnings

    found = predictor(whole.points * 1000.0, name="a").warnings

    norms = predictor.rule.norms
    assert near == ()
    assert len(found) == 1
    assert f"in training that was {norms.radius_min:.4g} to {norms.radius_max:.4g}" in found[0]
    assert "its farthest point is" in found[0]


def test_a_file_without_rule_takes_it_from_the_settings_of_its_run(tmp_path, caplog):
    run = train_case("meshes with z up", tmp_path)
    with_rule = Predictor(run).rule
    header_without_rule(run)

    found = Predictor(run).rule

    assert found == with_rule.model_copy(update={"norms": None})
    assert not caplog.records


def test_the_rule_stands_in_result_and_adapter_file(predictor_of):
    rule = predictor_of("folder with a pool").rule

    assert (rule.cut, rule.read_points, rule.num_points) == ("random", 100, 48)
    assert InputRule.model_validate(rule.model_dump(mode="json")) == rule
    assert rule.norms is not None
    assert rule.norms.radius_max == pytest.approx(1.0, abs=1e-5)


def test_a_bare_adapter_file_is_warned_about_once(predictor_of, tmp_path, caplog):
    from pcl_clora.engine import RunFolder
    from pcl_clora.engine.run.rule import load_input_rule

    run = train_case("meshes", tmp_path / "case")
    inside = load_input_rule(run)
    header_without_rule(run)
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(RunFolder(run).chosen.read_bytes())

    found = [load_input_rule(bare) for _ in range(2)]

    assert inside.cut == "random"
    assert load_input_rule(run) == inside.model_copy(update={"norms": None})
    assert found[0].frame == "unit_sphere"
    warned = [record for record in caplog.records if str(bare) in record.message]
    assert [(one.name, one.levelname) for one in warned] == [("pcl_clora", "WARNING")]


def test_weights_of_others_say_what_they_expect(caplog):
    from torch import nn

    from pcl_clora.engine.run.rule import rule_of_weights, warn_other_images

    model = nn.Sequential(nn.Identity())
    model[0].pretrained_cfg = {"input_size": (3, 224, 224), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}
    digits = InputRule(kind="images", image_mean=(0.5,) * 3, image_std=(0.5,) * 3)

    warn_other_images(digits, model)
    warn_other_images(digits, nn.Identity())

    assert rule_of_weights(model).image_size == 224
    assert rule_of_weights(nn.Identity()) is None
    assert ["image_mean=[0.5, 0.5, 0.5]" in one.message for one in caplog.records] == [True, False]
