"""Fine-tuning methods that leave the backbone frozen: attach, train, save, merge."""

from pcl_clora.adapters.attach import attach_adapter, load_adapter
from pcl_clora.adapters.base import AdapterMethod, AdapterStateError, Delta, TunerLayer
from pcl_clora.adapters.config import AdapterConfig, FreezeConfig
from pcl_clora.adapters.files import AdapterFileError, AdapterHeader, read_adapter
from pcl_clora.adapters.methods.adapter import AdapterMethodConfig
from pcl_clora.adapters.methods.arc import ARCConfig
from pcl_clora.adapters.methods.bitfit import BitFitConfig
from pcl_clora.adapters.methods.clora import CLoRAConfig
from pcl_clora.adapters.methods.dora import DoRAConfig
from pcl_clora.adapters.methods.fact import FacTConfig
from pcl_clora.adapters.methods.full import FullConfig
from pcl_clora.adapters.methods.linear_probe import LinearProbeConfig
from pcl_clora.adapters.methods.lora import LoRAConfig
from pcl_clora.adapters.methods.sade import SadeConfig
from pcl_clora.adapters.methods.ssf import SSFConfig
from pcl_clora.adapters.methods.vera import VeRAConfig
from pcl_clora.adapters.model import AdaptedModel, trainable_plan
from pcl_clora.adapters.plan import format_plan
from pcl_clora.adapters.published import list_published, published_adapter
from pcl_clora.adapters.registry import list_adapters, parse_adapter_config, register_adapter
from pcl_clora.adapters.status import LayerStatus

__all__ = [
    "ARCConfig",
    "AdaptedModel",
    "AdapterConfig",
    "AdapterFileError",
    "AdapterHeader",
    "AdapterMethod",
    "AdapterMethodConfig",
    "AdapterStateError",
    "BitFitConfig",
    "CLoRAConfig",
    "Delta",
    "DoRAConfig",
    "FacTConfig",
    "FreezeConfig",
    "FullConfig",
    "LayerStatus",
    "LinearProbeConfig",
    "LoRAConfig",
    "SSFConfig",
    "SadeConfig",
    "TunerLayer",
    "VeRAConfig",
    "attach_adapter",
    "format_plan",
    "list_adapters",
    "list_published",
    "load_adapter",
    "parse_adapter_config",
    "published_adapter",
    "read_adapter",
    "register_adapter",
    "trainable_plan",
]
