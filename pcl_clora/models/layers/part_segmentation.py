"""Part segmentation: the head of the Point-MAE family, and what turns a backbone into a segmenter.

The head carries token features to every point and classifies the points. It is computed by two exact
rewrites of the published form (9.05 instead of 15.45 G MACs for Point-MAE at 2,048 points, together with that
of the patch encoder); `published_form` switches them off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.models.config import TransformerConfig
from pcl_clora.models.interface import ModelInterface, Opening, Tokens
from pcl_clora.models.layers.maximum import max_over_tokens
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.product import Affine, Linear
from pcl_clora.models.layers.transformer import NoPrefix, affine_parts
from pcl_clora.models.published import Rewritten

LABEL_SLOPE = 0.2  # of the LeakyReLU behind the embedding of a category
DIST2_EPS = 1e-8  # added to squared distances before they are inverted

Near = tuple[Tensor, Tensor]  # of every point three places (B, N, 3), int64, and their weights (B, N, 3)


def interpolation_weights(points: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three nearest centres of every point and their weights.

    Args:
        points: (B, N, 3).
        center: (B, M, 3), same unit.

    Returns:
        idx (B, N, 3), int64, and weight (B, N, 3): inverse squared distances that sum to 1.

    Source: Qi et al., PointNet++, NeurIPS 2017, section 3.4, with squared distances as the released part
        segmentation models have them.
    """
    nearest = ops.three_nn(center, points)
    inverse = 1.0 / (nearest.dist2 + DIST2_EPS)
    return nearest.idx, inverse / inverse.sum(dim=-1, keepdim=True)


