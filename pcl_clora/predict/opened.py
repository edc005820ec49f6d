"""Open a finished run or an adapter file: the model, and all that a prediction needs to know besides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pcl_clora.adapters import AdaptedModel, load_adapter
from pcl_clora.adapters.files import AdapterHeader, read_header
from pcl_clora.adapters.share import HUB_PREFIX, find_adapter, name_of
from pcl_clora.config import ConfigError
from pcl_clora.data import InputRule, PartTaxonomy, build_dataset
from pcl_clora.engine import (
    ClassificationTask,
    PartSegmentationTask,
    RunConfig,
    RunFolder,
    load_run,
    load_run_config,
    make_task,
)
from pcl_clora.engine.precision import Precision, precision_of_run
from pcl_clora.engine.product_route import product_of_run, recorded_product
from pcl_clora.engine.run.base import rebuild_base
from pcl_clora.engine.run.rule import load_input_rule, rule_of_run
from pcl_clora.engine.run.taxonomy import taxonomy_of_header, taxonomy_of_run
from pcl_clora.engine.tasks import Task
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, explained
from pcl_clora.models.layers.product import Route


@dataclass(frozen=True)
class Opened:
    """What a predictor is made of.

    Attributes:
        name: of the run's folder, or of the file without its ending.
        file: the adapter file.
        header: of the file.
        model: in evaluation mode, on the CPU.
        adapter: name of the adapter in the model.
        task: with the names of classes, or categories and parts.
        rule: which points the model sees.
        precision: in which it was trained.
        product: the library by which it multiplied.
        cfg: settings of the run; None of a bare adapter file.
    """

    name: str
    file: Path
    header: AdapterHeader
    model: AdaptedModel
    adapter: str
    task: Task
    rule: InputRule
    precision: Precision
    product: Route
    cfg: RunConfig | None = None


def adapter_file(source: str | Path) -> Path:
    """Name the adapter file of a finished run's folder, of a shared folder, of the hub, or itself.

    Args:
        source: a folder or file; or "hub:user/name", with "@revision" to pin it.

    Raises:
        DataError: if there is none.
        HubError: if the hub does not have it.
    """
    if str(source).startswith(HUB_PREFIX):
        return find_adapter(source)
    path = Path(source)
    with explained(path, "read"):
        if path.is_dir():
            return find_adapter(path) if _is_shared(path) else RunFolder(path).chosen
        if not path.exists():
            raise DataError(path, "there is no such run folder or adapter file", "check the path")
    return path


def _is_shared(folder: Path) -> bool:
    """Tell a folder of `adapters card`, which holds an adapter, from one of a run."""
    return find_adapter(folder) != folder and not RunFolder(folder).config.is_file()


def header_of(source: str | Path) -> AdapterHeader:
    """Read the header of the adapter file of a run, or of itself.

    Raises:
        ConfigError: if the folder holds no finished run.
        AdapterFileError: if the file is at fault.
        FileAccessError: if it may not be read.
    """
    file = adapter_file(source)
    with explained(file, "read"):
        if not file.is_file():
            raise ConfigError(f"{source} is not the folder of a finished run: {file} is missing.")
        return read_header(file)


def open_source(
    source: str | Path,
    *,
    weights: str | Path = "",
    data: str | Path | None = None,
    beside: AdaptedModel | None = None,
) -> Opened:
    """Open the folder of a finished run, or an adapter file.

    Args:
        source: the folder or the file, or "hub:user/name@revision". A file that does not say its weights,
            but lies in a run, opens that run.
        weights: what an adapter file stands on, where it does not say so, or they lie elsewhere.
        data: folder of the run's data, where it is not where the run found it; only asked for names.
        beside: put the adapter on this model, as one more, instead of building its backbone.

    Raises:
        ConfigError: if it is no finished run, or a task without labels.
        AdapterFileError: if the file is at fault, or stands on another backbone than `beside`.
    """
    path, file = Path(source), adapter_file(source)
    shared = str(source).startswith(HUB_PREFIX) or (path.is_dir() and _is_shared(path))
    if path.is_dir() and not shared and not str(weights):
        return _open_run(path, data, beside)
    header, run = header_of(source), file.parent.parent
    in_run = RunFolder(run).chosen == file and RunFolder(run).config.is_file()
    if in_run and not str(weights) and not header.base_weights:
        return _open_run(run, data, beside)
    if data is not None:
        raise UserValueError(f"data={str(data)!r} belongs to a run folder; {file} is an adapter file.")
    name = _name(beside)
    base = beside if beside is not None else rebuild_base(file, header, weights)
    model = load_adapter(file, base, name, trainable=False)
    return Opened(
        name=name_of(source) if shared else run.name if in_run else file.stem,
        file=file,
        header=header,
        model=model,
        adapter=name,
        task=_task_of_header(file, header),
        rule=load_input_rule(file),
        precision="bfloat16" if header.computed.get("precision") == "bfloat16" else "float32",
        product=recorded_product(str(header.computed.get("product", "torch"))),
    )


def _open_run(run: Path, data: str | Path | None, beside: AdaptedModel | None) -> Opened:
    name, files = _name(beside), RunFolder(run)
    if beside is None:
        cfg, model = load_run(run)
    else:
        files.check_chosen()
        cfg, model = load_run_config(files.config), load_adapter(files.chosen, beside, name, trainable=False)
    if data is not None:
        values = {**cfg.data.model_dump(), "root": str(data)}
        cfg = cfg.model_copy(update={"data": type(cfg.data).model_validate(values)})
    header = read_header(files.chosen)
    return Opened(
        name=run.resolve().name,
        file=files.chosen,
        header=header,
        model=model,
        adapter=name,
        task=_task_of_run(run, cfg, header),
        rule=rule_of_run(cfg, header),
        precision=precision_of_run(run, cfg),
        product=product_of_run(run, cfg),
        cfg=cfg,
    )


def _name(beside: AdaptedModel | None) -> str:
    return "default" if beside is None else f"adapter{len(beside.adapter_names)}"


def _task_of_run(run: Path, cfg: RunConfig, header: AdapterHeader) -> Task:
    if cfg.model.task == ClassificationTask.name:
        return _classification(header)
    if cfg.model.task == PartSegmentationTask.name:
        taxonomy = taxonomy_of_header(header) or taxonomy_of_run(RunFolder(run), header.classes)
        if taxonomy is None:
            return make_task(cfg.model, build_dataset(cfg.data, "test"))
        return PartSegmentationTask(taxonomy)
    raise ConfigError(f"{run}: a run of the task {cfg.model.task!r} predicts no labels.")


def _task_of_header(file: Path, header: AdapterHeader) -> Task:
    task = str(header.base_model.get("task", ClassificationTask.name))
    if task == ClassificationTask.name:
        return _classification(header)
    taxonomy: PartTaxonomy | None = taxonomy_of_header(header)
    if task != PartSegmentationTask.name:
        raise ConfigError(f"{file}: an adapter of the task {task!r} predicts no labels.")
    if taxonomy is None:
        raise DataError(
            file, "does not say the parts of its categories", "give the folder of its run instead"
        )
    return PartSegmentationTask(taxonomy)


def _classification(header: AdapterHeader) -> Task:
    return ClassificationTask(header.classes or int(header.num_classes or 0))
