"""Settings under which methods were published: by method, backbone, task and data set.

What is here comes from the released settings files and scripts of each method, mode: paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from pcl_clora.adapters.config import AdapterConfig, Recipe, Task
from pcl_clora.adapters.registry import parse_settings, register_reader
from pcl_clora.config import ConfigError, unknown_name

SCANS = ("scanobjectnn", "scanobjectnn_objbg", "scanobjectnn_objonly")  # the first is PB_T50_RS, "hardest"
CLASSIFIED = (*SCANS, "modelnet40")
PARTS = "shapenetpart"
WHERE = ("backbone", "task", "dataset", "variant")  # what tells settings of one method apart

_FAMILY = Recipe()
_MODELNET = replace(_FAMILY, num_points=1024, num_groups=64)
_TURNED = replace(_FAMILY, augment="rotate_y")
_PARTS = replace(_FAMILY, lr=2e-4, batch_size=16, augment="isotropic", double_step=True)


@dataclass(frozen=True)
class Published:
    """Settings of one method on one data set.

    Attributes:
        backbones: what they were published for.
        settings: those that are not the defaults of the method in paper mode.
        recipe: how it was trained; `recipes` says where another backbone's differs.
    """

    backbones: tuple[str, ...]
    settings: Mapping[str, Any]
    recipe: Recipe
    recipes: tuple[tuple[str, Recipe], ...] = ()


def _classified(
    backbones: tuple[str, ...],
    settings: Mapping[str, Mapping[str, Any]],
    recipes: Mapping[str, Recipe],
    others: Mapping[str, Mapping[str, Recipe]] | None = None,
) -> dict[str, Published]:
    """List the four data sets of classification; recipes by data set, of other backbones in `others`."""
    return {
        dataset: Published(
            backbones,
            settings.get(dataset, {}),
            recipes[dataset],
            tuple((name, by_set[dataset]) for name, by_set in (others or {}).items()),
        )
        for dataset in CLASSIFIED
    }


def _recipes(scans: Recipe, modelnet: Recipe, **more: Mapping[str, Any]) -> dict[str, Recipe]:
    """Give every data set of classification its recipe; more says what differs in one of them."""
    usual = {**dict.fromkeys(SCANS, scans), "modelnet40": modelnet}
    return {dataset: replace(recipe, **more.get(dataset, {})) for dataset, recipe in usual.items()}


_PPT_SCANS = {"num_extra": 128, "extra_size": 32}
_PPT_RECIPES = _recipes(replace(_TURNED, drop_path=0.3), replace(_MODELNET, lr=1e-4, drop_path=0.3))
_TRACKED = {"freeze": {"norm_stats": "track"}}  # as all released code runs
_LARGE = {"per_down": 3, "start": 3, "per_graph": 3}

TABLE: dict[tuple[str, str], dict[str, Published]] = {
    ("dapt", ""): _classified(
        ("point_mae",),
        {
            "scanobjectnn": {"dropout": 0.2},
            "scanobjectnn_objbg": {"dropout": 0.5},
            "scanobjectnn_objonly": {"patch_token": "none"},
            "modelnet40": {"rank": 72, "prompt_token": "none"},
        },
        _recipes(
            _FAMILY,
            _MODELNET,
            scanobjectnn={"drop_path": 0.3},
            scanobjectnn_objbg={"drop_path": 0.3},
        ),
    ),
    ("idpt", ""): {
        **_classified(
            ("point_mae",),
            {"scanobjectnn_objbg": {"head_tokens": "prompt"}, "scanobjectnn_objonly": {"blocks": (6,)}},
            _recipes(_TURNED, _MODELNET),
        ),
        PARTS: Published(("point_mae",), {}, _PARTS),
    },
    ("vpt", ""): _classified(
        ("point_mae",), dict.fromkeys(CLASSIFIED, _TRACKED), _recipes(_TURNED, _MODELNET)
    ),
    ("stag", ""): _classified(("point_mae",), {}, _recipes(_FAMILY, _MODELNET)),
    ("stag", "sl"): _classified(
        ("point_mae",), dict.fromkeys(CLASSIFIED, _LARGE), _recipes(_FAMILY, _MODELNET)
    ),
    ("pointgst", ""): _classified(
        ("point_mae", "act", "recon_plain"),
        {},
        _recipes(_FAMILY, _MODELNET),
        dict.fromkeys(("act", "recon_plain"), _recipes(_TURNED, _MODELNET)),
    ),
    ("ppt", ""): {
        **_classified(
            ("point_mae", "recon_plain"),
            {**dict.fromkeys(SCANS, _PPT_SCANS), "modelnet40": {"num_extra": 64, "extra_size": 32}},
            _PPT_RECIPES,
        ),
        PARTS: Published(("point_mae", "recon_plain"), {"width": 128}, replace(_PARTS, lr=1e-4)),
    },
    ("gft", ""): {
        **_classified(
            ("point_mae", "point_bert", "act"),
            {
                "scanobjectnn_objbg": {"num_heads": 2},
                "scanobjectnn_objonly": {"num_heads": 2, "dropout": 0.1},
                "modelnet40": {"num_heads": 2},
            },
            _recipes(_TURNED, _FAMILY, scanobjectnn={"weight_decay": 0.005}),
        ),
        PARTS: Published(("point_mae",), {"num_heads": 2}, _PARTS),
    },
    ("pointlora", ""): {
        "scanobjectnn": Published(
            ("point_mae",), {"num_first": 128, "first_size": 32}, replace(_FAMILY, drop_path=0.3)
        )
    },
    ("point_peft", ""): {
        "scanobjectnn": Published(
            ("point_mae",), {}, replace(_TURNED, note="clouds are also scaled by 0.9 to 1.1")
        )
    },
}


def published_adapter(
    method: str,
    *,
    backbone: str = "point_mae",
    task: Task = "classification",
    dataset: str = "",
    variant: str = "",
    **overrides: Any,
) -> AdapterConfig:
    """Return the settings under which a method was published, in paper mode.

    Args:
        method: name of the method.
        backbone: the network under it: point_mae, point_bert, act, or recon_plain, which is what papers call
            ReCon there.
        task: "classification" or "part_segmentation".
        dataset: "scanobjectnn" (PB_T50_RS), "scanobjectnn_objbg", "scanobjectnn_objonly", "modelnet40" or
            "shapenetpart"; "" for the first one of the task.
        variant: "sl" for the larger form of STAG.
        overrides: settings of the method that differ, for example `mode="corrected"`.

    Returns:
        The settings; their `recipe` says how it was trained, and is in no dump, hash or comparison.

    Raises:
        ConfigError: if nothing was published for these, or an override is no setting of the method; the
            message lists what there is.

    Example:
        >>> config = published_adapter("dapt", dataset="modelnet40")
        >>> config.rank, config.recipe.lr
        (72, 0.0005)
    """
    if task not in get_args(Task):
        raise ConfigError(unknown_name(str(task), get_args(Task), what="task"))
    dataset = dataset or (PARTS if task == "part_segmentation" else SCANS[0])
    forms = {form: sets for (name, form), sets in TABLE.items() if name == method}
    if not forms:
        names = {name for name, _ in TABLE}
        raise ConfigError(unknown_name(method, sorted(names), what="method with published settings"))
    found = forms.get(variant, {}).get(dataset)
    if (
        found is None
        or backbone not in found.backbones
        or (dataset == PARTS) != (task == "part_segmentation")
    ):
        given = {"backbone": backbone, "task": task, "dataset": dataset, "variant": variant}
        raise ConfigError(
            f"{method} was not published with {', '.join(f'{k}={v!r}' for k, v in given.items() if v)}. "
            f"There is: {'; '.join(f'{k} on {v}' for k, v in _there_is(forms).items())}."
        )
    config = parse_settings(_in_paper_mode(method, {**found.settings, **overrides}))
    return config.with_recipe(dict(found.recipes).get(backbone, found.recipe))


def list_published() -> list[dict[str, str]]:
    """List all published settings: method, backbone, task, dataset and variant of each."""
    return [
        {
            "method": method,
            "backbone": backbone,
            "task": "part_segmentation" if dataset == PARTS else "classification",
            "dataset": dataset,
            "variant": variant,
        }
        for (method, variant), sets in TABLE.items()
        for dataset, found in sets.items()
        for backbone in found.backbones
    ]


def _there_is(forms: Mapping[str, Mapping[str, Published]]) -> dict[str, str]:
    """Say what a method was published for: data set, with its variants -> backbones."""
    there: dict[str, list[str]] = {}
    for form, sets in forms.items():
        for dataset, found in sets.items():
            backbones = ", ".join(found.backbones) + (f" (also variant={form!r})" if form else "")
            there.setdefault(dataset, []).append(backbones)
    return {dataset: found[-1] for dataset, found in there.items()}


def _in_paper_mode(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    mode = {} if method == "vpt" else {"mode": "paper"}  # which has one form
    return {"method": method, **mode, **settings}


def _read(values: Mapping[str, Any]) -> AdapterConfig:
    """Read a section `published: <method>`, with where, and settings that differ."""
    given = dict(values)
    method = str(given.pop("published"))
    if given.get("method", method) != method:
        raise ConfigError(
            f"The section names method={given['method']!r} and published={method!r}; leave one of them out."
        )
    given.pop("method", None)
    return published_adapter(method, **given)


register_reader("published", _read)
