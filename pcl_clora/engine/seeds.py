"""One set of settings, several seeds: which runs that makes."""

from __future__ import annotations

import re

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


def with_seed(cfg: RunConfig, seed: int) -> RunConfig:
    """Return the settings of one seed's run; its folder is that of the settings plus "_seed<seed>"."""
    return cfg.model_copy(update={"seed": seed, "name": f"{cfg.name}_seed{seed}"})
