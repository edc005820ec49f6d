"""From a file or points to what the models say, for many at once: read apart, asked in batches, bounded."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcl_clora.data import InputRule
from pcl_clora.data.frame import parse_axis
from pcl_clora.data.input_rule import SeenCloud
from pcl_clora.errors import PclCloraError, UserValueError
from pcl_clora.io.apart import Readers, RefusedFileError, StrangeFile
from pcl_clora.io.text import line_of, visible
from pcl_clora.predict import Embedder, Prediction, Predictor, answer_several
from pcl_clora.predict.embedding import directions
from pcl_clora.predict.stream import group_predictors
from pcl_clora.serve.admission import Admission, Held, PointBudget
from pcl_clora.serve.batching import Batcher
from pcl_clora.serve.metrics import Metrics
from pcl_clora.serve.refusals import Refusal, of_file, stopping, timeout
from pcl_clora.serve.settings import ServeSettings

BUILTIN = "builtin"
"""What the backbone in the package is called where vectors are asked for."""

MOST_DIM = 4096


@dataclass(frozen=True)
class Given:
    """A cloud that somebody sent.

    Attributes:
        name: that the sender gave it, with the ending that says its format; shown as it is printable.
        content: its file; or numbers (N, 3) in float64.
        part: which cloud of the file, where it holds several.
        up: axis that points up in it; "" for that of the model.
    """

    name: str
    content: Path | NDArray[np.float64]
    part: str = ""
    up: str = ""


@dataclass(frozen=True)
class Ask:
    """What is asked of it.

    Attributes:
        models: names, each once; empty for the first one that is served.
        category: what the cloud shows, for models of parts that know several categories.
    """

    models: tuple[str, ...] = ()
    category: str = ""


@dataclass(frozen=True)
class Said:
    """What was answered.

    Attributes:
        whole: the cloud as it was read.
        predictions: (predictor, what it says).
        seconds: since the request began.
    """

    whole: StrangeFile
    predictions: tuple[tuple[Predictor, Prediction], ...]
    seconds: float


@dataclass(frozen=True)
class _Item:
    """A cloud on its way through the models: as each group of them sees it, with its category of each."""

    whole: StrangeFile
    seen: tuple[SeenCloud, ...]
    numbers: tuple[int, ...] = ()


Key = tuple[Literal["predict", "embed"], tuple[str, ...]]


class Service:
    """Models that answer many who ask at once.

    Args:
        predictors: of `load_several`, each of another name.
        settings: limits.
    """

    def __init__(self, predictors: Sequence[Predictor], settings: ServeSettings) -> None:
        self.predictors = {one.name: one for one in predictors}
        self.settings = settings
        self.admission, self.budget = Admission(settings.queue), PointBudget(settings.max_waiting_points)
        self.metrics = Metrics(lambda: self.admission.count, lambda: self.budget.used)
        self.folder = Path(tempfile.mkdtemp(prefix="pcl-clora-serve-"))
        self._readers = Readers(settings.readers, settings.max_points)
        self._reading = ThreadPoolExecutor(settings.readers, thread_name_prefix="read")
        self._writing = ThreadPoolExecutor(2, thread_name_prefix="write")
        self._embedders: dict[str, Embedder] = {}
        self._opening = threading.Lock()
        self._batcher: Batcher[Key, _Item, Any] = Batcher(
            self._answer, settings.batch, settings.wait_ms / 1000, self.metrics.batch
        )

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._batcher.alive

    @property
    def app_folder(self) -> Path:
        """Where files of the page for people are."""
        return self.folder / "app"

    def close(self) -> None:
        """Answer what waits, then end threads and processes, and remove what was uploaded."""
        self._batcher.close()
        self._reading.shutdown(wait=True, cancel_futures=True)
        self._writing.shutdown(wait=True, cancel_futures=True)
        self._readers.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def chosen(self, names: Sequence[str]) -> tuple[Predictor, ...]:
        """Find models by their names; the first one where none is named, all of them by "all".

        Raises:
            Refusal: 422, listing those that there are.
        """
        if not names:
            return (next(iter(self.predictors.values())),)
        if list(names) == ["all"]:
            return tuple(self.predictors.values())
        unknown = [name for name in names if name not in self.predictors]
        if unknown:
            raise Refusal(
                422, "unknown_model", f"there is no model {visible(unknown[0])!r}",
                f"choose from {line_of(self.predictors)}",
            )  # fmt: skip
        return tuple(self.predictors[name] for name in dict.fromkeys(names))

    @asynccontextmanager
    async def predicted(self, given: Given, ask: Ask, began: float) -> AsyncIterator[Said]:
        """Have a cloud predicted; it counts as in memory until the block is left.

        Args:
            given: the cloud.
            ask: the models.
            began: `time.monotonic()` of the request.

        Raises:
            Refusal: with the status that the request gets.
        """
        asked = self.chosen(ask.models)
        numbers = tuple(_category(one, ask.category) for one in asked)
        groups = group_predictors(asked)
        rules = [group.predictors[0] for group in groups]
        key: Key = ("predict", tuple(one.name for one in asked))
        async with self._held(began) as held:
            item = await self._read(given, rules, began, held)
            item = _Item(item.whole, item.seen, numbers)
            found: tuple[Prediction, ...] = await self._put(key, item, began)
            yield Said(item.whole, tuple(zip(asked, found, strict=True)), time.monotonic() - began)

    async def embedded(
        self, given: Given, model: str, dim: int, began: float
    ) -> tuple[str, NDArray[np.float32]]:
        """Describe a cloud by a vector: name of the model, and (dim,), float32.

        Args:
            given: the cloud.
            model: a classifier that is served, "builtin", or "" for the first one of these.
            dim: numbers of the vector; 0 for all.
            began: `time.monotonic()` of the request.

        Raises:
            Refusal: with the status that the request gets.
        """
        name = model or next((one.name for one in self.predictors.values() if not one.segments), BUILTIN)
        if name != BUILTIN and self.chosen([name])[0].segments:
            raise Refusal(
                422, "no_vectors", f"{name} labels parts and makes no vectors", f"ask with model={BUILTIN}"
            )
        if not 0 <= dim <= MOST_DIM:
            raise Refusal(422, "wrong_dim", f"dim={dim}", f"give 1 to {MOST_DIM}, or 0 for all numbers")
        embedder = await self.run(lambda: self._embedder(name), began)
        async with self._held(began) as held:
            item = await self._read(given, [embedder], began, held)
            whole: NDArray[np.float32] = await self._put(("embed", (name,)), item, began)
        width = len(whole)
        return name, whole if not 0 < dim < width else whole @ _directions(width, dim)

    async def run(self, work: Any, began: float) -> Any:
        """Do something in a thread, within the time of the request."""
        try:
            return await self._within(asyncio.get_running_loop().run_in_executor(self._writing, work), began)
        except RuntimeError as error:
            raise self._stopped(error) from error

    def left(self, began: float) -> float:
        """Seconds that a request may still take."""
        return self.settings.timeout_s - (time.monotonic() - began)

    async def _within(self, work: Any, began: float) -> Any:
        try:
            return await asyncio.wait_for(work, max(self.left(began), 0.001))
        except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
            raise timeout(self.settings.timeout_s) from None

    def _stopped(self, error: RuntimeError) -> Exception:
        """Tell that this ends from a fault; threads refuse work with an error of this class."""
        return error if self.alive else stopping()

    @asynccontextmanager
    async def _held(self, began: float) -> AsyncIterator[Held]:
        held = self.budget.hold()
        try:
            yield held
        finally:
            held.release()

    async def _read(
        self, given: Given, views: Sequence[Predictor | Embedder], began: float, held: Held
    ) -> _Item:
        try:
            work = asyncio.get_running_loop().run_in_executor(
                self._reading, self._read_now, given, views, began, held
            )
            found: _Item = await self._within(work, began)
        except RuntimeError as error:
            raise self._stopped(error) from error
        self.metrics.points.observe(len(found.whole.points))
        return found

    def _read_now(
        self, given: Given, views: Sequence[Predictor | Embedder], began: float, held: Held
    ) -> _Item:
        """Read a cloud and make of it what the models see; in a thread."""
        name = visible(given.name)
        whole = self._whole(given, name, self.left(began))
        self._check(name, whole.points)
        if not held.take(len(whole.points), self.left(began)):
            raise timeout(self.settings.timeout_s)
        up, seen = _axis(given.up), []
        if up is not None:  # whoever asks knows better than the format
            whole = replace(whole, up="")
        for view in views:
            rule = view.rule
            if up is not None and up != rule.up:
                rule = InputRule.model_validate({**rule.model_dump(), "up": up})
            drawn = view.name_of(given.name) if isinstance(view, Predictor) else rule.name_of(given.name)
            try:
                seen.append(rule.see(whole.points, name=drawn, faces=whole.faces, inside=whole.inside))
            except PclCloraError as error:
                raise Refusal(422, "unreadable_file", f"{name}: {error}", "send another cloud") from error
        return _Item(whole, tuple(seen))

    def _check(self, name: str, points: NDArray[np.float64]) -> None:
        """Refuse what is no shape, or too much of it."""
        if len(points) > self.settings.max_points:
            raise Refusal(
                413, "too_many_points", f"{name}: has {len(points):,} points; at most "
                f"{self.settings.max_points:,} are taken", "thin it out, or cut out the object",
            )  # fmt: skip
        if (points == points[0]).all():
            many = f"its {len(points):,} points are all at one place" if len(points) > 1 else "has one point"
            raise Refusal(422, "no_shape", f"{name}: {many}", "send a cloud of an object")

    def _whole(self, given: Given, name: str, seconds: float) -> StrangeFile:
        if not isinstance(given.content, Path):
            return StrangeFile(given.content, None, "")
        try:
            return self._readers.read(given.content, given.part, seconds=seconds)
        except RefusedFileError as error:
            raise of_file(name, error) from error

    async def _put(self, key: Key, item: _Item, began: float) -> Any:
        try:
            future = self._batcher.put(key, item)
        except RuntimeError as error:
            raise self._stopped(error) from error
        return await self._within(asyncio.wrap_future(future), began)

    def _answer(self, key: Key, items: Sequence[_Item]) -> Sequence[Any]:
        """Ask the models of a key about several clouds; in the thread of the models."""
        kind, names = key
        if kind == "embed":
            return list(self._embedder(names[0]).vectors([item.seen[0] for item in items]))
        asked = [self.predictors[name] for name in names]
        found: list[list[Prediction]] = [[] for _ in asked]
        for place, group in enumerate(group_predictors(asked)):
            categories = [[item.numbers[k] for item in items] for k in group.places]
            seen = [item.seen[place] for item in items]
            for k, said in zip(group.places, answer_several(group.predictors, seen, categories), strict=True):
                found[k] = said
        return list(zip(*found, strict=True))

    def _embedder(self, name: str) -> Embedder:
        """Open what makes vectors, once; whole ones."""
        with self._opening:
            if name not in self._embedders:
                self._embedders[name] = Embedder(self.predictors.get(name, BUILTIN), dim=0)
            return self._embedders[name]


def _category(predictor: Predictor, name: str) -> int:
    if not predictor.segments:
        return 0
    try:
        return predictor.category(name)
    except UserValueError as error:
        raise Refusal(
            422, "unknown_category", f"category={visible(name)!r} is none of {predictor.name}",
            f"choose from {line_of(predictor.taxonomy.categories)}",
        ) from error  # fmt: skip


def _axis(text: str) -> Any:
    try:
        return parse_axis(text)
    except UserValueError as error:
        raise Refusal(422, "wrong_axis", f"up={visible(text)!r}", "give x, y, z, -x, -y or -z") from error


@cache
def _directions(width: int, dim: int) -> NDArray[np.float32]:
    return directions(width, dim)
