"""Several adapters on one backbone, asked with one pass of what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from pcl_clora.adapters.paths import at_or_inside, tuner_layers
from pcl_clora.data import InputRule
from pcl_clora.data.input_rule import SeenCloud
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import Part
from pcl_clora.models.layers.shared_patches import shared_patches
from pcl_clora.predict.prediction import Prediction
from pcl_clora.predict.predictor import Predictor

PATCHES: tuple[Part, ...] = ("patch_embed", "pos_embed")  # parts that make the features of a patch


def same_view(first: InputRule, other: InputRule) -> bool:
    """Tell whether two rules show a model the same points of any cloud, whatever sizes training met."""
    if first.framed_by == "file":  # the sizes decide whether a cloud is moved
        return first == other
    return first.model_copy(update={"norms": None}) == other.model_copy(update={"norms": None})


def answer_several(
    predictors: Sequence[Predictor], seen: Sequence[SeenCloud], categories: Sequence[Sequence[int]]
) -> list[list[Prediction]]:
    """Predict clouds with predictors of `load_several`, whose rules show the same points.

    Grouping is computed once, and so are the features of the patches for the adapters that leave the patch
    encoder as it is.

    Args:
        predictors: on one backbone.
        seen: the clouds as they see them.
        categories: for every predictor the number of the category of every cloud; empty for classifiers.

    Returns:
        For every predictor its predictions, the same bits as from a pass of its own.

    Raises:
        ValueError: if they do not share a backbone, or see clouds differently.
    """
    first = predictors[0]
    for other in predictors[1:]:
        if other.model is not first.model or not same_view(first.rule, other.rule):
            raise UserValueError(
                f"{first.name} and {other.name} have no pass in common: another backbone, or another input "
                "rule; ask them one after another."
            )
    with first.lock, shared_patches() as shared:
        found, points = [], first.stack(seen)
        for predictor, numbers in zip(predictors, categories, strict=True):
            predictor.put_in_place()
            shared.embeds = keeps_patches(predictor)
            found.append(predictor.answer(seen, numbers, points=points))
        return found


def keeps_patches(predictor: Predictor) -> bool:
    """Tell whether the adapter in place leaves the features of the patches as the backbone makes them."""
    model = predictor.model
    made_by = [path for part in PATCHES for path in model.interface.parts.get(part, ())]
    changed = [path for path, tuner in tuner_layers(model.base).items() if tuner.active is not None]
    changed += model.slot(predictor.opened.adapter).copied
    return not any(
        at_or_inside(path, made_by) or at_or_inside(made, [path]) for path in changed for made in made_by
    )
