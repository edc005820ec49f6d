"""What a backbone says of input that it cannot take, and that nothing about its door hinders a compiler."""

import numpy as np
import pytest
import torch

from pcl_clora.errors import PclCloraError
from pcl_clora.models import create_model
from pcl_clora.models.registry import model_classes
from tests.support.model_cases import TINY

FORMS = sorted((name, task) for name, task in model_classes() if name != "timm")
LARGE = ("pointgpt_b", "pointgpt_l")  # their patch encoder has one width more


def make(name, task="classification", **changes):
    torch.manual_seed(0)
    sizes = {key: value for key, value in TINY.items() if name not in LARGE or key != "encoder_widths"}
    if task == "part_segmentation":
        sizes |= {"num_parts": 6, "num_categories": 4, "fetch_layers": (0, 1, 2)}
        sizes |= {"num_upsampled": (32, 16), "propagation_widths": (32, 48)} if name == "point_bert" else {}
    return create_model(name, task=task, **{**sizes, **changes}).eval()


def inputs_for(task, points):
    extra = (torch.zeros(len(points), dtype=torch.int64),) if task == "part_segmentation" else ()
    return (points, *extra)


@pytest.mark.parametrize(("name", "task"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64], ids=str)
def test_points_of_another_type_are_named_with_the_cast(name, task, dtype, points):
    said = rf"points are {str(dtype)[6:]}, convert with \.float\(\)"
    with pytest.raises(TypeError, match=said) as error:
        make(name, task)(*inputs_for(task, points.to(dtype)))
    assert isinstance(error.value, PclCloraError)


@pytest.mark.parametrize("method", ["forward_features", "tokenize", "group"])
def test_every_door_of_a_backbone_names_the_type(method, points):
    with pytest.raises(TypeError, match="points are float64"):
        getattr(make("point_mae"), method)(points.double())


def test_a_model_of_double_precision_takes_doubles(points):
    model = make("point_mae").double()
    assert model(points.double()).dtype == torch.float64
    with pytest.raises(TypeError, match=r"points are float32, convert with \.double\(\)"):
        model(points)


def test_a_model_in_half_precision_runs_under_autocast_only(points):
    model = make("point_mae").bfloat16()
    with pytest.raises(TypeError, match=r"The model is bfloat16.*model\.float\(\)"):
        model(points)
    with torch.autocast("cpu"):
        assert model(points).isfinite().all()


@pytest.mark.parametrize(
    "given", [np.zeros((2, 64, 3)), [[0.0, 0.0, 0.0]], None], ids=["numpy", "list", "None"]
)
def test_what_is_no_tensor_is_named(given):
    with pytest.raises(TypeError, match=r"takes a tensor, for example torch\.as_tensor\(points\)\.float\(\)"):
        make("point_mae")(given)


@pytest.mark.parametrize(("name", "task"), FORMS)
def test_an_empty_batch_is_said_to_be_empty(name, task):
    with pytest.raises(ValueError, match=r"The batch is empty: points have shape \(0, 128, 3\)"):
        make(name, task)(*inputs_for(task, torch.zeros(0, 128, 3)))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((128, 3), r"shape \(128, 3\); expected \(B, N, 3\)"),
        ((2, 3, 128), r"shape \(2, 3, 128\); expected \(B, N, 3\)"),
        ((2, 128, 6), r"shape \(2, 128, 6\); expected \(B, N, 3\)"),
        ((2, 128, 3, 1), r"expected \(B, N, 3\)"),
        ((2, 0, 3), r"A cloud of 0 points is too small"),
        ((), r"expected \(B, N, 3\)"),
    ],
)
@pytest.mark.parametrize("task", ["classification", "part_segmentation", "pretraining"])
def test_points_of_another_shape_are_named(shape, said, task):
    given = torch.zeros(shape)
    extra = (torch.zeros(2, dtype=torch.int64),) if task == "part_segmentation" else ()
    with pytest.raises(ValueError, match=said):
        make("point_mae", task)(given, *extra)


def test_a_category_that_is_no_tensor_is_named(points):
    with pytest.raises(TypeError, match=r"category is a list; give a tensor \(2,\) int64"):
        make("point_mae", "part_segmentation")(points, [0, 1])


# A captured graph multiplies by torch, a model by the faster of two libraries, which round differently.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
RUNNING = [form for form in FORMS if form[1] != "pretraining"]
TRAINING = [(name, "classification") for name in ("point_mae", "recon", "point_bert", "pointgpt_s")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), RUNNING)
def test_every_backbone_is_exported_whole(name, task, points):
    model, given = make(name, task), inputs_for(task, points)
    with torch.no_grad():
        program = torch.export.export(model, given)
        torch.testing.assert_close(program.module()(*given), model(*given), **CLOSE)


def assert_compiles(name, task, points, *, training):
    settings = {"drop_path": 0.0, "head_dropout": 0.0}
    model, given = make(name, task, **settings).train(training), inputs_for(task, points)
    again = make(name, task, **settings).train(training)
    torch._dynamo.reset()
    compiled = torch.compile(again, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), model(*given), **CLOSE)
    assert set(getattr(again, "_auxiliary", {})) == set(getattr(model, "_auxiliary", {}))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), RUNNING)
def test_every_backbone_is_compiled_in_one_graph(name, task, points):
    assert_compiles(name, task, points, training=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), TRAINING)
def test_a_training_step_is_compiled_in_one_graph(name, task, points):
    assert_compiles(name, task, points, training=True)


@pytest.mark.slow
def test_a_batch_of_another_size_runs_through_an_exported_program(points):
    model = make("point_mae")
    shapes = {"points": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(model, (points,), dynamic_shapes=shapes).module()
        more = torch.cat([points, points.flip(0), points])
        torch.testing.assert_close(program(more), model(more), **CLOSE)


def test_clouds_are_mapped_over(points):
    """`vmap` sees shapes without the mapped dimension; the door reads no values."""
    model = make("point_mae")
    tokens = model.tokenize(points)
    head = torch.func.vmap(lambda x: model.forward_head(x[None])[0])(model.encode(tokens))
    torch.testing.assert_close(head, model(points), **CLOSE)
