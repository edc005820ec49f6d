"""Image transformers of timm, with the interface that adapters and reports need. timm is imported on use.

Two ways lead to it: `create_model("timm/vit_base_patch16_224")` makes a `TimmViT`, a thin wrapper with the
project's settings; and a model that timm made is ready for `attach_adapter` once it has
`model.interface = describe_timm(model)`.
"""

from __future__ import annotations

import fnmatch
from typing import Any, Literal, cast

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator
from torch import Tensor, nn

from pcl_clora.config import unknown_name
from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.models.config import ModelConfig
from pcl_clora.models.interface import ModelInterface, Part, is_tensor_path
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.checks import check_input

PREFIX = "timm/"
FAMILIES = ("vit_*", "deit*")
_LINEARS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_PARTS: dict[Part, tuple[str, ...]] = {
    "head": ("head", "head_dist"),
    "tokens": ("cls_token", "dist_token", "reg_token"),
    "patch_embed": ("patch_embed",),
    "pos_embed": ("pos_embed",),
}
_OWN_NAMES = (
    "cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.", "blocks.", "norm.",
    "fc_norm.", "attn_pool.", "head.", "head_dist.",
)  # fmt: skip


class TimmConfig(ModelConfig):
    """Settings of an image transformer of timm; 0 means: as the architecture says."""

    name: Literal["timm"] = "timm"
    architecture: str = "vit_base_patch16_224"  # a vit_* or deit* model of timm
    image_size: NonNegativeInt = 0  # height and width of an image, in pixels
    patch_size: NonNegativeInt = 0  # height and width of a patch
    channels: PositiveInt = 3  # of an image
    embed_dim: NonNegativeInt = 0  # D, width of a token
    depth: NonNegativeInt = 0  # number of blocks
    num_heads: NonNegativeInt = 0  # attention heads
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)  # of the last block; grows linearly from 0
    pretrained: bool = False  # fill it with timm's weights, which timm downloads

    @field_validator("architecture")
    @classmethod
    def _check_family(cls, value: str) -> str:
        if not any(fnmatch.fnmatch(value, family) for family in FAMILIES):
            raise UserValueError(
                f"architecture={value!r} is not one of timm's {' or '.join(FAMILIES)} models, whose blocks "
                "have the layers that adapters look for."
            )
        return value


def import_timm() -> Any:
    """Import timm.

    Raises:
        ImportError: if it is not installed; the message says how to get it.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            'Image transformers need the package timm: pip install "pcl-clora[images]".'
        ) from error
    return timm


def list_timm_models(pattern: str = "*") -> list[str]:
    """List the vit_* and deit* architectures of the installed timm that match a shell-style pattern."""
    timm = import_timm()
    names = {name for family in FAMILIES for name in timm.list_models(family)}
    return sorted(fnmatch.filter(names, pattern))


def describe_timm(model: nn.Module, prefix: str = "") -> ModelInterface:
    """Say where the parts of a vision transformer of timm are.

    Roles are those that every block has a linear layer for. The position embedding of the class token is a
    row of `pos_embed` in these models, so it belongs to that part, not to the tokens.

    Args:
        model: a model that `timm.create_model` made.
        prefix: dotted path of it in the model that will publish the interface, ending in a dot.

    Raises:
        ValueError: if its blocks have no fused q, k, v layer.
    """
    blocks = list(getattr(model, "blocks", ()))
    linears = {
        role: path
        for role, path in _LINEARS.items()
        if blocks and all(isinstance(_find(block, path), nn.Linear) for block in blocks)
    }
    dim = int(getattr(model, "embed_dim", 0))
    if "qkv" not in linears or any(_find(block, "attn.qkv").out_features != 3 * dim for block in blocks):
        raise UserValueError(
            f"{type(model).__name__} has no fused layer for q, k and v in every block, so adapters find no "
            "place in it; choose a plain vit_* or deit* model."
        )
    parts: dict[Part, tuple[str, ...]] = {
        part: tuple(prefix + name for name in names if _has_tensors(model, name))
        for part, names in _PARTS.items()
    }
    norms = (name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    parts["norms"] = tuple(prefix + name for name in norms)
    channels = int(_find(model, "patch_embed.proj.in_channels", 3))
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return ModelInterface(
        embed_dim=dim,
        blocks=tuple(f"{prefix}blocks.{index}" for index in range(len(blocks))),
        linears=linears,
        parts=parts,
        input_shape=(channels, int(size[0]), int(size[1])) if size else None,
    )


def _find(owner: Any, path: str, default: Any = None) -> Any:
    for step in path.split("."):
        owner = getattr(owner, step, None)
        if owner is None:
            return default
    return owner


def _has_tensors(model: nn.Module, name: str) -> bool:
    if getattr(model, name, None) is None:
        return False
    return is_tensor_path(model, name) or bool(list(model.get_submodule(name).parameters()))


class TimmViT(nn.Module):
    """A vision transformer of timm as a backbone: images -> logits.

    The distilled DeiTs have two heads, whose logits are averaged; both belong to the part "head".

    Args:
        config: which architecture, and where it differs from timm's.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if timm does not know the architecture, or its blocks are of another kind.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; Touvron et al., DeiT, ICML 2021; the
        code is timm's.
    """

    official_keys = KeyMap(tuple(Rule(name, f"vit.{name}") for name in _OWN_NAMES))

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        timm = import_timm()
        if config.architecture not in timm.list_models():
            raise UserValueError(
                unknown_name(config.architecture, list_timm_models(), what="timm architecture")
            )
        sizes = {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "embed_dim": config.embed_dim,
            "depth": config.depth,
            "num_heads": config.num_heads,
        }
        self.config = config
        self.num_classes = config.num_classes
        self.vit = timm.create_model(
            config.architecture,
            pretrained=config.pretrained,
            num_classes=config.num_classes,
            in_chans=config.channels,
            drop_path_rate=config.drop_path,
            **{key: value for key, value in sizes.items() if value},
        )
        self.interface = describe_timm(self.vit, prefix="vit.")

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (B, C, H, W), float32, normalised as the weights want it.

        Returns:
            (B, num_classes) logits.

        Raises:
            TypeError: if images is no tensor of the model's type.
            ValueError: if images has another shape, or there is none.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D), tokens after the last norm."""
        check_input(images, self, what="images")
        expected = self.interface.input_shape
        if expected is not None and (images.dim() != 4 or tuple(images.shape[1:]) != expected):
            raise UserValueError(
                f"images has shape {tuple(images.shape)}; expected (B, {', '.join(map(str, expected))}): "
                "batch, channels, height, width. Set model.image_size and model.channels to the data's."
            )
        return cast(Tensor, self.vit.forward_features(images))

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, T, D) -> (B, num_classes) logits."""
        return cast(Tensor, self.vit.forward_head(features))

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return cast(nn.Module, self.vit.head)

    def make_classifier(self, num_classes: int) -> nn.Module:
        """Build a new head for this network without attaching it."""
        return nn.Linear(self.vit.head.in_features, num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head (a distilled DeiT has two), on the device and in the dtype of the old one."""
        for path in self.interface.parts["head"]:
            name = path.removeprefix("vit.")
            like = next(getattr(self.vit, name).parameters())
            head = self.make_classifier(num_classes).to(like.device, like.dtype)
            setattr(self.vit, name, head.train(self.training))
        self.vit.num_classes = self.num_classes = num_classes

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: timm names them."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay() if _has_tensors(self.vit, name)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the blocks while training; compute them again in the backward pass."""
        self.vit.set_grad_checkpointing(enable)
