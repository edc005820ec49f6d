"""What a user can get wrong: one base for all errors of the package, and one way to warn.

Each also is the built-in error that fits, so that `except ValueError` catches what it says. The command line
shows errors of this base as one message; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import logging


class PclCloraError(Exception):
    """Base of every error that names a value or a file that a user can change, and the remedy."""


class UserValueError(PclCloraError, ValueError):
    """An argument has a wrong value."""


class UserTypeError(PclCloraError, TypeError):
    """An argument has a wrong type."""


class UserIndexError(PclCloraError, IndexError):
    """An index is out of range."""


class MissingPackageError(PclCloraError, ImportError):
    """A package is not installed that only some functions need; the message has the command."""


_said: set[str] = set()


def warn_once(text: str, *, kind: str = "") -> None:
    """Log a text at WARNING on the logger `pcl_clora`, the first time that it is said in this process.

    Args:
        text: what to say.
        kind: what texts have in common of which only the first is said, such as one for every file of many.
    """
    if (kind or text) not in _said:
        _said.add(kind or text)
        logging.getLogger("pcl_clora").warning(text)
