"""Searching settings under a budget: `pcl-clora tune`."""

from pcl_clora.tune.search import TuneResult, tune
from pcl_clora.tune.settings import Search, load_search

__all__ = ["Search", "TuneResult", "load_search", "tune"]
