"""The page for people, by gradio: drop a file, see what a model says; it asks the service as all do."""

from __future__ import annotations

import html
import inspect
import os
import secrets
import shutil
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from pcl_clora.io import write_points
from pcl_clora.io.pictures import PLAIN, rgb
from pcl_clora.io.text import visible
from pcl_clora.predict import Prediction, Predictor, part_colours
from pcl_clora.serve.answers import page_of, warnings_of, write_labelled
from pcl_clora.serve.guard import APP
from pcl_clora.serve.refusals import Refusal, of_status, stopping
from pcl_clora.serve.service import Ask, Given, Said, Service
from pcl_clora.serve.uploads import file_name

SHOWN_POINTS = 100_000  # of a cloud in the quick picture; the viewer's page has all
KEPT_PAGES, KEPT_BYTES = 64, 128 << 20
CSS = (
    ".gradio-container {max-width: 1200px !important} #viewer iframe {width: 100%; height: 560px; border: 0}"
)


class Pages:
    """Pages of answers for the frames of the page for people; the oldest go first."""

    def __init__(self) -> None:
        self._pages: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, page: str) -> str:
        """Keep a page, and return a key that nobody can guess."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._pages[key] = page
            while len(self._pages) > 1 and (
                len(self._pages) > KEPT_PAGES or sum(map(len, self._pages.values())) > KEPT_BYTES
            ):
                self._pages.popitem(last=False)
        return key

    def get(self, key: str) -> str | None:
        """Return a page; None where it is gone."""
        with self._lock:
            return self._pages.get(key)


def add_app(api: FastAPI, service: Service) -> None:
    """Mount the page for people at /app, and the pages of answers at /view.

    Args:
        api: the application of the service.
        service: what answers.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing tells another host that it runs
    os.environ["GRADIO_TEMP_DIR"] = str(service.app_folder)  # goes with the server
    import gradio

    pages = Pages()

    @api.get("/view/{key}", include_in_schema=False)
    async def view(key: str) -> HTMLResponse:
        page = pages.get(key)
        if page is None:
            raise of_status(404, "this page is gone; ask again")
        return HTMLResponse(page)

    wanted = {
        "footer_links": [], "run_history": False, "ssr_mode": False, "pwa": False, "mcp_server": False,
        "enable_monitoring": False, "max_file_size": service.settings.max_bytes, "show_error": True,
        "theme": gradio.themes.Default(), "css": CSS, "server_name": service.settings.host,
        "server_port": service.settings.port,
    }  # fmt: skip
    known = inspect.signature(gradio.mount_gradio_app).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of gradio are not ours to mend
        blocks = _Page(service, pages).blocks()
        gradio.mount_gradio_app(
            api, blocks, APP, **{name: value for name, value in wanted.items() if name in known}
        )
    mounted: list[Any] = [getattr(route, "app", None) for route in api.routes]
    api.state.stop = [app.stop_event.set for app in mounted if hasattr(app, "stop_event")]


