"""Settings that every data set has."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeInt, PositiveInt, model_validator

from pcl_clora.config import Config


class DataConfig(Config):
    """Settings of a data set; a data set's own settings are in a subclass next to its reader."""

    reads_files: ClassVar[bool] = True  # whether `root` must be given

    name: str  # which data set, see list_datasets()
    root: str = ""  # folder of the files; empty where nothing is read from disk
    num_points: PositiveInt = 1024  # N, points of a cloud that the model sees
    pool_points: NonNegativeInt = 0  # points read a cloud, of which num_points are resampled; 0 = num_points

    @property
    def read_points(self) -> int:
        """Points that a sample of this data set holds."""
        return self.pool_points or self.num_points

    @model_validator(mode="after")
    def _check_pool(self) -> DataConfig:
        if 0 < self.pool_points < self.num_points:
            raise ValueError(
                f"pool_points={self.pool_points} is less than num_points={self.num_points}; raise it, or set "
                "it to 0 to read num_points."
            )
        return self
