"""The error of this package's weights files."""

from pcl_clora.errors import UserValueError


class WeightsError(UserValueError):
    """A weights file that cannot or must not be loaded; the message says why and what to do."""
