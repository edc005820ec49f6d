"""Clouds as vectors: of the frozen backbone in the package, or of a run or an adapter file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pcl_clora.data import InputRule
from pcl_clora.data.frame import parse_axis
from pcl_clora.data.input_rule import SeenCloud
from pcl_clora.data.readers.whole import WholeCloud, read_whole
from pcl_clora.engine import choose_device
from pcl_clora.engine.randomness import make_generator, seeded_apart
from pcl_clora.errors import UserValueError
from pcl_clora.models import build_model, load_weights
from pcl_clora.models.builtin import BUILTIN, builtin_card, list_builtin
from pcl_clora.models.layers.transformer import pool_max_mean
from pcl_clora.models.registry import parse_model_config
from pcl_clora.predict.predictor import BATCH_SIZE, Cloud, Predictor
from pcl_clora.predict.stream import Times, read_ahead

DIM = 128  # numbers of a vector, unless told otherwise


class Embedder:
    """Turns clouds into vectors: near ones belong to clouds that look alike.

    The vector of the backbone in the package is the maximum beside the mean of its patch tokens, that of a
    run or an adapter file is what enters its head. A vector longer than asked for is brought down to `dim`
    numbers by orthonormal directions that a seed decides, so that those of today and tomorrow compare.

    Args:
        model: "builtin", the folder of a run, an adapter file, or a predictor.
        dim: numbers of a vector; 0 for all.
        device: "auto", "cpu" or "cuda".
        up: axis that points up in the clouds.

    Attributes:
        name: of the model.
        digest: SHA-256 of its weights or of its adapter; vectors of another one mean something else.
        dim: numbers of a vector.
        rule: which points the model sees.
    """

    def __init__(
        self,
        model: str | Path | Predictor = BUILTIN,
        *,
        dim: int = DIM,
        device: str = "auto",
        up: str | None = None,
    ) -> None:
        if dim < 0:
            raise UserValueError(f"dim={dim}; give 1 or more, or 0 for the whole vector.")
        self._predictor: Predictor | None = None
        self._backbone: Any = None
        if isinstance(model, Predictor):
            self._predictor = model
        elif str(model) != BUILTIN:
            self._predictor = Predictor(model, device=device, up=parse_axis(up or ""))
        if self._predictor is not None:
            found = self._predictor
            if found.segments:
                raise UserValueError(
                    f"{found.name} segments parts; embed with a classification run, or with the backbone in "
                    "the package."
                )
            self.name, self.digest, self.rule = found.name, found.digest, found.rule
        else:
            (self.name,) = list_builtin()
            self.digest = str(builtin_card(self.name)["sha256"])
            with seeded_apart(0):  # the class token is not in the weights; no vector holds it
                backbone = build_model(parse_model_config({"name": self.name}))
            load_weights(backbone, BUILTIN)
            self._backbone = backbone.eval().to(choose_device(device))
            axis = parse_axis(up or "") or "y"
            self.rule = InputRule(centre_on="cut", cut="random", draw=("embedding",), repeat=True, up=axis)
        self.dim = min(dim or self.width, self.width)

    @property
    def width(self) -> int:
        """Numbers of a whole vector."""
        if self._predictor is None:
            return 2 * int(self._backbone.interface.embed_dim)
        interface = self._predictor.model.interface
        return interface.num_pooled * interface.embed_dim

    def see(self, cloud: Cloud | WholeCloud, name: str = "") -> SeenCloud:
        """Read a cloud as the model sees it."""
        if self._predictor is not None:
            return self._predictor.see(cloud, name=name)
        if isinstance(cloud, str | Path):
            name, cloud = name or self.rule.name_of(cloud), read_whole(cloud)
        if isinstance(cloud, WholeCloud):
            return self.rule.see(cloud.points, name=name, faces=cloud.faces, inside=cloud.inside)
        return self.rule.see(np.asarray(cloud), name=name)

    def vectors(self, seen: Sequence[SeenCloud]) -> NDArray[np.float32]:
        """Describe clouds that were seen: (B, dim), float32."""
        whole = self._whole(seen)
        if whole.shape[1] <= self.dim:
            return whole
        return np.asarray(whole @ directions(whole.shape[1], self.dim), dtype=np.float32)

    def _whole(self, seen: Sequence[SeenCloud]) -> NDArray[np.float32]:
        if self._predictor is not None:
            said = self._predictor.answer(seen)
            return np.stack([each.feature for each in said if each.feature is not None])
        few = torch.stack([each.points for each in seen]).to(next(self._backbone.parameters()).device)
        with torch.inference_mode():
            tokens = self._backbone.tokenize(few)
            patches = self._backbone.encode(tokens)[:, tokens.num_prefix :]
            return np.asarray(pool_max_mean(patches).float().cpu().numpy())

    def __call__(self, clouds: Iterable[Cloud], *, batch_size: int = BATCH_SIZE) -> NDArray[np.float32]:
        """Describe files or arrays, see `Predictor.predict`: (n, dim), float32.

        Raises:
            DataError: if a file cannot be read.
            ValueError: if points are not (N, 3) or not finite.
        """
        found, batch = [], list[SeenCloud]()
        for cloud in clouds:
            batch.append(self.see(cloud))
            if len(batch) == batch_size:
                found.append(self.vectors(batch))
                batch = []
        found += [self.vectors(batch)] if batch else []
        return np.concatenate(found) if found else np.zeros((0, self.dim), np.float32)

    def embed_files(
        self, files: Iterable[str], *, jobs: int = 1, batch_size: int = BATCH_SIZE, times: Times | None = None
    ) -> Iterator[Embedded]:
        """Describe files one batch after another; one that cannot be read gives its error."""

        def see(whole: WholeCloud, file: str) -> tuple[SeenCloud, ...]:
            predictor = self._predictor
            named = self.rule.name_of(file) if predictor is None else predictor.name_of(file)
            return (self.see(whole, named),)

        for batch in read_ahead(files, see, jobs=jobs, batch_size=batch_size, times=times):
            good = [one.seen[0] for one in batch if not one.error]
            vectors = iter(self.vectors(good)) if good else iter(())
            for one in batch:
                if one.error:
                    yield Embedded(one.file, error=one.error)
                else:
                    yield Embedded(one.file, next(vectors), one.seen[0])


@dataclass(frozen=True)
class Embedded:
    """What became of a file.

    Attributes:
        file: the cloud.
        vector: (dim,), float32; None after an error.
        seen: the cloud as the model saw it.
        error: why there is no vector.
    """

    file: str
    vector: NDArray[np.float32] | None = None
    seen: SeenCloud | None = None
    error: str = ""


def directions(width: int, dim: int) -> NDArray[np.float32]:
    """Choose `dim` orthonormal directions of a space of `width`, always the same: (width, dim), float32.

    Distances shrink by about (dim / width) ** 0.5, all alike up to a few percent.

    Source: Johnson and Lindenstrauss, Extensions of Lipschitz mappings into a Hilbert space, 1984.
    """
    drawn = torch.randn(width, dim, generator=make_generator("embedding", width, dim), dtype=torch.float64)
    found, upper = np.linalg.qr(drawn.numpy())
    return np.asarray(found * np.sign(np.diag(upper)), dtype=np.float32)


def embed(
    paths: Iterable[Cloud], dim: int = DIM, *, model: str | Path | Predictor = BUILTIN, device: str = "auto"
) -> NDArray[np.float32]:
    """Describe every cloud by a vector; near vectors belong to clouds that look alike.

    Args:
        paths: files or arrays (N, 3).
        dim: numbers of a vector; 0 for all that the model gives.
        model: "builtin", the folder of a run, or an adapter file; see `Embedder`.
        device: "auto", "cpu" or "cuda".

    Returns:
        (n, dim), float32; less where the model gives less.

    Raises:
        DataError: if a file cannot be read.

    Example:
        >>> vectors = pcl_clora.embed(["chair1.ply", "chair2.ply", "lamp.ply"])
    """
    return Embedder(model, dim=dim, device=device)(paths)