def rows_norm(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Normalise channels over clouds and points: (B, N, C) -> (B, N, C)."""
    normed: Tensor = norm(x.reshape(-1, x.shape[-1]))
    return normed.view_as(x)


class PointwiseLayer:
    """One step of a head: linear layer, BatchNorm, ReLU, with an exact rewrite and folding.

    Not a module: it computes with a linear layer and a BatchNorm that their owner registers.

    Args:
        linear: C -> C'.
        norm: over C'.
        fold: fold the BatchNorm into the linear layer in evaluation mode.
    """

    def __init__(self, linear: Linear, norm: nn.BatchNorm1d, *, fold: bool) -> None:
        self.linear, self.norm = linear, norm
        self.folds = fold and not norm.training

    def published(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C'), the layers called one after another."""
        return F.relu(rows_norm(self.linear(x), self.norm))

    def parts(self, sizes: Sequence[int], biased: int = 0) -> tuple[Affine, ...]:
        """Cut the linear layer by its input, see `affine_parts`; BatchNorm included where it is folded."""
        return affine_parts(self.linear, self.norm if self.folds else None, sizes, biased)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C')."""
        (whole,) = self.parts(())
        return whole(x, "relu") if self.folds else self.finish(whole(x))

    def finish(self, x: Tensor) -> Tensor:
        """Apply what the parts do not hold, in place: (B, N, C') -> (B, N, C')."""
        if self.folds:
            return F.relu(x, inplace=True)
        # In place on what the norm made, not on a view of it, whose gradient would be copied twice.
        rows: Tensor = self.norm(x.reshape(-1, x.shape[-1]))
        return F.relu(rows, inplace=True).view_as(x)


class FeaturePropagation(Rewritten, nn.Module):
    """Carry features from a few points to many, and mix them with the coordinates there.

    The published form interpolates features and then applies its first layer to [xyz, features]. Both are
    linear in the features, so here the layer's share of the features is computed at the few points and its
    result is interpolated; the share of the coordinates stays at the many points.

    Args:
        in_features: C, width of the features, the coordinates not counted.
        widths: widths of its two layers.
        fold: fold BatchNorm in evaluation mode.
        num_extra: channels that stand before xyz in the input of the first layer, the same for all points of
            a cloud (Point-BERT: the category).

    Source: Qi et al., PointNet++, NeurIPS 2017, section 3.4; the rewrite is ours.
    """

    def __init__(
        self, in_features: int, widths: Sequence[int], *, fold: bool = True, num_extra: int = 0
    ) -> None:
        super().__init__()
        first, second = widths
        self.linear1 = Linear(num_extra + 3 + in_features, first)
        self.linear2 = Linear(first, second)
        self.norm1 = nn.BatchNorm1d(first)
        self.norm2 = nn.BatchNorm1d(second)
        self.num_extra = num_extra
        self.fold = fold

    def forward(
        self,
        points: Tensor,
        center: Tensor,
        features: Tensor,
        extra: Tensor | None = None,
        near: Near | None = None,
    ) -> Tensor:
        """Propagate.

        Args:
            points: (B, N, 3), where features are wanted.
            center: (B, M, 3), where they are.
            features: (B, M, C).
            extra: (B, num_extra), if num_extra is not 0.
            near: what `interpolation_weights` says of them, if it is at hand.

        Returns:
            (B, N, widths[1]).
        """
        idx, weight = interpolation_weights(points, center) if near is None else near
        first = PointwiseLayer(self.linear1, self.norm1, fold=self.fold)
        second = PointwiseLayer(self.linear2, self.norm2, fold=self.fold)
        if self.published:
            known = [points, ops.three_interpolate(features.to(weight.dtype), idx, weight)]
            if extra is not None:
                known.insert(0, extra[:, None].expand(-1, points.shape[1], -1))
            return second.published(first.published(torch.cat(known, dim=-1)))
        sizes = (self.num_extra, 3, self.linear1.in_features - 3 - self.num_extra)
        of_extra, of_xyz, of_features = first.parts(sizes, biased=1)
        projected = of_features(features).to(weight.dtype)  # no operator takes bfloat16
        x = of_xyz(points) + ops.three_interpolate(projected, idx, weight)
        if extra is not None:
            x = x + of_extra(extra)[:, None]
        return second(first.finish(x))


class CategoryEmbedding(nn.Module):
    """Turn a category into a vector: linear layer without bias on its one-hot code, BatchNorm, LeakyReLU."""

    def __init__(self, num_categories: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(num_categories, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, category: Tensor) -> Tensor:
        """(B,) int64 -> (B, width)."""
        code = F.one_hot(category, self.linear.in_features).to(self.linear.weight.dtype)
        return F.leaky_relu(self.norm(self.linear(code)), LABEL_SLOPE)


class SegmentationHead(Rewritten, nn.Module):
    """Classify every point from token features: the head of the Point-MAE family's part segmentation.

    Global features (maximum, mean, category) are the same for all points of a cloud, so their share of the
    first classification layer is computed once a cloud; the published form does it for every point.

    Args:
        in_features: C, width of the token features: fetched layers x width of a token.
        num_parts: P, logits a point.
        num_categories: categories the network is told.
        propagation_widths: of the two layers of the feature propagation.
        widths: hidden widths of the classifier.
        label_width: width of a category's embedding.
        extra_features: width of further global features of the backbone.
        dropout: behind the first classification layer.
        fold: fold BatchNorm in evaluation mode.

    Source: Pang et al., Point-MAE, ECCV 2022, released part segmentation model; the rewrites are ours.
    """

    def __init__(
        self,
        in_features: int,
        num_parts: int,
        num_categories: int,
        *,
        propagation_widths: Sequence[int] = (1536, 1024),
        widths: Sequence[int] = (512, 256),
        label_width: int = 64,
        extra_features: int = 0,
        dropout: float = 0.5,
        fold: bool = True,
    ) -> None:
        super().__init__()
        first, second = widths
        self.label = CategoryEmbedding(num_categories, label_width)
        self.propagation = FeaturePropagation(in_features, propagation_widths, fold=fold)
        num_global = 2 * in_features + extra_features + label_width
        self.linear1 = Linear(propagation_widths[1] + num_global, first)
        self.norm1 = nn.BatchNorm1d(first)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = Linear(first, second)
        self.norm2 = nn.BatchNorm1d(second)
        self.linear3 = Linear(second, num_parts)
        self.num_parts, self.num_categories = num_parts, num_categories
        self.fold = fold

    def forward(
        self,
        points: Tensor,
        center: Tensor,
        features: Tensor,
        category: Tensor,
        extra: Tensor | None = None,
        pooled: Tensor | None = None,
        near: Near | None = None,
    ) -> Tensor:
        """Classify points.

        Args:
            points: (B, N, 3).
            center: (B, G, 3), where the features are.
            features: (B, G, C).
            category: (B,), int64, 0 <= category < num_categories.
            extra: (B, extra_features), global features of the backbone.
            pooled: (B, 2 C), what stands in place of maximum and mean over the features.
            near: what `interpolation_weights` says of points and center, if it is at hand.

        Returns:
            (B, N, P) logits.
        """
        known = [max_over_tokens(features), features.mean(dim=1)] if pooled is None else [pooled]
        known += [self.label(category)] if extra is None else [extra, self.label(category)]
        shared = torch.cat(known, dim=-1)
        x = self.propagation(points, center, features, near=near)
        first = PointwiseLayer(self.linear1, self.norm1, fold=self.fold)
        second = PointwiseLayer(self.linear2, self.norm2, fold=self.fold)
        if self.published:
            everywhere = shared[:, None].expand(-1, x.shape[1], -1)
            x = first.published(torch.cat([x, everywhere], dim=-1))
            published: Tensor = self.linear3(second.published(self.dropout(x)))
            return published
        of_own, of_shared = first.parts((x.shape[-1], shared.shape[-1]), biased=1)
        x = self.dropout(first.finish(of_own(x) + of_shared(shared)[:, None]))
        logits: Tensor = self.linear3(second(x))
        return logits


class Fetched(NamedTuple):
    """What a segmentation head gets from the transformer.

    Attributes:
        center: (B, G, 3), patch centres.
        features: (B, G, C), outputs of the fetched blocks side by side, each after the last norm.
        extra: (B, E) further global features, or None.
        pooled: (B, 2 C), what stands in place of maximum and mean over the features; None for these.
    """

    center: Tensor
    features: Tensor
    extra: Tensor | None
    pooled: Tensor | None = None


if TYPE_CHECKING:
    _Transformer = PatchTransformer
else:
    _Transformer = object  # mixed in before a PatchTransformer, whose methods it replaces


class PartSegmenter(_Transformer):
    """Turns a backbone into one that segments parts: mix it in before the backbone's class.

    The part "head" of the interface is everything behind the transformer: a new taxonomy replaces all of it,
    and adapters train all of it, as the published parameter-efficient part segmentation does.

    Attributes:
        keeps_prefix: the learned tokens before the patches stay; the published networks leave most out.
    """

    config: TransformerConfig
    head: SegmentationHead
    keeps_prefix: ClassVar[bool] = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.decoding = Opening()

    def make_prefix(self) -> nn.Module:
        """Build the learned tokens of a network that keeps them; nothing otherwise."""
        return super().make_prefix() if self.keeps_prefix else NoPrefix(self.config.embed_dim)

    def describe(self) -> ModelInterface:
        """Say where the parts are; the head takes the category as a second input.

        Blocks behind the last fetched one never run.
        """
        interface = super().describe()
        count = self.config.fetched[-1] + 1
        parts = {**interface.parts}
        if isinstance(self.prefix, NoPrefix):
            parts["tokens"] = ()
        return replace(
            interface,
            blocks=interface.blocks[:count],
            parts=parts,
            unused=(*interface.unused, *interface.blocks[count:]),
            places={"norm": interface.places["norm"], "decoder": "decoding"},
            takes_category=True,
            fetched=self.config.fetched,
        )

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: learned tokens, if there are any."""
        return set() if isinstance(self.prefix, NoPrefix) else super().no_weight_decay()

    def fetch(self, tokens: Tokens) -> Fetched:
        """Run the blocks up to the last fetched one, and gather what the head looks at."""
        outputs = list(islice(self.block_outputs(tokens), self.num_run()))
        fetched: Fetched = self.decoding(self.gather, tokens, outputs, self.config.fetched)
        return fetched

    def num_run(self) -> int:
        """Count the blocks that run: those up to the last fetched one."""
        return self.config.fetched[-1] + 1

    def gather(self, tokens: Tokens, outputs: list[Tensor], fetched: Sequence[int]) -> Fetched:
        """Put side by side what the head looks at.

        Args:
            tokens: the sequence as it entered the first block.
            outputs: (B, T, D) of every block that ran.
            fetched: numbers of those that are looked at.
        """
        found = [outputs[number] for number in fetched]
        features = torch.cat([self.norm(x[:, tokens.num_prefix :]) for x in found], dim=-1)
        return Fetched(tokens.center, features, self.global_features(found[-1]))

    def global_features(self, last: Tensor) -> Tensor | None:
        """Make further global features (B, E) of the last fetched output (B, T, D); None for none."""
        return None

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, G, C), the fetched outputs side by side, after the last norm."""
        return self.fetch(self.tokenize(points)).features

    def forward(self, points: Tensor, category: Tensor) -> Tensor:  # type: ignore[override]
        """Segment clouds.

        Args:
            points: (B, N, 3), float32, centred and scaled to the unit sphere, N >= num_groups.
            category: (B,), int64, what the clouds show, 0 <= category < num_categories.

        Returns:
            (B, N, num_parts) logits over the parts of all categories. The official models return their
            log-softmax.

        Raises:
            TypeError: if points or category is no tensor of the right type.
            ValueError: if points or category has another shape.
        """
        self.check_points(points)
        self.check_category(points, category)
        return self.forward_head(self.fetch(self.tokenize(points)), points, category)

    def forward_head(  # type: ignore[override]
        self, features: Fetched, points: Tensor, category: Tensor, **chosen: Any
    ) -> Tensor:
        """What the transformer gives, points (B, N, 3) and category (B,) -> (B, N, num_parts) logits.

        Args:
            features: see `fetch`.
            points: float32.
            category: int64.
            chosen: what `choose_for_head` gave, if it is at hand.
        """
        instead = {} if features.pooled is None else {"pooled": features.pooled}
        given = (features.center, features.features, category, features.extra)
        result: Tensor = self.head(points, *given, **instead, **chosen)
        return result

    def choose_for_head(self, points: Tensor, center: Tensor) -> dict[str, Any]:
        """Choose the points that the head looks up, from places alone; an exported graph is handed them.

        Args:
            points: (B, N, 3).
            center: (B, G, 3), patch centres.
        """
        return {"near": interpolation_weights(points, center)}

    def check_category(self, points: Tensor, category: Tensor) -> None:
        """Require one int64 category a cloud, and on the CPU also in range.

        Raises:
            TypeError: if it is no tensor.
            ValueError: if it is not; the message says what to pass.
        """
        if not isinstance(category, Tensor):
            raise UserTypeError(
                f"category is a {type(category).__name__}; give a tensor ({points.shape[0]},) int64, one "
                "category number a cloud."
            )
        if category.shape != points.shape[:1] or category.dtype != torch.int64:
            raise UserValueError(
                f"category is {tuple(category.shape)} {category.dtype}; expected ({points.shape[0]},) int64, "
                "one category number a cloud."
            )
        limit = self.num_categories
        if torch.compiler.is_compiling() or category.device.type != "cpu":
            return  # a value cannot be read there
        if not bool(((category >= 0) & (category < limit)).all()):
            raise UserValueError(
                f"category holds {int(category.min())}..{int(category.max())}, but this model knows "
                f"0..{limit - 1}; make it with another num_categories."
            )

    @property
    def num_categories(self) -> int:
        """How many categories the head knows."""
        return int(self.head.num_categories)

    def make_classifier(self, num_classes: int, num_categories: int | None = None) -> SegmentationHead:
        """Build a new head for this network without attaching it.

        Args:
            num_classes: P, parts of all categories together.
            num_categories: of the new taxonomy; None for as many as before.
        """
        config = self.config
        if num_categories is None:
            num_categories = self.num_categories if hasattr(self, "head") else config.num_categories
        return SegmentationHead(
            len(config.fetched) * config.embed_dim,
            num_classes,
            num_categories,
            propagation_widths=config.propagation_widths,
            widths=config.segmentation_widths,
            label_width=config.label_width,
            extra_features=self.num_extra_features(),
            dropout=config.head_dropout,
            fold=config.fold_batchnorm,
        )

    def num_extra_features(self) -> int:
        """Width of what `global_features` makes."""
        return 0

    def reset_classifier(self, num_classes: int, num_categories: int | None = None) -> None:
        """Replace the whole head by a new one, on the device, in the dtype and in the mode of the old one.

        Args:
            num_classes: P, parts of all categories together.
            num_categories: of the new taxonomy; None for as many as before.
        """
        like, training = next(self.head.parameters()), self.head.training
        head = self.make_classifier(num_classes, num_categories)
        self.head = head.to(like.device, like.dtype).train(training)
        self.num_classes = num_classes
