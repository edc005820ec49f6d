"""One set of settings, several seeds: which runs that makes."""

from __future__ import annotations

import re
from typing import Any

from pcl_clora.config import ConfigError
from pcl_clora.engine.config import RunConfig


def parse_seeds(text: str, *, what: str = "seed") -> tuple[int, ...]:
    """Read a list of seeds, or of other numbers, such as "0,1,2" or "0-4,7".

    Returns:
        The numbers in the order given.

    Raises:
        ConfigError: if the text is no such list, or names a number twice.
    """
    seeds: list[int] = []
    for part in text.replace(" ", "").split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise ConfigError(f"{what}s={text!r} is no list of {what}s; write them like 0,1,2 or 0-4.")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{what}s={text!r} names a {what} twice; a run counts once.")
    return tuple(seeds)


def with_seed(cfg: RunConfig, seed: int, *, new_shots: bool = False) -> RunConfig:
    """Return the settings of one seed's run; its folder is that of the settings plus "_seed<seed>".

    Args:
        cfg: settings of all seeds.
        seed: of this run.
        new_shots: let the seed choose the training clouds too (data.shots_seed).

    Raises:
        ConfigError: if new shots are asked for where data.shots leaves nothing to choose.
    """
    changes: dict[str, Any] = {"seed": seed, "name": f"{cfg.name}_seed{seed}"}
    if new_shots:
        if cfg.data.shots_in_reader:
            raise ConfigError(
                f"The training clouds of {cfg.data.name} are those of a fold; use `pcl-clora fewshot`, which "
                "runs several folds."
            )
        if not cfg.data.shots:
            raise ConfigError(
                f"data.shots={cfg.data.shots} of {cfg.data.name} leaves no training clouds to choose; set "
                "data.shots to the clouds a class, or leave --new-shots out."
            )
        changes["data"] = cfg.data.model_copy(update={"shots_seed": seed})
    return cfg.model_copy(update=changes)
