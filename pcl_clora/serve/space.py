"""A folder that can be uploaded as a demo space: the models with all that they stand on, and this package."""

from __future__ import annotations

import importlib.metadata
import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import pcl_clora
from pcl_clora.adapters.files import read_adapter, write_adapter
from pcl_clora.engine.novelty.calibration import novelty_file
from pcl_clora.engine.run.base import RANDOM
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, explained, sha256_file, write_text
from pcl_clora.io.text import markdown
from pcl_clora.models.builtin import BUILTIN
from pcl_clora.models.weights.convert import convert_weights
from pcl_clora.models.weights.hub import HUB_PREFIX, cached_path, fetch
from pcl_clora.models.weights.load import source_file
from pcl_clora.predict import load, load_several
from pcl_clora.predict.opened import adapter_file, header_of
from pcl_clora.serve.settings import ServeSettings

REQUIREMENTS = (
    "torch>=2.11",
    "numpy>=1.26",
    "h5py>=3.10",
    "pyyaml>=6.0",
    "pydantic>=2.7",
    "safetensors>=0.4.3",
    "rich>=13.7",
    "typer>=0.12",
    "gradio>=6.25",
    "fastapi>=0.115",
    "uvicorn>=0.30",
    "python-multipart>=0.0.18",
    "prometheus-client>=0.20",
    "laspy[lazrs]>=2.5",
    "lxml>=5.0",
    "networkx>=3.0",
    "pye57>=0.4.15",
    "pypcd4>=1.1",
    "trimesh>=5.0",
)
"""What a space needs: the package's own, those of the extras `serve` and `files`."""

GRADIO = "6.25.0"  # where the one that is installed does not say its version
LEFT_OUT = ("__pycache__", "peers", "*.pyc")
MODELS, CACHE = "models", "cache"
_APP = '''"""Answers what the models in this folder say of a cloud, over HTTP and on a page."""

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ.setdefault("PCL_CLORA_CACHE", str(HERE / "cache"))

from pcl_clora.serve import ServeSettings, serve  # noqa: E402

serve(
    [HERE / "models" / name for name in {names}],
    ServeSettings(
        host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        token=os.environ.get("PCL_CLORA_TOKEN", ""),
        max_upload_mib={upload},
        max_points={points},
        timeout_s={timeout},
        queue={queue},
    ),
    weights={weights},
)
'''
_README = """---
title: {title}
emoji: "\\U0001F4E6"
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
short_description: Point clouds in, answers out
---

# {heading}

Drop a file of points or a mesh on the page, or ask `POST /predict`; `/docs` says how.

| model | task | classes or parts | stands on |
|---|---|---|---|
{rows}

Everything that it needs is in this folder: the models, what they stand on, and the package. It runs anywhere:

    pip install -r requirements.txt
    python app.py
"""


