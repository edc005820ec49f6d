"""The error that every reader of files raises."""

from __future__ import annotations

import os

from pcl_clora.errors import UserValueError


class DataError(UserValueError):
    """A file that is missing, torn or not what its place says.

    The message names the file, what was found and expected, and the remedy.
    """

    def __init__(self, file: str | os.PathLike[str], problem: str, remedy: str) -> None:
        """Join the three parts of the message.

        Args:
            file: the file or folder at fault.
            problem: what was found and what was expected, without a full stop.
            remedy: what to do about it, without a full stop.
        """
        self.file, self.problem, self.remedy = str(file), problem, remedy
        super().__init__(f"{self.file}: {problem}; {remedy}.")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str]]:
        # Errors cross from loader workers by pickle, which would call __init__ with the joined text only.
        return type(self), (self.file, self.problem, self.remedy)
