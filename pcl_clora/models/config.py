"""Settings that every backbone has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from pcl_clora.config import Config
from pcl_clora.errors import UserValueError

Task = Literal["classification", "part_segmentation", "pretraining"]

SEGMENTATION_ONLY = (
    "segmentation_head",
    "num_parts",
    "num_categories",
    "fetch_layers",
    "propagation_widths",
    "segmentation_widths",
    "label_width",
    "num_upsampled",  # of Point-BERT
)
"""Settings that no other task has; they are not written into the settings of other tasks."""


class ModelConfig(Config):
    """Settings of a backbone with its head; a backbone's own settings are in a subclass next to its code."""

    adoptable: ClassVar[tuple[str, ...]] = ()  # settings that come with weights where nobody gave them

    name: str  # which backbone, see list_models()
    task: Task = "classification"  # which head stands on it
    num_classes: PositiveInt = 40  # number of logits of a classification head

    @property
    def num_views(self) -> int:
        """How many views of every cloud a training step is given."""
        return 1

    def adopt(self, recorded: Mapping[str, object]) -> Self:
        """Take over what weights were trained with, where these settings were left open.

        Args:
            recorded: settings of the model that the weights were trained in; others than `adoptable` are
                passed over.

        Returns:
            These settings, or a copy in which what was taken over counts as given.
        """
        taken = {
            name: recorded[name]
            for name in self.adoptable
            if name in recorded and name not in self.model_fields_set
        }
        return self.model_copy(update=taken) if taken else self


