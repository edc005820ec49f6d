"""Files in and out."""

from pcl_clora.io.errors import DataError

__all__ = ["DataError"]
