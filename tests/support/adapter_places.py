"""Small networks of every kind and task, and one trained adapter of every method on each, made once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.models import create_model
from tests.support import adapter_cases as cases

SIZES = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_groups": 12,
    "group_size": 8,
    "encoder_widths": (8, 16, 32),
}
CLASSIFIER = {"num_classes": cases.CLASSES, "head_width": 16}
SEGMENTER = {
    "depth": 3,  # Point-BERT's head reads three blocks
    "task": "part_segmentation",
    "num_parts": 7,
    "num_categories": 3,
    "propagation_widths": (20, 24),
    "segmentation_widths": (16, 12),
    "label_width": 6,
}
OWN = {
    ("point_bert", "classification"): {"encoder_dim": 16},
    ("point_bert", "part_segmentation"): {"encoder_dim": 16, "num_upsampled": (48, 24)},
    ("pointgpt_s", "classification"): {"generator_depth": 1},
    ("pointgpt_s", "part_segmentation"): {"generator_depth": 1},
}
IMAGES = "timm/vit_tiny_patch16_224"
IMAGE_SIZES = {"image_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
NETWORKS = ("point_mae", "recon", "recon_plain", "point_bert", "pointgpt_s", "pcp_mae")


@dataclass(frozen=True)
class Place:
    """A network and its task."""

    backbone: str
    task: str = "classification"

    def __str__(self) -> str:
        return self.backbone.split("/")[0] + ("" if self.task == "classification" else "_parts")


ALL_SETTINGS = ("point_mae", "plain")  # the other places take one or two of every method
PLACES = [
    *(Place(name) for name in ("plain", "bare", *NETWORKS, IMAGES)),
    *(Place(name, "part_segmentation") for name in NETWORKS),
]


def make(place: Place) -> nn.Module:
    """A network in evaluation mode whose BatchNorm statistics are not those of a fresh layer."""
    return copy.deepcopy(_made(place))


@cache
def _made(place: Place) -> nn.Module:
    torch.manual_seed(2)  # at which no ReLU of dapt is closed for all tokens, as some are at 0
    if place.backbone in cases.BACKBONES and place.backbone in ("plain", "bare"):
        model = cases.BACKBONES[place.backbone]()
    elif place.backbone == IMAGES:
        model = create_model(IMAGES, num_classes=cases.CLASSES, **IMAGE_SIZES)
    else:
        own = OWN.get((place.backbone, place.task), {})
        model = create_model(
            place.backbone,
            **{**SIZES, **(SEGMENTER if place.task != "classification" else CLASSIFIER), **own},
        )
    model.train()
    with torch.no_grad():
        model(*inputs(place, seed=1))
    return model.eval()


def inputs(place: Place, count: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
    """What a network of a place takes: clouds of 96 points, with categories, or images."""
    generator = torch.Generator().manual_seed(seed)
    if place.backbone == IMAGES:
        return (torch.rand(count, 3, 16, 16, generator=generator),)
    points = torch.rand(count, 96, 3, generator=generator) * 2 - 1
    return (points,) if place.task == "classification" else (points, torch.arange(count) % 3)


def settings_of(place: Place, setting: str) -> dict[str, object]:
    """The settings of a case at a place."""
    case = cases.CASES[setting]
    return {**case.settings, **(case.in_parts if place.task == "part_segmentation" else {})}


def refusal(place: Place, setting: str) -> str:
    """What is said where a place cannot have a method; empty where it can."""
    names = [str(place), place.backbone.split("/")[0]] + ["parts"] * (place.task == "part_segmentation")
    refused = cases.CASES[setting].refused
    return next((refused[name] for name in names if name in refused), "")


PAIRS = [
    (place, setting)
    for place in PLACES
    for setting in (cases.SETTINGS if str(place) in ALL_SETTINGS else cases.FEW_SETTINGS)
]
TAKEN = [pair for pair in PAIRS if not refusal(*pair)]
REFUSED = [pair for pair in PAIRS if refusal(*pair)]


class Trained:
    """An adapter called "someone" after noise and a step of training, and what was seen on the way.

    Tests leave `model` as it is, or take a copy.
    """

    def __init__(self, place: Place, setting: str) -> None:
        self.place, self.setting, self.case = place, setting, cases.CASES[setting]
        base, self.inputs = make(place), inputs(place)
        self.bare = base(*self.inputs)
        self.model = attach_adapter(base, settings_of(place, setting), "someone")
        self.start = self.model(*self.inputs)
        self.before = cases.snapshot(cases.shake(self.model))
        self.with_gradient = train(self.model, place)
        self.after = cases.snapshot(self.model)
        self.logits = self.model(*self.inputs)

    def copy(self) -> AdaptedModel:
        """A model of its own that is the same."""
        return copy.deepcopy(self.model)

    @cached_property
    def double(self) -> tuple[AdaptedModel, tuple[Tensor, ...]]:
        """The same in float64, with its inputs."""
        given = tuple(value.double() if value.is_floating_point() else value for value in self.inputs)
        return self.copy().double(), given

    @cached_property
    def pair(self) -> AdaptedModel:
        """The same with another adapter, "second", which was trained a step."""
        model = attach_adapter(self.copy(), {"method": "clora", "rank": 2, "num_spaces": 2}, "second")
        train(cases.shake(model, seed=4), self.place)
        return model


@lru_cache(maxsize=1)
def trained(place: Place, setting: str) -> Trained:
    """The trained adapter of a case at a place; tests that follow one another share it."""
    return Trained(place, setting)


def train(model: AdaptedModel, place: Place) -> set[str]:
    """One optimiser step with weight decay, so that a parameter whose gradient is zero moves, too.

    Returns:
        The names of the parameters that had a gradient.
    """
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    logits = model.train()(*inputs(place, seed=2))
    labels = torch.arange(logits[..., 0].numel()).view(logits.shape[:-1]) % logits.shape[-1]
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    (loss + sum(model.extra_losses().values())).backward()
    optimizer.step()
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return found
