"""The rows of an unfinished table, so that a killed prediction goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from pcl_clora.errors import UserValueError
from pcl_clora.io import explained, parse_json, write_text
from pcl_clora.predict.table import VERSION, Row, as_json_row, read_table, row_of, write_table

SUFFIX = ".part"


class Journal:
    """Takes the rows of a table as they come, and writes the table when all are there.

    Until then they stand in the file TABLE.part, a row a line, forced to the disk batch by batch. A killed
    process loses what it had not yet added; half a line at the end is left out.

    Args:
        table: to write in the end.
        models: who predicts: name -> digest of its adapter.
        resume: go on with TABLE.part, or with the finished table.

    Attributes:
        done: rows that are there already, by file and model.

    Raises:
        UserValueError: if an unfinished table is there and `resume` is not set, or other
            models wrote it; those of a finished one are told by their names.
        DataError: if it is damaged.
    """

    def __init__(self, table: Path, models: Mapping[str, str], *, resume: bool) -> None:
        self.table, self.path = table, table.with_name(table.name + SUFFIX)
        self._head = {"version": VERSION, "models": dict(models)}
        self.done: dict[tuple[str, str], Row] = {}
        if self.path.exists():
            if not resume:
                raise UserValueError(
                    f"{self.path} holds the rows of an unfinished prediction; go on with it by --resume, or "
                    "remove it."
                )
            self._read()
        elif resume and table.exists():
            self.done = {row.key: row for row in read_table(table)}
            self._refuse(table, {row.model for row in self.done.values()} - set(models))
        self._begin()

    def _read(self) -> None:
        with explained(self.path, "read"):
            lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was torn off
        if not lines:
            return
        head = parse_json(self.path, lines[0])
        if head != self._head:
            self._refuse(self.path, head.get("models") or {"none"})
        rows = [row_of(self.path, parse_json(self.path, line)) for line in lines[1:]]
        self.done = {row.key: row for row in rows}

    @staticmethod
    def _refuse(path: Path, models: Collection[str]) -> None:
        if models:
            raise UserValueError(
                f"{path} holds rows of other models ({', '.join(sorted(models))}); "
                "remove it, or name another --out."
            )

    def _begin(self) -> None:
        """Write the file anew with what is done, so that no torn line stays in it."""
        lines = (self._head, *map(as_json_row, self.done.values()))
        write_text(self.path, "".join(json.dumps(content) + "\n" for content in lines))
        with explained(self.path, "written"):
            self._file = self.path.open("a", encoding="utf-8")

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; they are on the disk when this returns."""
        with explained(self.path, "written"):
            for row in rows:
                self.done[row.key] = row
                self._file.write(json.dumps(as_json_row(row)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, order: Iterable[tuple[str, str]]) -> list[Row]:
        """Write the table and remove the file of the unfinished one.

        Args:
            order: keys of the rows; what an earlier call did besides comes before them.
        """
        wanted = dict.fromkeys(order)
        earlier = [row for key, row in self.done.items() if key not in wanted]
        rows = [*earlier, *(self.done[key] for key in wanted if key in self.done)]
        write_table(self.table, rows)
        self.close()
        with explained(self.path, "removed"):
            self.path.unlink(missing_ok=True)
        return rows

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
