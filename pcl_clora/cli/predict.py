"""`pcl-clora predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, complain, interruptible, print_json, show

if TYPE_CHECKING:
    from pcl_clora.predict import Answered, Prediction, Predictor, Row, Times

SHOWN = 3  # names of files that are left out, or of rows that failed, before the rest is only counted


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Point files or meshes, folders of them, patterns such as 'scans/*.ply', h5 files (all "
            "rows) or file.h5#7.",
        ),
    ],
    run: Annotated[list[Path] | None, typer.Option(help="Folder of a finished run; may be repeated.")] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            help="Adapter file, or hub:user/name@revision; may be repeated. Those on one backbone are asked "
            "in one pass."
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="Weights that adapter files stand on, if they do not say so: builtin, hub:ID, a file."
        ),
    ] = "",
    category: Annotated[
        str, typer.Option(help="What the clouds show; part segmentation needs it where there are several.")
    ] = "",
    out: Annotated[
        Path,
        typer.Option(
            help="A table that ends in .csv, .jsonl or .parquet, one row a cloud; or a folder, one json "
            "a cloud."
        ),
    ] = Path("predictions"),
    html: Annotated[Path | None, typer.Option(help="Folder for pages with a picture of every cloud.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder for the labelled points of a segmentation, where --out is a table."),
    ] = None,
    labels_as: Annotated[
        str, typer.Option(help="Kinds of files of labelled points, by commas: npz, ply, las.")
    ] = "npz,ply",
    topk: Annotated[int, typer.Option(min=1, help="Classes that are listed for every cloud.")] = 5,
    min_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Below it a cloud is marked as undecided.")
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, help="Threads that read files ahead.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Clouds that go through the model together.")] = 16,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what an earlier call has done, even a killed one.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with 1 if any file could not be predicted; always so without a table."
        ),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's data, if it is asked for names and not found.")
    ] = None,
    up: Annotated[
        str,
        typer.Option(
            help="Axis that points up in the files: x, y, z, -x, -y or -z; by default as in training."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Classify or segment point files with finished runs or adapter files; any number of files and points.

    A cloud is read as the evaluation of the run reads its test clouds; a mesh gives points of its surface.
    A file that cannot be predicted does not stop the others: it gets a row with its error. docs/prediction.md
    has the columns of the table.

    Example: pcl-clora predict scans/ --run runs/modelnet40_builtin_clora --out scans.csv --html pages
    """
    from pcl_clora.predict import check_kinds, find_clouds, load_several

    sources, paths = _models(run, adapter, paths)
    clouds = find_clouds(paths)
    predictors = load_several(sources, weights=weights, up=up, data=data)
    kinds = check_kinds([kind.strip() for kind in labels_as.split(",") if kind.strip()])
    asked = _Asked(
        predictors, clouds.files, out, labels, kinds, topk, min_confidence, resume, as_json, category
    )
    asked.check(html)
    pages = _Pages(html, predictors) if html is not None else None
    with interruptible("Stopped; the same command with --resume goes on."):
        times, total = asked.run(pages, jobs, batch)
    tell_left_out(clouds.left_out)
    failed = asked.tell(times, total)
    if pages is not None:
        show(*(f"{page}" for page in pages.finish()))
    if failed and (strict or not asked.is_table):
        raise typer.Exit(1)


def _models(
    runs: Sequence[Path] | None, adapters: Sequence[Path] | None, paths: list[str]
) -> tuple[list[Path], list[str]]:
    """Say which models are asked; a run folder that comes first, as it once had to, is one."""
    from pcl_clora.config import ConfigError
    from pcl_clora.engine import RunFolder

    sources = [*(runs or []), *(adapters or [])]
    if sources:
        return sources, paths
    first = RunFolder(Path(paths[0]))
    if not (first.config.exists() or first.chosen.exists()):
        raise ConfigError(
            "No model is named: give --run FOLDER or --adapter FILE, for example `pcl-clora predict scan.ply "
            "--run runs/modelnet40_builtin_clora`."
        )
    if len(paths) == 1:
        raise ConfigError(f"{paths[0]} is a run; name the point files too.")
    return [first.path], paths[1:]


