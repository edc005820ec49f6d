"""`pcl-clora data check | info | pack`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcl_clora.cli.common import AsJson, Overrides, interruptible, print_json, show

if TYPE_CHECKING:
    from pcl_clora.data import DataConfig
    from pcl_clora.data.packed.write import ShardDone

app = typer.Typer(no_args_is_help=True, help="Look at data folders, check them, pack them.")

Root = Annotated[Path, typer.Argument(help="Folder of one data set.")]
Source = Annotated[
    Path, typer.Argument(help="Folder of one data set, or a yaml file with a section data, such as of cfgs.")
]


@app.command()
def check(
    source: Source,
    overrides: Overrides = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Also compare with a manifest, a yaml file of data/manifests.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every file of a data folder and say all that is wrong; exit code 1 if there is an error.

    A yaml file is checked with its settings: only what they need, and whether classes have enough clouds for
    data.shots or few-shot folds. Every finding names the file, what was found and expected, and the remedy.
    """
    from dataclasses import asdict

    from pcl_clora.data import check_data, check_manifest, check_root

    with_settings = _is_yaml(source) or bool(overrides)
    config = _source_config(source, overrides or [], any_size=True) if with_settings else None
    root = Path(config.root) if config is not None and config.root else source
    findings = check_root(root) if config is None else check_data(config)
    if manifest:
        findings = [*findings, *check_manifest(root, manifest)]
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        print_json({"root": str(root), "ok": not errors, "findings": [asdict(item) for item in findings]})
    else:
        more = len(findings) - errors
        show(
            *map(str, findings),
            f"{root}: {errors} error(s), {more} other finding(s)." if findings else f"{root}: fine.",
        )
    if errors:
        raise typer.Exit(1)


@app.command()
def info(root: Root, as_json: AsJson = False) -> None:
    """Say what a data folder holds, from names and headers only: layout, splits, classes, points."""
    from dataclasses import asdict

    from pcl_clora.data import describe_root
    from pcl_clora.io.text import visible

    found = describe_root(root)
    if as_json:
        print_json(asdict(found))
        return
    more = "".join(f" data.{key}={value}" for key, value in found.settings.items())
    how = f"read it with: data.name={found.layout} data.root={root}{more}"
    show(str(found), how, ", ".join(map(visible, found.class_names)))


@app.command()
def pack(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder of the packed data; made if it is missing.")],
    overrides: Overrides = None,
    shard_clouds: Annotated[
        int,
        typer.Option(
            min=0, help="Clouds a shard; 0 takes as many as have about 64 MiB of points, at most 16,384."
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Turn a data set into shards that are mapped into memory: data.name=packed data.root=OUT reads them.

    All splits are packed with the points that are read with these settings, for example data.num_points=2048
    (a folder whose clouds have one size gives all their points). A killed pack goes on with the same command;
    `pcl-clora data check OUT` compares every shard with its digest.
    """
    from pcl_clora.data.packed.write import pack_dataset

    config = _source_config(source, overrides or [], any_size=False)
    with interruptible("Stopped; the same command goes on."):
        index = pack_dataset(config, out, clouds_per_shard=shard_clouds, on_shard=None if as_json else _tell)
    if as_json:
        print_json({"root": str(out), **index.model_dump(mode="json")})
        return
    splits = ", ".join(f"{entry.num_clouds} {name}" for name, entry in index.splits.items())
    shards = sum(len(entry.shards) for entry in index.splits.values())
    show(f"{out}: {splits} in {shards} shards.", f"read it with: data.name=packed data.root={out}")


def _tell(done: ShardDone) -> None:
    state = "was there" if done.kept else "written"
    print(f"{done.split}: shard {done.number + 1} of {done.num_shards} {state}", file=sys.stderr)


def _is_yaml(source: Path) -> bool:
    return source.suffix in (".yaml", ".yml")


def _source_config(source: Path, overrides: list[str], *, any_size: bool) -> DataConfig:
    """Read the data section of a yaml file, or find out how a folder is read.

    Args:
        source: the file or folder.
        overrides: changes as data.setting=value.
        any_size: whether it does not matter how many points are read of a cloud.
    """
    from pcl_clora.config import ConfigError, merge, parse_overrides, read_yaml
    from pcl_clora.data import describe_root, parse_data_config

    changes = parse_overrides(overrides)
    if changes.keys() - {"data"}:
        raise ConfigError(f"only data can be set here, as data.setting=value, not {sorted(changes)}.")
    if _is_yaml(source):
        below = {"data": read_yaml(source).get("data", {})}
    else:
        found = describe_root(source)
        below = {"data": {"name": found.layout, "root": str(source), **found.settings}}
        size = changes.get("data", {}).get("num_points") or found.num_points or int(any_size)
        if not size:
            raise ConfigError(
                f"{source}: how many points its clouds have is not known without reading them; set "
                "data.num_points."
            )
        below["data"]["num_points"] = size
    return parse_data_config(merge(below, changes)["data"])
