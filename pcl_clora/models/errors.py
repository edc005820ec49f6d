"""The error of this package's weights files."""


class WeightsError(ValueError):
    """A weights file that cannot or must not be loaded; the message says why and what to do."""
