"""Answers that are none: an HTTP status, a code for programs, what is wrong and what to do."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pcl_clora.errors import PclCloraError
from pcl_clora.io.apart import Fault, RefusedFileError

_OF_FAULT: dict[Fault, tuple[int, str]] = {
    "file": (422, "unreadable_file"),
    "type": (415, "wrong_type"),
    "large": (413, "too_many_points"),
    "package": (415, "package_missing"),
    "slow": (504, "timeout"),
    "crash": (422, "parser_crashed"),
}


class Refusal(PclCloraError):
    """A request that gets no answer.

    Attributes:
        status: of HTTP.
        code: for programs, such as "queue_full".
        problem: what is wrong.
        remedy: what to do.
        retry_after_s: when to try again; None where that does not help.
    """

    def __init__(
        self, status: int, code: str, problem: str, remedy: str, *, retry_after_s: int | None = None
    ) -> None:
        self.status, self.code, self.problem, self.remedy = status, code, problem, remedy
        self.retry_after_s = retry_after_s
        super().__init__(f"{problem}; {remedy}.")

    def as_json(self) -> dict[str, Any]:
        """Return what is sent."""
        return {"error": {"code": self.code, "message": self.problem, "remedy": self.remedy}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return {**found, **({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})}


def of_file(name: str, error: RefusedFileError) -> Refusal:
    """Make the refusal of a file that is not read."""
    status, code = _OF_FAULT[error.fault]
    return Refusal(status, code, f"{name}: {error.problem}", error.remedy)


def of_status(status: int, detail: str = "") -> Refusal:
    """Make the refusal of a request that the framework turns down."""
    known = {
        404: ("not_found", "there is nothing at this address", "see /docs"),
        405: ("method_not_allowed", "this address takes another method", "see /docs"),
    }
    phrase = detail or (HTTPStatus(status).phrase if status in set(HTTPStatus) else str(status))
    code, problem, remedy = known.get(status, ("refused", phrase, "see /docs"))
    return Refusal(status, code, problem, remedy)


def timeout(seconds: float) -> Refusal:
    """Make the refusal of a request that took too long."""
    return Refusal(
        504, "timeout", f"no answer within {seconds:g} s", "send a smaller cloud, or try again later",
        retry_after_s=5,
    )  # fmt: skip


def stopping() -> Refusal:
    """Make the refusal of a server that ends."""
    return Refusal(503, "stopping", "the server is stopping", "try again in a minute", retry_after_s=60)
