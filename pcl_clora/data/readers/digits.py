"""Images for the image backbones: a data set kept in memory, and the digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, field_validator, model_validator
from torch import Tensor

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import Batch, Sample, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.errors import UserIndexError, UserValueError
from pcl_clora.io import DataError

NUM_TEST_DIGITS = 360
"""Digits at the end of the list that are the test split, a fifth of all 1,797."""


class DigitsConfig(DataConfig):
    """Handwritten digits of 8 x 8 pixels in 17 grey levels, 1,797 of them; scikit-learn holds the file."""

    reads_files: ClassVar[bool] = False
    kind: ClassVar[Literal["points", "images"]] = "images"
    may_turn: ClassVar[bool] = False

    name: Literal["digits"] = "digits"
    classes: tuple[int, ...] = tuple(range(10))  # digits to use, in label order
    image_size: PositiveInt = 8  # height and width; other sizes than 8 are interpolated
    channels: PositiveInt = 1  # copies of the grey value
    num_points: PositiveInt = 64  # pixels of an image: image_size squared, set by it

    def left_out(self) -> frozenset[str]:
        """Name the settings that say nothing about images; see `Config.left_out`."""
        return super().left_out() | {"num_points", "pool_points"}

    def input_rule(self) -> InputRule:
        """Return the rule: grey values in 0..1 are brought to -1..1, in every channel."""
        half = (0.5,) * self.channels
        return self.make_rule(
            kind="images", frame="file", image_size=self.image_size, image_mean=half, image_std=half
        )

    @model_validator(mode="before")
    @classmethod
    def _count_pixels(cls, values: Any) -> Any:
        size = values.get("image_size", 8) if isinstance(values, Mapping) else None
        if not isinstance(size, int) or "num_points" in values:
            return values
        return {**values, "num_points": max(size, 1) ** 2}

    @model_validator(mode="after")
    def _check_no_points(self) -> DigitsConfig:
        if self.num_points != self.image_size**2 or self.pool_points:
            raise UserValueError(
                f"num_points={self.num_points} and pool_points={self.pool_points} are for clouds; set "
                "image_size only."
            )
        return self

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) != len(value) or not all(0 <= digit <= 9 for digit in value):
            raise UserValueError(f"classes={list(value)} must name digits from 0 to 9, none of them twice.")
        return value


class ImageArray:
    """A data set whose images are one tensor in memory; never changed.

    Args:
        images: (n, C, H, W), float32.
        labels: (n,), int64.
        class_names: in label order.
    """

    def __init__(self, images: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
        if images.ndim != 4 or images.dtype != torch.float32:
            raise UserValueError(
                f"images must be (n, C, H, W) float32, not {tuple(images.shape)} {images.dtype}."
            )
        if labels.shape != images.shape[:1]:
            raise UserValueError(f"{images.shape[0]} images need as many labels, not {tuple(labels.shape)}.")
        self.class_names = tuple(class_names)
        self.labels = labels.to(torch.int64)
        self._images = images

    def __len__(self) -> int:
        return self._images.shape[0]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):  # a for loop over a data set ends by this error
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        return Sample(points=self._images[index].clone(), label=int(self.labels[index]), index=index)

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Copy several images into one batch, whose `points` are (B, C, H, W)."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return Batch(points=self._images[index], label=self.labels[index], index=index)


class Digits(ImageArray):
    """scikit-learn's digits, grey values scaled to -1..1. The last 360 are the test split (our choice).

    Args:
        config: which digits, and how large.
        split: "train" or "test".

    Raises:
        DataError: if scikit-learn is not installed.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test
        part), as scikit-learn ships it.
    """

    def __init__(self, config: DigitsConfig, split: str) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError(
                "data.name=digits",
                "needs the package scikit-learn, which holds the images",
                'install it with: pip install "pcl-clora[images]"',
            ) from error
        read = load_digits()
        images = torch.from_numpy(read.images).float()[:, None] / 8.0 - 1.0
        digit = torch.from_numpy(read.target).to(torch.int64)
        first_test = len(images) - NUM_TEST_DIGITS
        part = slice(first_test, None) if check_split(split) == "test" else slice(0, first_test)
        images, digit = images[part], digit[part]
        label = torch.full((10,), -1)
        label[list(config.classes)] = torch.arange(len(config.classes))
        chosen = label[digit] >= 0
        images, digit = images[chosen], digit[chosen]
        if config.image_size != images.shape[-1]:
            size = (config.image_size, config.image_size)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        self.config = config
        super().__init__(
            images.repeat(1, config.channels, 1, 1), label[digit], [str(one) for one in config.classes]
        )
