"""What the estimators share: parameters, training on clouds in memory, a state that can be pickled."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from pcl_clora.config import build, merge
from pcl_clora.data.arrays import HeldClouds, held_clouds
from pcl_clora.engine import RunConfig, RunFolder, Trainer
from pcl_clora.errors import MissingPackageError, UserTypeError, UserValueError
from pcl_clora.io import atomic_write
from pcl_clora.predict import Prediction, Predictor

Cloud = NDArray[Any]


class NotFittedError(UserValueError, AttributeError):
    """The estimator was asked for something before `fit`."""


class PointEstimator:
    """Trains an adapter on a frozen backbone from clouds in memory, as scikit-learn's estimators do.

    Parameters are kept as they are given; `clone`, `get_params` and `set_params` work. The fitted state is
    the adapter file, so that estimators can be pickled and copied, and sent to other processes.

    Attributes:
        adapter_: bytes of the adapter file; there after `fit`.
    """

    adapter_: bytes

    def __init__(
        self,
        *,
        model: str = "point_mae_tiny",
        weights: str = "builtin",
        method: str = "clora",
        num_points: int = 1024,
        steps: int = 300,
        batch_size: int = 16,
        lr: float = 2e-3,
        augment: str = "scale_shift",
        up: str = "y",
        random_state: int = 0,
        device: str = "auto",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.weights = weights
        self.method = method
        self.num_points = num_points
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.augment = augment
        self.up = up
        self.random_state = random_state
        self.device = device
        self.settings = settings

    # Parameters, as scikit-learn asks for them

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name.

        Raises:
            ValueError: if one is not known; lists those that are.
        """
        known = self._names()
        for name, value in params.items():
            if name not in known:
                raise UserValueError(
                    f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        given = {name: value for name, value in self.get_params().items() if value != defaults[name].default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "adapter_")

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn."""
        try:
            from sklearn.utils import Tags, TargetTags, TransformerTags
        except ImportError as error:
            raise MissingPackageError(
                "Only scikit-learn asks for this: pip install 'pcl-clora[sklearn]'."
            ) from error
        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=True),
            transformer_tags=TransformerTags(),
            requires_fit=True,
        )

    # Training

    def _train(self, held: HeldClouds, model: Mapping[str, Any]) -> None:
        """Train on held clouds, and keep the adapter file."""
        count = len(held.clouds)
        batch = min(self.batch_size, count)
        if batch < 2:
            raise UserValueError(f"fit was given {count} clouds in batches of {batch}; give two or more.")
        if self.steps < 1:
            raise UserValueError(f"steps={self.steps}; give 1 or more.")
        epochs = math.ceil(self.steps / (count // batch))
        with held_clouds(held) as number, tempfile.TemporaryDirectory() as folder:
            data = {"name": "arrays", "number": number, "num_points": self.num_points, "up": self.up}
            values = {
                "name": "estimator",
                "seed": self.random_state,
                "model": {"name": self.model, **model},
                "weights": {"path": self.weights},
                "adapter": {"method": self.method},
                "data": data,
                "optim": {
                    **{"epochs": epochs, "batch_size": batch, "lr": self.lr, "step_unit": "step"},
                    "warmup_epochs": min(2.0, epochs / 10),
                },
                "augment": self.augment,
                "train": {
                    **{"device": self.device, "progress": "off", "checkpoint_every_steps": 0},
                    "novelty": 0,
                },
            }
            cfg = build(RunConfig, merge(values, dict(self.settings or {})), source=type(self).__name__)
            run = Trainer(cfg, run_dir=Path(folder) / "run").fit()
            self.adapter_ = RunFolder(run.run_dir).chosen.read_bytes()
        self.__dict__.pop("_predictor", None)

    # The fitted state

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_predictor"}

    @property
    def predictor_(self) -> Predictor:
        """The fitted model, as `pcl_clora.load` opens it.

        Raises:
            NotFittedError: before `fit`.
        """
        self._require_fitted()
        if "_predictor" not in self.__dict__:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "adapter.safetensors"
                file.write_bytes(self.adapter_)
                self.__dict__["_predictor"] = Predictor(file, weights=self.weights, device=self.device)
        found: Predictor = self.__dict__["_predictor"]
        return found

    def _require_fitted(self) -> None:
        if not hasattr(self, "adapter_"):
            raise NotFittedError(f"This {type(self).__name__} is not fitted; call fit(clouds, labels) first.")

    def save(self, path: str | Path) -> None:
        """Write the adapter file, which `pcl_clora.load` opens; whole or not at all."""
        self._require_fitted()

        def write(aside: Path) -> None:
            aside.write_bytes(self.adapter_)

        atomic_write(path, write)

    def _answers(self, clouds: Sequence[Cloud]) -> list[Prediction]:
        return self.predictor_.predict(check_clouds(clouds))

    def transform(self, clouds: Sequence[Cloud]) -> NDArray[np.float32]:
        """Describe every cloud by what enters the head: (n, F), float32; for other estimators."""
        return np.stack([said.feature for said in self._answers(clouds) if said.feature is not None])


def check_clouds(clouds: Sequence[Cloud]) -> list[Cloud]:
    """Require a list of clouds, each (N, 3) finite numbers, N >= 1.

    Raises:
        TypeError: if it is no list of them, or one cloud.
        ValueError: naming the first that is something else.
    """
    shape = getattr(clouds, "shape", None)
    if isinstance(clouds, str | Path | Mapping) or (shape is not None and len(shape) == 2):
        raise UserTypeError("X is one cloud or a name; give a list of arrays (N, 3), or an array (n, N, 3).")
    arrays = [np.asarray(cloud) for cloud in clouds]
    for place, cloud in enumerate(arrays):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud) or cloud.dtype.kind not in "iuf":
            raise UserValueError(
                f"X[{place}] is {cloud.dtype} {cloud.shape}; expected numbers (N, 3), N >= 1."
            )
        if not np.isfinite(cloud).all():
            raise UserValueError(f"X[{place}] has values that are not finite; remove these points.")
    return arrays
