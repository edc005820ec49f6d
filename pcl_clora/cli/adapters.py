"""`pcl-clora adapters list | show | card | diff | push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, complain, print_json, show

if TYPE_CHECKING:
    from pcl_clora.adapters.files import AdapterHeader

app = typer.Typer(no_args_is_help=True, help="What an adapter file is, and sharing it.")

AnyAdapter = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER", help="Adapter file, folder of a finished run, shared folder, or hub:user/name."
    ),
]


def _file(source: str) -> Path:
    from pcl_clora.adapters.share import find_adapter
    from pcl_clora.engine import RunFolder

    chosen = RunFolder(Path(source)).chosen
    return chosen if chosen.is_file() else find_adapter(source)


def _summary(path: Path, header: AdapterHeader) -> dict[str, Any]:
    metrics = header.metrics
    score = next((metrics[key] for key in ("oa", "instance_miou") if key in metrics), None)
    return {
        "path": str(path),
        "method": header.adapter.get("method"),
        "base": header.base_id,
        "weights": header.base_weights.get("source"),
        "classes": len(header.classes) or header.num_classes,
        "score": score,
        "kib": round(path.stat().st_size / 1024, 1),
    }


@app.command("list")
def list_files(
    folders: Annotated[list[Path] | None, typer.Argument(help="Where to look; runs by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the adapter files below folders: method, backbone, classes, score, size."""
    from rich.table import Table

    from pcl_clora.adapters import AdapterFileError
    from pcl_clora.adapters.files import read_header
    from pcl_clora.errors import UserValueError
    from pcl_clora.io.text import visible

    rows, others = [], 0
    for folder in folders or [Path("runs")]:
        if not folder.exists():
            raise UserValueError(f"{folder} is not there; give a folder with adapter files or runs.")
        files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else [folder]
        for path in files:
            try:
                rows.append(_summary(path, read_header(path)))
            except AdapterFileError:
                others += 1
    if as_json:
        print_json(rows)
        return
    table = Table("adapter", "method", "backbone", "weights", "classes", "score", "KiB")
    for row in rows:
        score = "" if row["score"] is None else f"{100 * row['score']:.2f} %"
        cells = (
            row["path"],
            row["method"],
            row["base"],
            row["weights"] or "",
            row["classes"],
            score,
            row["kib"],
        )
        table.add_row(*(visible(str(cell)) for cell in cells))
    show(
        table,
        f"{len(rows)} adapters; {others} other safetensors files." if others else f"{len(rows)} adapters.",
    )


@app.command("show")
def show_one(adapter: AnyAdapter, as_json: AsJson = False) -> None:
    """Print everything that an adapter file says of itself, and its tensors."""
    from pcl_clora.adapters.files import read_adapter

    path = _file(adapter)
    header, state = read_adapter(path)
    tensors = {name: list(value.shape) for name, value in state.items()}
    content = {"path": str(path), **header.model_dump(mode="json"), "tensors": tensors}
    if as_json:
        print_json(content)
        return
    import yaml

    numbers = sum(value.numel() for value in state.values())
    show(
        yaml.safe_dump(content, sort_keys=False, allow_unicode=False),
        f"{len(state)} tensors, {numbers:,} numbers",
    )


@app.command()
def card(
    adapter: AnyAdapter,
    out: Annotated[Path, typer.Option(help="Folder to write: the file, its card, a picture.")],
    name: Annotated[str, typer.Option(help="Title of the card; the folder's name by default.")] = "",
) -> None:
    """Write the folder that is shared: the adapter file with a card (README.md) that says what it is.

    Of a run the card has the picture of its report, where there is one. `load_adapter` takes the folder.
    """
    from pcl_clora.adapters.share import write_folder
    from pcl_clora.io.safe import refuse_overwriting_inputs

    file = _file(adapter)
    refuse_overwriting_inputs([out / "README.md"], [file])
    written = write_folder(file, out, name=name, picture=_picture(adapter))
    show(f"{written}: adapter.safetensors and README.md; load_adapter({str(written)!r}, model) loads it.")
    for lacking in _lacking(file, adapter):
        show(f"The card has no {lacking.removeprefix('a ')}.")


@app.command()
def diff(first: AnyAdapter, second: AnyAdapter, as_json: AsJson = False) -> None:
    """Show in what two adapter files differ: settings, base, figures, tensors."""
    from pcl_clora.adapters.differences import compare_adapters

    found = compare_adapters(_file(first), _file(second))
    if as_json:
        print_json(found._asdict())
        return
    lines = [f"{key}: {before!r} -> {after!r}" for key, before, after in found.said]
    lines += [f"only in the first: {key}" for key in found.only_first]
    lines += [f"only in the second: {key}" for key in found.only_second]
    lines += [f"{key}: {before} -> {after}" for key, before, after in found.reshaped]
    lines += [f"{key}: differs by {value:.3g} of its norm" for key, value in found.changed.items()]
    show(*lines, f"{found.equal} tensors have the same bits.")


@app.command()
def push(
    adapter: AnyAdapter,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository of the hub; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is not public.")] = False,
) -> None:
    """Upload an adapter with its card to the hub; prints the name that loads just this one."""
    from pcl_clora.adapters.share import push_adapter

    file = _file(adapter)
    for lacking in _lacking(file, adapter):
        complain(f"The card has no {lacking.removeprefix('a ')}.")
    show(push_adapter(file, repo, private=private, picture=_picture(adapter)))


def _lacking(file: Path, source: str) -> list[str]:
    """List what the card of an adapter lacks."""
    from pcl_clora.adapters.card import missing_from
    from pcl_clora.adapters.files import read_header
    from pcl_clora.engine.novelty import load_novelty

    header = read_header(file)
    has_novelty = load_novelty(file, header.tensors_sha256) is not None
    return missing_from(header, picture=_picture(source), novelty=has_novelty)


def _picture(source: str) -> str:
    """Name the picture of a run's report, of its folder or the adapter file in it; empty if none."""
    path = Path(source)
    folders = [path] if path.is_dir() else [path.parent.parent, path.parent]
    for name in ("confusion*.png", "segmentation*.png", "per_*.png", "curve.png", "figures.png"):
        for folder in folders:
            if found := sorted(folder.glob(name)):
                return str(found[0])
    return ""