class TransformerConfig(ModelConfig):
    """Settings that the patch transformers of the Point-MAE family share."""

    adoptable: ClassVar[tuple[str, ...]] = ("fps_compat",)

    embed_dim: PositiveInt = 384  # D, width of a token
    depth: PositiveInt = 12  # number of blocks
    num_heads: PositiveInt = 6  # attention heads, must divide embed_dim
    num_groups: PositiveInt = 128  # G, patches a cloud: 64 for 1,024 points, 128 for 2,048
    group_size: PositiveInt = 32  # K, points a patch
    encoder_dim: NonNegativeInt = 0  # width of the patch encoder's result; 0 = embed_dim
    encoder_widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (128, 256, 512)  # its hidden widths
    mlp_ratio: PositiveFloat = 4.0  # hidden width of a block's MLP / embed_dim
    drop_path: float = Field(default=0.1, ge=0.0, lt=1.0)  # of the last block; grows linearly from 0
    head_width: PositiveInt = 256  # hidden width of the classification head
    head_dropout: float = Field(default=0.5, ge=0.0, lt=1.0)  # dropout of the head
    # "pointnet2" never picks points within 0.0316 of the origin; left open, it comes with official weights.
    fps_compat: Literal["none", "pointnet2"] = "none"
    fold_batchnorm: bool = True  # fold BatchNorm into the layer before it in evaluation mode
    encoder_chunk: PositiveInt = (
        32  # patches that run through a frozen patch encoder together; changes no bit
    )

    # Part segmentation only
    # "small" gives the three widths below that are left open values of our choice; the fields then hold them.
    segmentation_head: Literal["published", "small"] = "published"
    num_parts: PositiveInt = 50  # P, number of logits a point: the parts of all categories together
    num_categories: PositiveInt = 16  # object categories, which the network is told
    fetch_layers: tuple[NonNegativeInt, ...] = ()  # blocks whose output the head sees; () = 3, 7, 11 of 12
    propagation_widths: tuple[PositiveInt, PositiveInt] = (1536, 1024)  # of what carries features to points
    segmentation_widths: tuple[PositiveInt, PositiveInt] = (512, 256)  # hidden widths of the head
    label_width: PositiveInt = 64  # width of a category's embedding

    @property
    def num_logits(self) -> int:
        """Width of what the network puts out: classes, or parts of all categories together."""
        return self.num_parts if self.task == "part_segmentation" else self.num_classes

    @property
    def fetched(self) -> tuple[int, ...]:
        """Which blocks a segmentation head looks at: `fetch_layers`, by default every third of the depth."""
        return self.fetch_layers or tuple(sorted({max(self.depth * k // 3 - 1, 0) for k in (1, 2, 3)}))

    def left_out(self) -> frozenset[str]:
        """Name what belongs to part segmentation or pre-training in other tasks; see `Config.left_out`."""
        segmentation = () if self.task == "part_segmentation" else SEGMENTATION_ONLY
        pretraining = () if self.task == "pretraining" else ("pretraining",)
        later = self.at_default("encoder_chunk", "segmentation_head")
        return super().left_out().union(segmentation, pretraining, later)

    @classmethod
    def small_head(cls, embed_dim: int) -> Mapping[str, object]:
        """Give the widths of `segmentation_head="small"`: our choice, a few per cent of the published cost.

        Args:
            embed_dim: D, width of a token.
        """
        return {"propagation_widths": (128, 96), "segmentation_widths": (96, 64), "label_width": 32}

    @model_validator(mode="before")
    @classmethod
    def _fill_small_head(cls, values: object) -> object:
        if not isinstance(values, Mapping) or values.get("segmentation_head") != "small":
            return values
        embed_dim = values.get("embed_dim", cls.model_fields["embed_dim"].default)
        return {**(cls.small_head(embed_dim) if isinstance(embed_dim, int) else {}), **values}

    @model_validator(mode="after")
    def _check_segmentation(self) -> TransformerConfig:
        given = [name for name in SEGMENTATION_ONLY if name in self.model_fields_set]
        if given and self.task != "part_segmentation":
            raise UserValueError(
                f"{given[0]} belongs to part segmentation, but task={self.task!r}; set "
                "task=part_segmentation, or leave it out."
            )
        layers = self.fetch_layers
        too_deep = bool(layers) and layers[-1] >= self.depth and self.task == "part_segmentation"
        if list(layers) != sorted(set(layers)) or too_deep:
            raise UserValueError(
                f"fetch_layers={list(layers)} must be ascending block numbers below depth={self.depth}; "
                f"leave it empty for {list(self.model_copy(update={'fetch_layers': ()}).fetched)}."
            )
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerConfig:
        if self.embed_dim % self.num_heads:
            raise UserValueError(
                f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}."
            )
        return self


class PretrainingConfig(Config):
    """Settings of masked autoencoding that only the pre-training form of a backbone has."""

    mask_ratio: float = Field(default=0.6, gt=0.0, lt=1.0)  # share of the patches that is hidden
    mask: Literal["random", "block"] = "random"  # hide patches anywhere, or those around one patch
    loss: Literal["chamfer_l2", "chamfer_l1"] = "chamfer_l2"  # of squared distances, or of distances
    decoder_depth: PositiveInt = 4  # blocks of the decoder
    decoder_heads: NonNegativeInt = 0  # its attention heads, must divide embed_dim; 0 = num_heads
    embed: Literal["all", "visible"] = "all"  # patches that the patch encoder sees; published: all
    # Initial weights of the encoder: normal with deviation 0.02, as published, or what the layers start with.
    init: Literal["normal", "default"] = "normal"

    @property
    def num_views(self) -> int:
        """How many views of every cloud a training step is given."""
        return 1

    def left_out(self) -> frozenset[str]:
        """Name the settings that came later, where they have their default; see `Config.left_out`."""
        return super().left_out() | self.at_default("init")


class ViewsPretrainingConfig(PretrainingConfig):
    """Settings of masked autoencoding of two views of a cloud, whose features are compared."""

    contrast: NonNegativeFloat = 0.0  # weight of the comparison; 0 = one view, as published
    temperature: PositiveFloat = 0.1  # of the comparison; set it with contrast only

    @property
    def num_views(self) -> int:
        """How many views of every cloud a training step is given."""
        return 2 if self.contrast else 1

    @model_validator(mode="after")
    def _check_temperature(self) -> ViewsPretrainingConfig:
        if "temperature" in self.model_fields_set and not self.contrast:
            raise UserValueError(
                f"temperature={self.temperature:g} is of the comparison, which contrast=0 switches off; "
                "leave it out, or set contrast."
            )
        return self

    def left_out(self) -> frozenset[str]:
        """Leave both settings out where nothing is compared."""
        unused = frozenset() if self.contrast else frozenset({"contrast", "temperature"})
        return super().left_out() | unused


class MaskedConfig(TransformerConfig):
    """Settings of a backbone that has a masked autoencoder as its pre-training form."""

    pretraining: PretrainingConfig = PretrainingConfig()  # read with task="pretraining" only

    @property
    def num_masked(self) -> int:
        """How many patches of a cloud are hidden in pre-training: the ratio of all, rounded down."""
        return int(self.pretraining.mask_ratio * self.num_groups)

    @property
    def num_views(self) -> int:
        """How many views of every cloud a training step is given: two where views are compared."""
        return self.pretraining.num_views if self.task == "pretraining" else 1

    @model_validator(mode="after")
    def _check_pretraining(self) -> MaskedConfig:
        if self.task != "pretraining":
            return self
        if self.num_masked == 0:
            raise UserValueError(
                f"mask_ratio={self.pretraining.mask_ratio:g} hides none of num_groups={self.num_groups} "
                "patches; raise one of them."
            )
        heads = self.pretraining.decoder_heads
        if heads and self.embed_dim % heads:
            raise UserValueError(f"embed_dim={self.embed_dim} is not a multiple of decoder_heads={heads}.")
        return self
