"""A server: one HTTP address that answers with what models say of a cloud, and a page for people."""

from pcl_clora.serve.server import make_app, need_packages, serve
from pcl_clora.serve.settings import ServeSettings
from pcl_clora.serve.space import write_space

__all__ = ["ServeSettings", "make_app", "need_packages", "serve", "write_space"]