@dataclass
class _Asked:
    """What is predicted, and where it goes."""

    predictors: list[Predictor]
    files: tuple[str, ...]
    out: Path
    labels: Path | None
    kinds: tuple[str, ...]
    topk: int
    min_confidence: float
    resume: bool
    as_json: bool
    category: str
    rows: list[Row] = field(default_factory=list)
    contents: dict[str, Any] = field(default_factory=dict)

    @property
    def is_table(self) -> bool:
        """Whether a table is written; otherwise a folder."""
        return self.out.suffix != "" and not self.out.is_dir()

    @property
    def folder(self) -> Path | None:
        """Where the results of single files go, if anywhere."""
        return self.labels if self.is_table else self.out

    def check(self, html: Path | None) -> None:
        """Refuse what is wrong before anything is written."""
        from pcl_clora.config import ConfigError
        from pcl_clora.io.safe import refuse_overwriting_inputs
        from pcl_clora.predict import check_table, result_names

        outputs = [check_table(self.out)] if self.is_table else []
        if self.labels is not None and not any(one.segments for one in self.predictors):
            raise ConfigError("--labels is for part segmentation; this model classifies whole clouds.")
        for one in self.predictors:
            if one.segments:
                one.category(self.category)
        self.names = dict(zip(self.files, result_names(self.files), strict=True)) if self.folder else {}
        for one in self.predictors if self.folder else ():
            kinds = ("json", *self.kinds) if one.segments else ("json",)
            place = self._place(one)
            outputs += [place / f"{name}.{kind}" for name in self.names.values() for kind in kinds]
        outputs += [html / "index.html"] if html is not None else []
        refuse_overwriting_inputs(outputs, self.files)

    def _place(self, predictor: Predictor) -> Path:
        """Folder of a model's results; those of several are apart."""
        assert self.folder is not None
        return self.folder / predictor.name if len(self.predictors) > 1 else self.folder

    def run(self, pages: _Pages | None, jobs: int, batch: int) -> tuple[Times, float]:
        """Predict all files; returns where the time went, and all of it."""
        import time

        from pcl_clora.cli.counter import FileCounter
        from pcl_clora.predict import Journal, Times, predict_files

        times, began = Times(), time.perf_counter()
        models = {one.name: one.digest for one in self.predictors}
        journal = Journal(self.out, models, resume=self.resume) if self.is_table else None
        todo = [file for file in self.files if not self._is_done(file, journal)]
        self.count = len(todo)
        try:
            with FileCounter(len(self.files), len(self.files) - len(todo)) as counter:
                stream = predict_files(
                    self.predictors, todo, self.category, jobs=jobs, batch_size=batch, times=times
                )
                for answered in _batches(stream, batch):
                    new = [row for one in answered for row in self._take(one, pages)]
                    if journal is not None:
                        journal.add(new)
                    self.rows += new
                    counter.add(len(answered), sum(1 for one in answered if one.error))
            if journal is not None:
                order = [(file, one.name) for file in self.files for one in self.predictors]
                self.rows = journal.finish(order)
        finally:
            if journal is not None:
                journal.close()
        return times, time.perf_counter() - began

    def _is_done(self, file: str, journal: Any) -> bool:
        """Tell whether an earlier call did this file; errors are tried again."""
        from pcl_clora.predict import is_written

        if not self.resume:
            return False
        if journal is not None:
            rows = [journal.done.get((file, one.name)) for one in self.predictors]
            return all(row is not None and not row.error for row in rows)
        return all(is_written(self._place(one), self.names[file], one, file) for one in self.predictors)

    def _take(self, answered: Answered, pages: _Pages | None) -> Iterator[Row]:
        """Write the results of one file, and make its rows."""
        from pcl_clora.errors import PclCloraError
        from pcl_clora.io import FileAccessError
        from pcl_clora.predict import Row, make_row

        problem = answered.error
        for place, predictor in enumerate(self.predictors):
            if not problem:
                said = answered.said[place]
                try:
                    self._write(answered, predictor, said)
                except FileAccessError:  # the disk is full, say: no other file fares better
                    raise
                except PclCloraError as error:
                    problem = str(error)
                else:
                    if pages is not None:
                        pages.add(place, answered.file, said)
                    yield make_row(
                        answered.file,
                        predictor.name,
                        said,
                        answered.seconds,
                        topk=self.topk,
                        min_confidence=self.min_confidence,
                    )
            if problem:
                self.contents[answered.file] = {"error": problem}
                yield Row(answered.file, predictor.name, status="error", error=problem)

    def _write(self, answered: Answered, predictor: Predictor, said: Prediction) -> None:
        from pcl_clora.predict import write_prediction

        content: dict[str, Any] = said.as_json(self.topk)
        if self.folder is not None and (not self.is_table or predictor.segments):
            assert answered.whole is not None
            content["files"] = write_prediction(
                self._place(predictor),
                self.names[answered.file],
                answered.whole.points,
                said,
                predictor,
                source=answered.file,
                kinds=self.kinds,
                topk=self.topk,
            )
        if len(self.predictors) == 1:
            self.contents[answered.file] = content
        else:
            self.contents.setdefault(answered.file, {})[predictor.name] = content

    def tell(self, times: Times, total: float) -> int:
        """Say what came out; returns how many files failed."""
        if self.as_json:
            print_json(self.contents)
        elif not self.is_table:
            for row in self.rows:
                if not row.error:
                    self._tell_row(row)
        from pcl_clora.io.text import visible

        failed = {row.file: row.error for row in self.rows if row.error}
        shown = list(failed.items()) if not self.is_table else list(failed.items())[:SHOWN]
        for file, problem in shown:
            name = visible(file)
            complain(f"error: {problem if problem.startswith(name) else f'{name}: {problem}'}")
        if failed:
            complain(
                f"{len(failed)} of {len(self.files)} files could not be predicted"
                + (f"; {self.out} says why." if self.is_table else ".")
            )
        if self.is_table and not self.as_json:
            show(_summary(self.out, self.rows, self.count, times, total))
        return len(failed)

    def _tell_row(self, row: Row) -> None:
        from pcl_clora.io.text import visible

        content = self.contents[row.file]
        content = content if len(self.predictors) == 1 else content[row.model]
        who = f"{row.model}: " if len(self.predictors) > 1 else ""
        written = ", ".join(content["files"].values())
        mark = "" if row.status == "ok" else f" ({row.status})"
        show(visible(f"{row.file}: {who}{_say(content)}{mark} -> {written}"))
        for warning in row.warnings:
            show(f"  warning: {warning}")


