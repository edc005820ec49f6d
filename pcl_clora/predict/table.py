"""The table of predictions: one row a cloud and model, in csv, jsonl or parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.io import DataError, atomic_write, explained, finite, parse_json
from pcl_clora.io.text import spreadsheet
from pcl_clora.predict.prediction import Prediction

VERSION = 1
"""Version of the columns; it is raised when one changes its name or meaning."""

Status = Literal["ok", "undecided", "novel", "error"]
DIGITS = 6


@dataclass(frozen=True)
class Row:
    """What is said of one cloud by one model. The fields are the columns, in this order.

    Attributes:
        file: as it was given or found; "file.h5#7" is a row of it.
        model: name of the run's folder or of the adapter file.
        label: the most probable class; in part segmentation the category that the model was told. Empty after
            an error.
        confidence: its probability; in part segmentation the mean over the points.
        status: "ok"; "undecided", where the confidence is below the smallest one asked for; "novel", where
            the cloud is not like the training data; "error".
        novelty: 1 is what 95 of 100 held-out training clouds stay below; None without a calibration.
        top: (name, probability) of the most probable classes; in part segmentation the parts by their share
            of the points.
        points: of the file, or drawn from a mesh.
        seconds: that reading and predicting took.
        warnings: why the answer may be wrong.
        error: why there is none.
        version: of these columns.
    """

    file: str
    model: str
    label: str = ""
    confidence: float | None = None
    status: Status = "ok"
    novelty: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    points: int | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str = ""
    version: int = VERSION

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others: file and model."""
        return self.file, self.model


COLUMNS = tuple(field.name for field in fields(Row))


def make_row(
    file: str, model: str, said: Prediction, seconds: float, *, topk: int = 5, min_confidence: float = 0.0
) -> Row:
    """Write down a prediction.

    Args:
        file: the cloud.
        model: who said it.
        said: the prediction.
        seconds: that it took.
        topk: names that are listed.
        min_confidence: what a decision needs.
    """
    confidence = float(said.confidence.mean())
    status: Status = "novel" if said.is_novel else "undecided" if confidence < min_confidence else "ok"
    return Row(
        file=file,
        model=model,
        label=said.name,
        confidence=round(confidence, DIGITS),
        status=status,
        novelty=None if said.novelty is None else round(said.novelty, 4),
        top=tuple((name, round(share, DIGITS)) for name, share in said.best(topk)),
        points=len(said.cloud),
        seconds=round(seconds, 4),
        warnings=said.warnings,
    )


def row_of(place: str | Path, values: Mapping[str, Any]) -> Row:
    """Read a row back.

    Raises:
        DataError: if it is none, or of a newer version.
    """
    version = values.get("version")
    if version != VERSION or set(values) != set(COLUMNS):
        raise DataError(
            place,
            f"is no table of predictions of version {VERSION} (columns {', '.join(map(str, values))})",
            "give another file, or start over without --resume",
        )
    top = tuple((str(name), float(share)) for name, share in values["top"])
    return Row(**{**values, "top": top, "warnings": tuple(values["warnings"])})


def as_json_row(row: Row) -> dict[str, Any]:
    """Return a row as json has it."""
    values: dict[str, Any] = finite(asdict(row))
    return values


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(as_json_row(row), ensure_ascii=False) + "\n")


def _read_jsonl(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [row_of(path, parse_json(path, line)) for line in file if line.strip()]


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False)
    return spreadsheet(str(value))


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row_of(path, _from_cells(path, cells)) for cells in csv.DictReader(file)]


def _from_cells(path: Path, cells: Mapping[str, Any]) -> dict[str, Any]:
    try:
        read: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(("top", "warnings"), json.loads),
            **dict.fromkeys(("confidence", "novelty"), lambda text: float(text) if text else None),
            "points": lambda text: int(text) if text else None,
            "seconds": float,
            "version": int,
        }
        return {name: read.get(name, str)(text) for name, text in cells.items()}
    except (ValueError, TypeError) as error:
        raise DataError(path, f"is no table of predictions ({error})", "give another file") from error


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    arrow, parquet = _pyarrow()
    pair = arrow.struct([("name", arrow.string()), ("probability", arrow.float64())])
    kinds = {"confidence": arrow.float64(), "novelty": arrow.float64(), "seconds": arrow.float64()}
    kinds |= {"points": arrow.int64(), "version": arrow.int64(), "top": arrow.list_(pair)}
    kinds |= {"warnings": arrow.list_(arrow.string())}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
    content = [
        {**asdict(row), "top": [{"name": name, "probability": share} for name, share in row.top]}
        for row in rows
    ]
    parquet.write_table(arrow.Table.from_pylist(content, schema=schema), path)


def _read_parquet(path: Path) -> list[Row]:
    arrow, parquet = _pyarrow()
    try:
        content = parquet.read_table(path).to_pylist()
        for values in content:
            values["top"] = [(pair["name"], pair["probability"]) for pair in values.get("top", ())]
    except (arrow.ArrowInvalid, TypeError, KeyError) as error:
        raise DataError(path, f"is no table of predictions ({error})", "give another file") from error
    return [row_of(path, values) for values in content]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "Parquet needs pyarrow: pip install 'pcl-clora[table]'. A table that ends in .csv or .jsonl "
            "needs nothing."
        ) from error
    return pyarrow, pyarrow.parquet


_WRITERS: Mapping[str, Callable[[Path, Iterable[Row]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
TABLE_SUFFIXES = tuple(_WRITERS)
"""Endings of the tables that can be written."""


def check_table(path: str | Path) -> Path:
    """Refuse what cannot be written as a table, before anything is predicted.

    Raises:
        UserValueError: if the ending is not known.
        MissingPackageError: if parquet is asked for and pyarrow is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise UserValueError(
            f"--out {path}: a table ends in {', '.join(TABLE_SUFFIXES)}; a name without an ending is a "
            "folder."
        )
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    return path


def write_table(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows to csv, jsonl or parquet, whole or not at all; the ending says which."""
    path = check_table(path)
    atomic_write(path, lambda aside: _WRITERS[path.suffix.lower()](aside, rows))


def read_table(path: str | Path) -> list[Row]:
    """Read a table that `write_table` wrote.

    In csv, texts that a spreadsheet would take for a formula come back with the apostrophe that keeps it from
    doing so.

    Raises:
        DataError: if it is none, or damaged.
    """
    path = check_table(path)
    with explained(path, "read"):
        return _READERS[path.suffix.lower()](path)
