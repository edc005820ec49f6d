"""A run that starts from a trained adapter and adds classes: what was learnt stays, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.files import check_base, open_adapter
from pcl_clora.config import ConfigError
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.io.text import line_of

SHARED = "method."  # names in the file of what all layers share: the spaces


@dataclass(frozen=True)
class Held:
    """Tensors, or their first rows, that training does not change.

    Attributes:
        places: (live tensor, value that it keeps), of the same shape; views of parameters.
    """

    places: tuple[tuple[Tensor, Tensor], ...] = ()

    @torch.no_grad()
    def put_back(self) -> None:
        """Give them their values again; called behind every step of an optimiser."""
        for live, value in self.places:
            live.copy_(value)

    def hold(self, optimizer: torch.optim.Optimizer) -> None:
        """Put them back behind every step from now on."""
        if self.places:
            optimizer.register_step_post_hook(lambda *_: self.put_back())


def start_from(model: AdaptedModel, source: str, classes: Sequence[str]) -> Held:
    """Give a new adapter the values of a trained one that knew some of its classes.

    The spaces that layers share and the head's rows of the old classes are held; the layers' own tensors and
    what else is trained go on from where they were.

    Args:
        model: with a new adapter of the same method and settings, on the device of the run.
        source: folder of the finished run, or its adapter file.
        classes: of the new run; the old ones come first, in their order.

    Returns:
        What is held.

    Raises:
        AdapterFileError: if the file is at fault or stands on other weights.
        ConfigError: if the classes, the method or its settings are not those of the file.
    """
    path = Path(source)
    file = RunFolder(path).chosen if path.is_dir() else path
    header, state = open_adapter(file)
    known = header.classes
    if tuple(classes[: len(known)]) != known or len(classes) <= len(known):
        raise ConfigError(
            f"weights.adapter={source} knows {line_of(known)}; the classes of this run have to begin with "
            f"these and go on with new ones, and are {line_of(classes)}."
        )
    settings = model.config.model_dump(mode="json")
    if settings != type(model.config).model_validate(dict(header.adapter)).model_dump(mode="json"):
        raise ConfigError(
            f"weights.adapter={source} has the settings {_short(header.adapter)}, this run "
            f"{_short(settings)}; leave the section adapter as it was."
        )
    check_base(file, header, header.base_id, model.base_hash(header.not_in_weights))
    live = model.adapter_state()
    first = {key: _rows(key, live[key], state.get(key), file, len(known)) for key in live}
    model.load_adapter_state(
        {key: torch.cat([state[key].to(value), value[len(state[key]) :]]) if first[key] else state[key]
         for key, value in live.items()}
    )  # fmt: skip
    places = [live[key][: len(known)] for key in live if first[key]]
    places += [value for key, value in live.items() if key.startswith(SHARED)]
    return Held(tuple((place, place.clone()) for place in places))


def _rows(key: str, live: Tensor, given: Tensor | None, file: Path, known: int) -> bool:
    """Tell whether the new tensor has further rows."""
    if given is not None and given.shape == live.shape:
        return False
    grows = given is not None and live.shape[1:] == given.shape[1:] and len(given) == known < len(live)
    if not grows:
        found = "nothing" if given is None else tuple(given.shape)
        raise ConfigError(
            f"{file}: {key} is {found}, this run has {tuple(live.shape)}; classes cannot be added."
        )
    return True


def _short(settings: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in dict(settings).items() if key in ("method", "rank"))
