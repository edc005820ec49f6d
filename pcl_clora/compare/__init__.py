"""Many runs under one protocol: a study from its yaml file to its tables, pictures and page."""

from pcl_clora.compare.study import Run, Study, load_study

__all__ = ["Run", "Study", "load_study"]
