"""The HTTP address of a service: POST /predict and /embed, GET /health, /metrics, /docs, /openapi.json."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from pcl_clora import __version__
from pcl_clora.serve.answers import (
    EmbedAnswer,
    FaultAnswer,
    Health,
    PredictAnswer,
    as_json,
    describe_models,
    page_of,
    write_labelled,
)
from pcl_clora.serve.documentation import documentation_page
from pcl_clora.serve.guard import Guard
from pcl_clora.serve.metrics import TYPE
from pcl_clora.serve.refusals import Refusal, of_status, stopping
from pcl_clora.serve.service import BUILTIN, Ask, Given, Service
from pcl_clora.serve.uploads import BARE, FORM, JSON, drain, receive

DIM = 128  # numbers of a vector, unless told otherwise

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "No proper request: a torn form, no file in it."},
    401: {"description": "The token is missing or another one."},
    408: {"description": "The upload did not end in time."},
    413: {"description": "Too many bytes or points."},
    415: {"description": "A kind of file that is not taken, or that is another one than its name says."},
    422: {"description": "A file without a shape: torn, empty, one point, NaN; or a wrong parameter."},
    429: {"description": "The queue is full; Retry-After says when to come back."},
    503: {"description": "The server is stopping."},
    504: {"description": "No answer within the time of a request."},
}
_CLOUD = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "A file of points or a mesh, of the format that its ending says.",
                        }
                    },
                }
            },
            BARE: {
                "schema": {"type": "string", "format": "binary", "description": "The file; ?name= names it."}
            },
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["points"],
                    "properties": {
                        "points": {
                            "type": "array",
                            "items": {
                                "type": "array",
                                "items": {"type": "number"},
                                "minItems": 3,
                                "maxItems": 3,
                            },
                        }
                    },
                }
            },
        },
    }
}


class Output(str, Enum):
    """What /predict sends back."""

    json = "json"
    labels = "labels"  # json with the label of every point
    ply = "ply"  # the points with labels and confidence
    page = "page"  # the viewer's page


Name = Annotated[str, Query(description="Name of a bare file, such as scan.ply.", max_length=255)]
Part = Annotated[
    str,
    Query(
        description="Which cloud of a file that holds several: a data set or row of h5, a scan of e57.",
        max_length=255,
    ),
]
Up = Annotated[str, Query(description="Axis that points up: x, y, z, -x, -y, -z; by default as in training.")]
Handler = Callable[[Request, Given, float, Path], Awaitable[Any]]


def make_api(service: Service) -> FastAPI:
    """Make the application of a service; with its end the service closes.

    Args:
        service: what answers.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.close)

    api = FastAPI(
        title="pcl-clora",
        version=__version__,
        summary="What point cloud models say of a cloud.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        responses={status: {**told, "model": FaultAnswer} for status, told in REFUSALS.items()},
    )
    api.state.service, api.state.stop = service, []
    _add_handlers(api)
    _add_cloud_routes(api, service)
    _add_plain_routes(api, service)
    if service.settings.app:
        from pcl_clora.serve.app import add_app

        add_app(api, service)
    api.add_middleware(Guard, service=service)
    return api


def _add_cloud_routes(api: FastAPI, service: Service) -> None:
    settings = service.settings

    async def handle(request: Request, work: Handler) -> Any:
        """Admit a request, take its cloud, answer; what it wrote is gone afterwards."""
        began = time.monotonic()
        folder: Path | None = None
        try:
            if not service.alive:
                raise stopping()
            with service.admission.admit():
                folder = Path(tempfile.mkdtemp(dir=service.folder))
                given = await receive(request, settings, folder, began)
                return await work(request, given, began, folder)
        except Refusal:
            await drain(request)
            raise
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    @api.post(
        "/predict", response_model=PredictAnswer, response_model_exclude_unset=True, openapi_extra=_CLOUD
    )
    async def predict(
        request: Request,
        model: Annotated[
            list[str] | None, Query(description="Names of models, or 'all'; by default the first.")
        ] = None,
        category: Annotated[
            str, Query(description="What the cloud shows; models of parts need it.", max_length=255)
        ] = "",
        topk: Annotated[int, Query(ge=1, le=1000, description="Classes that are listed.")] = 5,
        output: Annotated[
            Output,
            Query(description="json; labels: with one a point; ply: points with labels; page: the viewer."),
        ] = Output.json,
        part: Part = "",
        up: Up = "",
        name: Name = "",
    ) -> Any:
        """Say of a cloud what it is: class and probabilities, or parts of its points."""

        async def work(request: Request, given: Given, began: float, folder: Path) -> Any:
            async with service.predicted(given, Ask(tuple(model or ()), category), began) as said:
                if output is Output.ply:
                    path = await service.run(lambda: write_labelled(folder, said), began)
                    content = await service.run(path.read_bytes, began)
                    stem = Path(given.name).stem.encode("ascii", "replace").decode().replace('"', "")
                    return Response(
                        content,
                        media_type="model/x-ply",
                        headers={"Content-Disposition": f'attachment; filename="{stem}_labelled.ply"'},
                    )
                if output is Output.page:
                    page = await service.run(lambda: page_of(given.name, said), began)
                    return HTMLResponse(page.text)
                labels = output is Output.labels
                told = await service.run(lambda: as_json(given.name, said, topk, labels=labels), began)
                return JSONResponse(told)

        return await handle(request, work)

    @api.post("/embed", response_model=EmbedAnswer, openapi_extra=_CLOUD)
    async def embed(
        request: Request,
        model: Annotated[
            str,
            Query(
                description=f"A classifier, or {BUILTIN!r}: the backbone in the package. By default the "
                "first of these."
            ),
        ] = "",
        dim: Annotated[int, Query(ge=0, le=4096, description="Numbers of the vector; 0 for all.")] = DIM,
        part: Part = "",
        up: Up = "",
        name: Name = "",
    ) -> Any:
        """Describe a cloud by a vector; near vectors belong to clouds that look alike."""

        async def work(request: Request, given: Given, began: float, folder: Path) -> Any:
            who, vector = await service.embedded(given, model, dim, began)
            return JSONResponse(
                {"file": given.name, "model": who, "dim": len(vector), "vector": vector.tolist()}
            )

        return await handle(request, work)


def _add_plain_routes(api: FastAPI, service: Service) -> None:
    @api.get("/health", response_model=Health)
    async def health() -> Any:
        """Say whether the models answer, and which they are."""
        said = {
            "status": "ok" if service.alive else "stopping",
            "version": __version__,
            "models": describe_models(list(service.predictors.values())),
        }
        return JSONResponse(said, status_code=200 if service.alive else 503)

    @api.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Tell counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), headers={"Content-Type": TYPE})

    @api.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(documentation_page(api.openapi(), service.settings, base))

    @api.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)

    @api.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/app/" if service.settings.app else "/docs")


def _add_handlers(api: FastAPI) -> None:
    def answer(refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.as_json(), refusal.status, refusal.headers)

    @api.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return answer(error)

    @api.exception_handler(HTTPException)
    async def turned_down(request: Request, error: HTTPException) -> JSONResponse:
        return answer(of_status(error.status_code, str(error.detail)))

    @api.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "request"
        await drain(request)
        return answer(Refusal(422, "wrong_parameter", f"{place}: {first['msg']}", "see /docs"))

    @api.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        fault = Refusal(500, "internal", "the server made a mistake", "tell who runs it; its log says more")
        return answer(fault)
