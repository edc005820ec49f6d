"""What stands at a backbone's door: the type and the shape of what it is given, said in the user's words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcl_clora.errors import UserTypeError, UserValueError

_CASTS = {torch.float32: ".float()", torch.float64: ".double()"}


def check_input(given: object, model: nn.Module, *, what: str = "points") -> Tensor:
    """Require a tensor of the model's type with something in it. Shapes and types only, no value is read.

    Args:
        given: what the model was called with.
        model: the backbone; the type of its first parameter is what it computes in.
        what: how messages call the input.

    Returns:
        The input.

    Raises:
        TypeError: if it is no tensor, or of another type than the model.
        ValueError: if it has no clouds (or images) in it.
    """
    if not isinstance(given, Tensor):
        raise UserTypeError(
            f"{what} are a {type(given).__name__}; this model takes a tensor, for example "
            f"torch.as_tensor({what}).float()."
        )
    own = next(model.parameters()).dtype
    if own not in _CASTS and not torch.is_autocast_enabled(given.device.type):
        raise UserTypeError(
            f"The model is {_name(own)}, which is not exact enough for distances between points; convert it "
            "with model.float(), and run it under torch.autocast for speed."
        )
    wanted = own if own in _CASTS else torch.float32
    if given.dtype != wanted:
        raise UserTypeError(
            f"{what} are {_name(given.dtype)}, convert with {_CASTS[wanted]}: the model takes "
            f"{_name(wanted)}."
        )
    if given.dim() > 0 and given.shape[0] == 0:
        raise UserValueError(f"The batch is empty: {what} have shape {tuple(given.shape)}; give one or more.")
    return given


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
