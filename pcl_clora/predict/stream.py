"""Many clouds through one or several models: read ahead, predicted in batches; none stops the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from pcl_clora.data.input_rule import SeenCloud
from pcl_clora.data.readers.whole import WholeCloud, read_whole
from pcl_clora.errors import PclCloraError, UserValueError
from pcl_clora.predict.prediction import Prediction
from pcl_clora.predict.predictor import BATCH_SIZE, Predictor
from pcl_clora.predict.several import answer_several, same_view

AHEAD = 2  # batches that are read while one is predicted


@dataclass(frozen=True)
class Answered:
    """What became of a cloud.

    Attributes:
        file: the cloud.
        whole: as it was read; None after an error.
        said: for every predictor what it says; empty after an error.
        seconds: for reading, and this cloud's share of the models' time.
        error: why there is no answer.
    """

    file: str
    whole: WholeCloud | None
    said: tuple[Prediction, ...]
    seconds: float
    error: str = ""


@dataclass
class Times:
    """Where the time of a stream went, in seconds.

    Attributes:
        reading: files, and bringing clouds into the frame of the model; over all threads.
        predicting: the models.
        waiting: the models had nothing to do, because reading was behind.
    """

    reading: float = 0.0
    predicting: float = 0.0
    waiting: float = 0.0


@dataclass(frozen=True)
class Read:
    """What became of a file when it was read.

    Attributes:
        file: the cloud.
        seconds: that it took.
        whole: as it was read; None after an error.
        seen: what was made of it.
        error: why it could not be read.
    """

    file: str
    seconds: float
    whole: WholeCloud | None = None
    seen: tuple[SeenCloud, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Group:
    """Predictors that are asked in one pass: they share a backbone, and see clouds alike.

    Attributes:
        places: of the predictors in the list that was given.
        predictors: themselves.
    """

    places: list[int] = field(default_factory=list)
    predictors: list[Predictor] = field(default_factory=list)


def group_predictors(predictors: Sequence[Predictor]) -> list[Group]:
    """Put predictors together that can be asked in one pass."""
    groups: list[Group] = []
    for place, one in enumerate(predictors):
        for group in groups:
            first = group.predictors[0]
            if first.model is one.model and same_view(first.rule, one.rule):
                break
        else:
            group = Group()
            groups.append(group)
        group.places.append(place)
        group.predictors.append(one)
    return groups


def predict_files(
    predictors: Predictor | Sequence[Predictor],
    files: Iterable[str],
    category: str = "",
    *,
    jobs: int = 1,
    batch_size: int = BATCH_SIZE,
    times: Times | None = None,
) -> Iterator[Answered]:
    """Predict files one batch after another; a file that cannot be read or predicted gives its error.

    Args:
        predictors: one, or several; those on one backbone are asked in one pass.
        files: see `read_whole`; only some batches of them are in memory.
        category: what the clouds show, in part segmentation.
        jobs: threads that read ahead.
        batch_size: clouds that go through the model together.
        times: is filled with where the time went.

    Yields:
        What became of every file, in their order.

    Raises:
        ConfigError: if a segmenter does not know the category.
        UserValueError: if jobs or batch_size is below 1.
    """
    several = [predictors] if isinstance(predictors, Predictor) else list(predictors)
    numbers = [one.category(category) if one.segments else 0 for one in several]
    groups, spent = group_predictors(several), times or Times()
    firsts = [group.predictors[0] for group in groups]

    def see(whole: WholeCloud, file: str) -> tuple[SeenCloud, ...]:
        return tuple(first.see(whole, name=first.name_of(file)) for first in firsts)

    for batch in read_ahead(files, see, jobs=jobs, batch_size=batch_size, times=spent):
        began = time.perf_counter()
        answers = _answer(batch, groups, numbers)
        spent.predicting += time.perf_counter() - began
        yield from answers


def read_ahead(
    files: Iterable[str],
    see: Callable[[WholeCloud, str], tuple[SeenCloud, ...]],
    *,
    jobs: int = 1,
    batch_size: int = BATCH_SIZE,
    times: Times | None = None,
) -> Iterator[list[Read]]:
    """Read files in threads, some batches ahead of who takes them.

    Args:
        files: see `read_whole`.
        see: what is made of a cloud and the name of its file, in the thread that read it.
        jobs: threads.
        batch_size: files of a batch.
        times: reading and waiting are added to it.

    Yields:
        Batches in the order of the files; a file that cannot be read gives its error.

    Raises:
        UserValueError: if jobs or batch_size is below 1.
    """
    if jobs < 1 or batch_size < 1:
        raise UserValueError(f"jobs={jobs}, batch_size={batch_size}; give 1 or more.")
    spent, rest = times or Times(), iter(files)
    with ThreadPoolExecutor(jobs, thread_name_prefix="read") as pool:
        waiting: deque[Future[Read]] = deque()
        try:
            while True:
                for file in islice(rest, (AHEAD + 1) * batch_size - len(waiting)):
                    waiting.append(pool.submit(_read, file, see))
                if not waiting:
                    return
                began = time.perf_counter()
                batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
                spent.waiting += time.perf_counter() - began
                spent.reading += sum(one.seconds for one in batch)
                yield batch
        finally:
            for future in waiting:
                future.cancel()


def _read(file: str, see: Callable[[WholeCloud, str], tuple[SeenCloud, ...]]) -> Read:
    began = time.perf_counter()
    try:
        whole = read_whole(file)
        seen = see(whole, file)
    except (PclCloraError, OSError, MemoryError) as error:
        return Read(file, time.perf_counter() - began, error=_message(error))
    return Read(file, time.perf_counter() - began, whole, seen)


def _answer(batch: Sequence[Read], groups: Sequence[Group], numbers: Sequence[int]) -> list[Answered]:
    """Ask the models about the clouds of a batch that could be read."""
    began = time.perf_counter()
    good = [one for one in batch if not one.error]
    found: list[list[Prediction]] = [[] for _ in numbers]
    for place, group in enumerate(groups):
        if good:
            categories = [[numbers[k]] * len(good) for k in group.places]
            seen = [one.seen[place] for one in good]
            for k, said in zip(group.places, answer_several(group.predictors, seen, categories), strict=True):
                found[k] = said
    share = (time.perf_counter() - began) / max(len(good), 1)
    said_of = iter(zip(*found, strict=True))
    return [
        Answered(one.file, one.whole, (), one.seconds, one.error)
        if one.error
        else Answered(one.file, one.whole, next(said_of), one.seconds + share)
        for one in batch
    ]


def _message(error: BaseException) -> str:
    """Say what is wrong; a system's message may be empty."""
    return str(error) or type(error).__name__