class _Page:
    """What the page shows of a service.

    Args:
        service: what answers.
        pages: where pages of answers are kept.
    """

    def __init__(self, service: Service, pages: Pages) -> None:
        self.service, self.pages = service, pages
        self.predictors = list(service.predictors.values())

    def blocks(self) -> Any:
        """Lay the page out."""
        import gradio

        names, first = [one.name for one in self.predictors], self.predictors[0]
        with gradio.Blocks(title="pcl-clora", analytics_enabled=False) as blocks:
            gradio.Markdown(f"# What is this cloud?\nModels: {len(names)}. [For programs](/docs).")
            with gradio.Row():
                with gradio.Column(scale=1):
                    model = gradio.Dropdown(names, value=names[0], label="Model", elem_id="model")
                    category = gradio.Dropdown(
                        _categories(first), value=next(iter(_categories(first)), None),
                        label="What the cloud shows", visible=first.segments, elem_id="category",
                    )  # fmt: skip
                    cloud = gradio.File(
                        label="Drop a file of points or a mesh", file_types=list(self.service.settings.types),
                        type="filepath", elem_id="cloud",
                    )  # fmt: skip
                    said = gradio.Label(num_top_classes=5, label="Answer", elem_id="answer")
                    notes = gradio.Markdown(elem_id="notes")
                    labelled = gradio.File(
                        label="The points with their labels (ply)", interactive=False, elem_id="labelled"
                    )
                with gradio.Column(scale=2):
                    picture = gradio.Model3D(
                        label="Points", display_mode="point_cloud", interactive=False, height=320,
                        elem_id="picture",
                    )  # fmt: skip
                    viewer = gradio.HTML(elem_id="viewer")
            asked, shown = [cloud, model, category], [said, notes, labelled, picture, viewer]
            told: dict[str, Any] = {
                "api_visibility": "private", "concurrency_limit": self.service.settings.queue
            }  # fmt: skip
            model.change(self.choose, model, category, queue=False, api_visibility="private").then(
                self.answer, asked, shown, **told
            )
            category.input(self.answer, asked, shown, **told)
            cloud.change(self.answer, asked, shown, **told)
        return blocks.queue(max_size=4 * self.service.settings.queue)

    def choose(self, model: str) -> Any:
        """Show the categories of a model of parts."""
        import gradio

        chosen = self.service.predictors[model]
        known = _categories(chosen)
        return gradio.Dropdown(known, value=next(iter(known), None), visible=chosen.segments)

    async def answer(self, cloud: str | None, model: str, category: str | None) -> tuple[Any, ...]:
        """Ask a model; the shown values, all empty where there is no file."""
        import gradio

        if not cloud:
            return None, "", None, None, ""
        began, service = time.monotonic(), self.service
        try:
            if not service.alive:
                raise stopping()
            name = file_name(Path(cloud).name, service.settings)
            with service.admission.admit():
                ask = Ask((model,), category or "")
                async with service.predicted(Given(name, Path(cloud)), ask, began) as said:
                    shown: tuple[Any, ...] = await service.run(lambda: self._shown(name, said), began)
                    return shown
        except Refusal as error:
            raise gradio.Error(html.escape(str(error)), duration=None) from error

    def _shown(self, name: str, said: Said) -> tuple[Any, ...]:
        """Make what the page shows of an answer."""
        predictor, prediction = said.predictions[0]
        self.service.app_folder.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="answer-", dir=self.service.folder))
        try:
            labelled = write_labelled(folder, said)
            picture = folder / "picture.ply"
            _write_picture(picture, predictor, prediction)
            kept = Path(tempfile.mkdtemp(dir=self.service.app_folder))
            stem = "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in Path(name).stem)[:80]
            shown = [
                str(shutil.move(labelled, kept / f"{stem}_labelled.ply")),
                str(shutil.move(picture, kept / "picture.ply")),
            ]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        key = self.pages.add(page_of(name, said).text)
        frame = f'<iframe src="/view/{key}" title="viewer" sandbox="allow-scripts allow-downloads"></iframe>'
        return dict(prediction.best(5)), _notes(predictor, prediction, said), *shown, frame


def _categories(predictor: Predictor) -> list[str]:
    return list(predictor.taxonomy.categories) if predictor.segments else []


def _notes(predictor: Predictor, prediction: Prediction, said: Said) -> str:
    """Say novelty and warnings as markdown."""
    lines = [f"{len(said.whole.points):,} points, {1000 * said.seconds:.0f} ms"]
    if prediction.novelty is not None:
        far = "**not like the training data**" if prediction.is_novel else "like the training data"
        lines.append(f"novelty {prediction.novelty:.2f}, {far} (1: what 95 of 100 known clouds stay below)")
    if prediction.is_segmentation:
        lines.append("the bars are the shares of the parts")
    lines += [
        f"warning: {html.escape(visible(one))}" for one in warnings_of(predictor, prediction, said.whole.up)
    ]
    return "\n".join(f"- {line}" for line in lines)


def _write_picture(path: Path, predictor: Predictor, prediction: Prediction) -> None:
    """Write points in the frame of the model with colours, for the quick picture."""
    points = prediction.cloud.numpy()
    step = -(-len(points) // SHOWN_POINTS)
    colours = np.broadcast_to(np.array(rgb(PLAIN), np.uint8), (len(points), 3))
    if prediction.is_segmentation:
        palette = part_colours(predictor.taxonomy)
        table = np.array([rgb(palette[part]) for part in range(len(palette))], np.uint8)
        colours = table[prediction.label]
    write_points(path, points[::step], {"colors": np.ascontiguousarray(colours[::step])})