class _Pages:
    """The pages of every model; those of several are apart."""

    def __init__(self, folder: Path, predictors: Sequence[Predictor]) -> None:
        from pcl_clora.vis.predictions import PredictionPages

        self._predictors = predictors
        several = len(predictors) > 1
        self._pages = [
            PredictionPages(
                folder / one.name if several else folder, f"{one.name}: predictions, least sure first"
            )
            for one in predictors
        ]

    def add(self, place: int, file: str, said: Prediction) -> None:
        """Add a cloud to the pages of a model."""
        from pcl_clora.vis.predictions import prediction_item

        self._pages[place].add([prediction_item(self._predictors[place], file, said)])

    def finish(self) -> list[Path]:
        """Write what is left, and return all pages."""
        return [page for each in self._pages for page in each.finish()]


def _batches(stream: Iterator[Answered], size: int) -> Iterator[list[Answered]]:
    """Put what comes together again, so that a batch is written to the disk at once."""
    batch: list[Answered] = []
    for one in stream:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def tell_left_out(left_out: Sequence[tuple[str, str]]) -> None:
    """Count and name the files that are not read."""
    if left_out:
        named = "; ".join(f"{file} {why}" for file, why in left_out[:SHOWN])
        more = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        complain(f"{len(left_out)} files are left out: {named}{more}.")


def _summary(out: Path, rows: Sequence[Row], files: int, times: Times, total: float) -> str:
    """Say how many rows there are of which status, and how fast files came."""
    counts = {
        status: sum(1 for row in rows if row.status == status)
        for status in ("ok", "novel", "undecided", "error")
    }
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return (
        f"{out}: {len(rows)} rows ({said or 'none'}); {total:.1f} s, {files / max(total, 1e-9):.1f} files a "
        f"second, the model waited for files {100 * times.waiting / max(total, 1e-9):.1f} % of the time"
    )


def _say(result: dict[str, Any]) -> str:
    if "label" in result:
        return f"{result['label']}, confidence {result['confidence']:.3f}"
    sizes = ", ".join(f"{part} {count:,}" for part, count in result["parts"].items())
    return f"{sizes}; mean confidence {result['confidence']:.3f}"
