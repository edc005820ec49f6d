"""Backbones, heads and their weights."""

from pcl_clora.models.backbones.describe import describe_transformer
from pcl_clora.models.backbones.timm_vit.network import describe_timm
from pcl_clora.models.config import ModelConfig
from pcl_clora.models.create import create_model
from pcl_clora.models.errors import WeightsError
from pcl_clora.models.interface import Backbone, ModelInterface, Role, Tokens, get_interface
from pcl_clora.models.layers.masked_autoencoder import PretrainingOutput
from pcl_clora.models.layers.open_attention import replace_attention
from pcl_clora.models.published import published_form
from pcl_clora.models.registry import (
    build_model,
    list_models,
    parse_model_config,
    register_model,
)
from pcl_clora.models.weights.hub_catalogue import PretrainedSpec, list_pretrained
from pcl_clora.models.weights.load import LoadReport, load_weights, read_state_dict

__all__ = [
    "Backbone",
    "LoadReport",
    "ModelConfig",
    "ModelInterface",
    "PretrainedSpec",
    "PretrainingOutput",
    "Role",
    "Tokens",
    "WeightsError",
    "build_model",
    "create_model",
    "describe_timm",
    "describe_transformer",
    "get_interface",
    "list_models",
    "list_pretrained",
    "load_weights",
    "parse_model_config",
    "published_form",
    "read_state_dict",
    "register_model",
    "replace_attention",
]
