"""Point cloud analysis with frozen transformers and collaborative low-rank adaptation (CLoRA).

The names below load on first use, so that `import pcl_clora` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pcl_clora.handover import registered_by

__version__ = "0.1.0"

_PUBLIC = {
    "attach_adapter": "pcl_clora.adapters",
    "build_dataset": "pcl_clora.data",
    "cost_report": "pcl_clora.report",
    "create_model": "pcl_clora.models",
    "describe_transformer": "pcl_clora.models",
    "embed": "pcl_clora.predict",
    "list_adapters": "pcl_clora.adapters",
    "list_models": "pcl_clora.models",
    "list_pretrained": "pcl_clora.models",
    "load": "pcl_clora.predict",
    "load_adapter": "pcl_clora.adapters",
    "load_run_config": "pcl_clora.engine",
    "load_weights": "pcl_clora.models",
    "published_adapter": "pcl_clora.adapters",
    "replace_attention": "pcl_clora.models",
    "trainable_plan": "pcl_clora.adapters",
    "PointClassifier": "pcl_clora.estimators",
    "PointSegmenter": "pcl_clora.estimators",
    "Trainer": "pcl_clora.engine",
}

__all__ = ["__version__", *_PUBLIC]

registered_by("the reader of runs", lambda: import_module("pcl_clora.engine"))
registered_by("the fine-tuning methods", lambda: import_module("pcl_clora.adapters"))


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pcl_clora' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