def write_space(
    folder: str | Path,
    sources: Sequence[str | Path],
    settings: ServeSettings | None = None,
    *,
    weights: str | Path = "",
    title: str = "",
) -> Path:
    """Write a folder with app.py, requirements.txt, README.md, the models, their weights and this package.

    It can be uploaded as a space of Hugging Face, and runs without a network. It is opened once before it is
    put in place, and is there whole or not at all.

    Args:
        folder: a new one, or an empty one.
        sources: run folders or adapter files.
        settings: limits of the server.
        weights: what adapter files stand on, if they do not say so.
        title: of the page; by default the names of the models.

    Returns:
        The folder.

    Raises:
        UserValueError: if the folder holds something.
        DataError: if a model stands on what cannot be copied.
    """
    folder, settings = Path(folder), settings or ServeSettings()
    with explained(folder, "written"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserValueError(f"{folder} is there and not empty; name a new folder with --space.")
        folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".writing-{secrets.token_hex(6)}"
    try:
        with explained(folder, "written"):
            (aside / MODELS).mkdir(parents=True)
            names = _copy_models(aside, sources, weights)
            given = _copy_weights(aside, weights)
            _copy_package(aside)
            _write_texts(aside, names, settings, given, title)
            if folder.exists():
                folder.rmdir()
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _copy_models(aside: Path, sources: Sequence[str | Path], weights: str | Path) -> list[str]:
    """Copy adapter files with their novelty and their weights; they are opened where they lie."""
    names = []
    for one in load_several(sources, weights=weights, device="cpu"):
        file, name = one.opened.file, f"{one.name}.safetensors"
        shutil.copyfile(file, aside / MODELS / name)
        if novelty_file(file).is_file():
            shutil.copyfile(novelty_file(file), novelty_file(aside / MODELS / name))
        if not str(weights):
            _copy_base(aside, file, str(one.opened.header.base_weights.get("source", "")), name)
        names.append(name)
    return names


def _copy_base(aside: Path, file: Path, source: str, name: str) -> None:
    """Copy the weights that an adapter file names; where they are a run's, its copy then names their file."""
    if not source:
        raise DataError(file, "does not say which weights it stands on", "name them with --weights")
    if source == BUILTIN or source.startswith(RANDOM):
        return
    if source.startswith(HUB_PREFIX):
        fetched = fetch(source).path
        place = cached_path(source, folder=aside / CACHE / "hub")
        place.parent.mkdir(parents=True, exist_ok=True)
        for each in fetched.parent.iterdir():  # with the record of its digest
            if each.is_file():
                shutil.copyfile(each, place.parent / each.name)
        return
    places = [Path(source), file.parent / source, file.parent / Path(source).name]
    found = next((place for place in places if place.exists()), Path(source))
    kept = _copy_file(found, aside)
    if found.is_dir():
        copy = aside / MODELS / name
        header, state = read_adapter(copy)
        said = {**header.base_weights, "source": kept, "sha256": sha256_file(aside / MODELS / kept)}
        write_adapter(copy, state, header.model_copy(update={"base_weights": said}))
        load(copy, device="cpu")  # on the numbers of the run, or not at all


def _copy_weights(aside: Path, weights: str | Path) -> str:
    """Copy weights that were given; how app.py names them."""
    given = str(weights)
    if not given or given == BUILTIN or given.startswith(RANDOM):
        return repr(given)
    if given.startswith(HUB_PREFIX):
        _copy_base(aside, Path(given), given, "")
        return repr(given)
    return f'HERE / "{MODELS}" / {_copy_file(Path(given), aside)!r}'


def _copy_file(file: Path, aside: Path) -> str:
    """Copy weights; those of a run's folder become one file, with its adapter merged."""
    if file.is_dir():
        digest = sha256_file(source_file(str(file)))
        made = aside / MODELS / f"{file.resolve().name}-{digest[:8]}.weights.safetensors"
        convert_weights(file, made, to="native", overwrite=True)
        return made.name
    place = aside / MODELS / file.name
    if place.exists() and sha256_file(place) != sha256_file(file):
        raise DataError(
            file, f"has the name of another file of the space ({file.name})", "rename one of them"
        )
    shutil.copyfile(file, place)
    return file.name


def _copy_package(aside: Path) -> None:
    shutil.copytree(
        Path(pcl_clora.__file__).parent, aside / "pcl_clora", ignore=shutil.ignore_patterns(*LEFT_OUT)
    )


def _write_texts(
    aside: Path, names: Sequence[str], settings: ServeSettings, weights: str, title: str
) -> None:
    stems = [Path(name).stem for name in names]
    rows = []
    for name, stem in zip(names, stems, strict=True):
        header = header_of(adapter_file(aside / MODELS / name))
        many = [*(header.parts or header.classes or ())]
        shown = ", ".join(map(str, many[:8])) + (f" and {len(many) - 8} more" if len(many) > 8 else "")
        task = str(header.base_model.get("task", "classification")).replace("_", " ")
        stands = Path(str(header.base_weights.get("source", "")) or "weights").name
        rows.append(f"| {markdown(stem)} | {task} | {markdown(shown)} | {markdown(stands)} |")
    heading = title or ", ".join(stems)
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        gradio = GRADIO
    readme = _README.format(
        title=json.dumps(heading), heading=markdown(heading), rows="\n".join(rows), gradio=gradio
    )
    app = _APP.format(
        names=json.dumps(list(names)), weights=weights, upload=settings.max_upload_mib,
        points=settings.max_points, timeout=settings.timeout_s, queue=settings.queue,
    )  # fmt: skip
    write_text(aside / "README.md", readme)
    write_text(aside / "app.py", app)
    write_text(aside / "requirements.txt", "\n".join(REQUIREMENTS) + "\n")
