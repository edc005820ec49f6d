"""`pcl-clora weights list | inspect | diff | convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, print_json, show

app = typer.Typer(no_args_is_help=True, help="What a weights file is, what loads into what.")

AnyWeights = Annotated[
    str,
    typer.Argument(metavar="WEIGHTS", help="Weights file, folder of a finished run, hub:<id> or builtin."),
]


@app.command("list")
def list_known(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern of an id or a model.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the weights that are known by id: for whom, from where, what their authors state."""
    from dataclasses import asdict
    from fnmatch import fnmatch

    from pcl_clora.models.builtin import BUILTIN, builtin_card, list_builtin
    from pcl_clora.models.weights.hub_catalogue import list_pretrained
    from pcl_clora.report.weights import builtin_line, pretrained_view

    found = list_pretrained(pattern)
    ours = {name: builtin_card(name) for name in list_builtin() if fnmatch(name, pattern)}
    if as_json:
        known = [{**asdict(spec), "url": spec.url} for spec in found]
        print_json([*known, *({"id": BUILTIN, **card} for card in ours.values())])
    else:
        show(pretrained_view(found), *map(builtin_line, ours.values()))


@app.command()
def inspect(
    source: AnyWeights,
    as_json: AsJson = False,
) -> None:
    """Say what a weights file is, how large its network is, and which models would take how much of it."""
    from pcl_clora.models.weights.inspect import inspect_weights
    from pcl_clora.report.weights import file_view

    info = inspect_weights(source)
    if as_json:
        print_json(info.as_json())
    else:
        show(file_view(info))


@app.command()
def diff(
    first: AnyWeights,
    second: AnyWeights,
    every: Annotated[
        bool, typer.Option("--all", help="Show every tensor, not the first of a group.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show which tensors and running statistics of two weights files differ, and by how much."""
    from pcl_clora.models.weights.compare import compare_weights
    from pcl_clora.report.weights import comparison_view

    found = compare_weights(first, second)
    if as_json:
        print_json(found.as_json())
    else:
        show(comparison_view(found, every=every))


@app.command()
def convert(
    source: AnyWeights,
    target: Annotated[Path, typer.Argument(help="File to write: .safetensors, .pth or .pt.")],
    to: Annotated[str, typer.Option(help="Names to write: official, hub or native.")] = "official",
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter file: write what it makes of these weights.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a weights file under other names or in the other format; the numbers stay as they are.

    Of a fine-tuning method whose code is released, the file is one that this code reads.
    """
    from dataclasses import asdict

    from pcl_clora.engine.setup import adapter_on_weights
    from pcl_clora.io.safe import refuse_overwriting_inputs
    from pcl_clora.models.weights.convert import convert_weights
    from pcl_clora.report.weights import conversion_view

    refuse_overwriting_inputs([target], [source, adapter] if adapter else [source])
    origin = source if adapter is None else adapter_on_weights(adapter, source)
    made = convert_weights(origin, target, to=to, overwrite=overwrite)  # type: ignore[arg-type]
    if as_json:
        print_json(asdict(made))
    else:
        show(conversion_view(made))
