"""What a request carries: a file in a form or bare, or points as json; bounded while it comes in."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from pcl_clora.io.text import visible
from pcl_clora.serve.refusals import Refusal
from pcl_clora.serve.service import Given
from pcl_clora.serve.settings import ServeSettings

FORM, BARE, JSON = "multipart/form-data", "application/octet-stream", "application/json"
DRAINED = 8 << 20  # bytes that are taken off the line before a request is turned down unread
DRAIN_S = 2.0
_SPOOL = 1 << 20
_OTHERWISE = {  # endings that no server takes -> what to do
    **dict.fromkeys(
        (".pkl", ".pickle"), "a pickle is a program, and none is read here: send the cloud itself as .npy"
    ),
    ".dat": "a name that says no format: send columns of text as .xyz, a cloud of a pickle as .npy",
}


async def receive(request: Request, settings: ServeSettings, folder: Path, began: float) -> Given:
    """Take the cloud of a request.

    Args:
        request: not read yet.
        settings: limits.
        folder: for its file.
        began: `time.monotonic()` of the request.

    Raises:
        Refusal: 400 for what is no proper request, 408 where it does not come in time, 413 where it is too
            large, 415 for another kind of content or file.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (FORM, BARE, JSON):
        raise Refusal(
            415, "wrong_content_type", f"Content-Type is {visible(kind) or 'not said'}",
            f"send a form ({FORM}) with the file in 'file', the bare file ({BARE}) with ?name=scan.ply, or "
            f'{{"points": [[x, y, z], ...]}} ({JSON})',
        )  # fmt: skip
    if _announced(request) > settings.max_bytes + (1 << 16 if kind == FORM else 0):
        raise _too_large(settings)
    query = request.query_params
    part, up = query.get("part", ""), query.get("up", "")
    stream = _bounded(request, settings)
    try:
        work = _take(request, kind, stream, folder, settings)
        name, content = await asyncio.wait_for(
            work, max(settings.timeout_s - time.monotonic() + began, 0.001)
        )
    except asyncio.TimeoutError:
        raise Refusal(
            408, "upload_timeout", f"the upload did not end within {settings.timeout_s:g} s",
            "send a smaller file, or over a faster line",
        ) from None  # fmt: skip
    except ClientDisconnect:
        raise Refusal(400, "incomplete", "the upload broke off", "send it again") from None
    return Given(name, content, part, up)


async def drain(request: Request) -> None:
    """Take what is still to come of a request that is turned down, so that the answer reaches the sender."""
    if _announced(request) > DRAINED:
        return
    taken = 0

    async def read() -> None:
        nonlocal taken
        async for block in request.stream():
            taken += len(block)
            if taken > DRAINED:
                return

    try:
        await asyncio.wait_for(read(), DRAIN_S)
    except (asyncio.TimeoutError, ClientDisconnect, RuntimeError):  # or it was read already
        return


def _announced(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


async def _bounded(request: Request, settings: ServeSettings) -> AsyncGenerator[bytes, None]:
    taken = 0
    async for block in request.stream():
        taken += len(block)
        if taken > settings.max_bytes + (1 << 16):
            raise _too_large(settings)
        yield block


def _too_large(settings: ServeSettings) -> Refusal:
    return Refusal(
        413, "too_large", f"the upload is larger than {settings.max_upload_mib:g} MiB",
        "send a smaller file: fewer points, or a binary format",
    )  # fmt: skip


async def _take(
    request: Request, kind: str, stream: AsyncGenerator[bytes, None], folder: Path, settings: ServeSettings
) -> tuple[str, Path | NDArray[np.float64]]:
    if kind == JSON:
        text = b"".join([block async for block in stream])
        return "points", await asyncio.to_thread(_points, text)
    if kind == BARE:
        name = file_name(request.query_params.get("name", ""), settings)
        path = folder / f"cloud{ending(name)}"
        with path.open("wb") as file:
            async for block in stream:
                await asyncio.to_thread(file.write, block)
        return name, path
    try:
        form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=16).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        words = getattr(error, "message", "") or "it is torn"
        raise Refusal(400, "bad_form", f"the form cannot be read ({words})", "send one file in it") from error
    try:
        sent = form.get("file")
        if not isinstance(sent, UploadFile):
            raise Refusal(400, "no_file", "the form has no file named 'file'", "curl -F file=@scan.ply ...")
        name = file_name(sent.filename or "", settings)
        path = folder / f"cloud{ending(name)}"
        await asyncio.to_thread(_copy, sent, path)
    finally:
        await form.close()
    return name, path


def _copy(sent: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(sent.file, file, _SPOOL)


def file_name(given: str, settings: ServeSettings) -> str:
    """Take the name of a file without its folders, and check its ending.

    Raises:
        Refusal: 400 where there is none, 415 where such files are not taken.
    """
    name = given.replace("\\", "/").rpartition("/")[2][-200:]
    if not name:
        raise Refusal(400, "no_name", "the file has no name", "name it, its ending says its format: scan.ply")
    if not settings.takes(name):
        suffix = visible(Path(name).suffix) or "nothing"
        raise Refusal(
            415, "wrong_type", f"{visible(name)}: files ending in {suffix} are not taken",
            _OTHERWISE.get(suffix.lower(), f"send one that ends in {', '.join(settings.types)}"),
        )  # fmt: skip
    return name


def ending(name: str) -> str:
    """Take the ending of a name, with all of it that says the format: ".pcd.bin" is another than ".bin"."""
    return ".pcd.bin" if name.lower().endswith(".pcd.bin") else Path(name).suffix.lower()


def _points(text: bytes) -> NDArray[np.float64]:
    """Read points from json."""
    try:
        content: Any = json.loads(text)
    except RecursionError:
        raise Refusal(
            400, "bad_json", "the json is nested too deeply", "send points as [[x, y, z]]"
        ) from None
    except ValueError as error:
        raise Refusal(400, "bad_json", f"the json cannot be read ({error})", "mend it") from error
    rows = content.get("points") if isinstance(content, dict) else None
    try:
        points = np.asarray(rows, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise Refusal(
            422, "bad_points", "points are no rows of three numbers", 'send {"points": [[x, y, z], ...]}'
        )
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise Refusal(422, "bad_points", f"{bad} of {len(points):,} points are not finite", "leave them out")
    return points
