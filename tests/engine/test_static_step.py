"""What a CUDA graph of a training step needs, as far as it can be seen without a GPU.

Shapes that do not depend on values, no value that the host waits for, no copy between host and device, and
one graph from torch.compile. Nothing is said here about a GPU itself.
"""

import traceback
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from pcl_clora.adapters import attach_adapter
from pcl_clora.engine import OptimConfig, Trainer, build_optimizer
from pcl_clora.models import create_model, get_interface
from tests.support.engine_cases import CLORA, EVERYTHING, tiny_config

SMALL = {
    "num_classes": 5,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_groups": 8,
    "group_size": 8,
    "encoder_widths": (8, 16, 32),
    "drop_path": 0.0,
}
NETWORKS = {
    "point_mae": ("point_mae", SMALL),
    "recon": ("recon", SMALL),
    "pointgpt": ("pointgpt_s", {**SMALL, "generator_depth": 1}),
    "point_bert": ("point_bert", {**SMALL, "encoder_dim": 16}),
    "parts": (
        "point_mae",
        {
            **{key: value for key, value in SMALL.items() if key != "num_classes"},
            "task": "part_segmentation",
            "num_parts": 5,
            "num_categories": 3,
            "propagation_widths": (20, 24),
            "segmentation_widths": (16, 12),
        },
    ),
}
IMAGES = (
    "timm/vit_tiny_patch16_224",
    {"num_classes": 5, "image_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2},
)
METHODS = ("full", "lora", "clora", "linear_probe")
ATEN = torch.ops.aten
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Where a step may look at a value, and why a captured step can leave the place out.
ON_CPU_ONLY = {  # each asks for the device first; the test on a fake device sees none of them
    "part_segmentation.py:check_category",
    "part_segmentation.py:forward",  # torch's one_hot, which looks at its values on a CPU
    "masked_autoencoder.py:chamfer_loss",
}


class Watch(TorchDispatchMode):
    """Notes who reads a value or copies between devices, and the shape of everything that is computed."""

    def __init__(self):
        super().__init__()
        self.reads, self.copies, self.shapes = set(), set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        by_mask = func is ATEN.index.Tensor and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if DATA_DEPENDENT & set(func.tags) and (func is not ATEN.index.Tensor or by_mask):
            self.reads.add(own_place())
        there = kwargs.get("device")
        given = [leaf.device.type for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        if func is ATEN.lift_fresh.default or (there and given and torch.device(there).type not in given):
            self.copies.add(own_place())
        result = func(*args, **kwargs)
        self.shapes.append((func, [leaf.shape for leaf in tree_leaves(result) if hasattr(leaf, "shape")]))
        return result


def own_place():
    """File and function of ours that asked."""
    frames = [
        frame for frame in traceback.extract_stack() if "pcl_clora/" in frame.filename.replace("\\", "/")
    ]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].name}" if frames else "torch"


def adapted(network, method):
    torch.manual_seed(0)
    name, settings = NETWORKS[network]
    return attach_adapter(create_model(name, **settings), {"method": method})


def make_inputs(model, seed=0, device="cpu"):
    interface = get_interface(model.base)
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(4, 128, 3, generator=generator).to(device) * 2 - 1
    category = torch.zeros(4, dtype=torch.int64).to(device)
    return (points, category) if interface.takes_category else (points,)


def loss_of(model, inputs):
    logits = model(*inputs).flatten(0, -2)
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target) + sum(model.extra_losses().values())


def step(model, optimizer, inputs):
    optimizer.zero_grad(set_to_none=True)
    loss_of(model, inputs).backward()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(learned, 10.0, foreach=True)
    optimizer.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "point_bert"])
def test_forward_backward_and_optimiser_read_no_value_and_have_static_shapes(network, method):
    model = adapted(network, method).train()
    optimizer = build_optimizer(model, OptimConfig())
    step(model, optimizer, make_inputs(model))  # makes the state of the optimiser
    shapes = []
    for seed in (1, 2):
        inputs = make_inputs(model, seed)
        with Watch() as watch:
            step(model, optimizer, inputs)
        assert watch.reads <= ON_CPU_ONLY
        shapes.append(watch.shapes)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_forward_pass_on_a_device_neither_reads_values_nor_copies_from_the_host(network, method):
    model = adapted(network, method).train()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # a value that is read raises here
            try:
                inputs = make_inputs(model, device="cuda")
                model.to("cuda")
            except (AssertionError, RuntimeError) as error:
                pytest.skip(f"this torch has no such device, not even a fake one: {error}")
            with Watch() as watch:
                loss = loss_of(model, inputs)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert loss.device.type == "cuda"
    assert watch.copies == set()
    assert watch.reads == set()


@pytest.mark.parametrize("changes", [CLORA, EVERYTHING, {"optim": {"double_step": True}}])
def test_the_trainer_reads_values_once_a_step_when_the_optimiser_is_done(changes, tmp_path, monkeypatch):
    trainer = Trainer(tiny_config(changes, {"optim": {"epochs": 2}}), run_dir=tmp_path)
    watch, own, read = Watch(), trainer._step, torch.Tensor.tolist
    steps, when = [], []

    def reads(values):
        if watch in _get_current_dispatch_mode_stack():
            when.append(sum(func is ATEN._fused_adamw_.default for func, _ in watch.shapes))
        return read(values)

    def watched(batch):
        watch.shapes.clear()
        with watch:
            described = own(batch)
        steps.append(sum(func is ATEN._fused_adamw_.default for func, _ in watch.shapes))
        return described

    monkeypatch.setattr(torch.Tensor, "tolist", reads)
    trainer._step = watched
    trainer.fit()
    assert watch.reads == set()
    assert when == steps  # once in every step, behind all its updates
    assert set(steps) == {2 * (2 if changes.get("optim", {}).get("double_step") else 1)}  # two groups
    assert watch.copies <= {"randomness.py:capture_rng_state"}  # of the host's own generators, for a snapshot


def test_the_watch_sees_what_it_is_for():
    x = torch.rand(4, 3)
    for look in (
        lambda: x.sum().item(),
        lambda: x.nonzero(),
        lambda: x[x > 0.5],
        lambda: bool((x > 0).all()),
    ):
        with Watch() as watch:
            look()
        assert watch.reads == {"torch"}
    for fine in (lambda: x[torch.tensor([1, 2])], lambda: x.sum(), lambda: x[1:]):
        with Watch() as watch:
            fine()
        assert watch.reads == set()
    with Watch() as watch:
        torch.tensor([1.0])
    assert watch.copies == {"torch"}


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
@pytest.mark.parametrize("method", ["clora", "lora"])
@pytest.mark.parametrize("network", ["point_mae", "recon", "pointgpt", "point_bert", "timm"])
def test_backbone_and_adapter_compile_to_one_graph(network, method, merged):
    if network == "timm":
        pytest.importorskip("timm")
        torch.manual_seed(0)
        name, settings = IMAGES
        model = attach_adapter(create_model(name, **settings), {"method": method})
        inputs = (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
    else:
        model = adapted(network, method)
        inputs = make_inputs(model)
    model.eval()
    if merged:
        model.merge()
    torch._dynamo.reset()
    with torch.no_grad() if merged else nullcontext():
        found = torch._dynamo.explain(model)(*inputs)
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clora", "lora"])
def test_a_model_in_training_mode_compiles_to_one_graph_too(method):
    model = adapted("point_mae", method).train()
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(*make_inputs(model))
    assert found.graph_break_count == 0, found.break_reasons
