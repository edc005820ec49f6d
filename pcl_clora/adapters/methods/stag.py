"""STAG: a narrow path of graph convolutions beside the blocks; no gradient goes into the first ones."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig, Task
from pcl_clora.adapters.sequence import (
    PublishedConfig,
    SequenceMethod,
    check_patches,
    largest_of_neighbors,
    neighbor_rows,
)
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Part, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles


class STAGConfig(PublishedConfig):
    """Settings of STAG; the defaults are the standard form, see `STAG` for the larger one."""

    method: Literal["stag"] = "stag"
    train: tuple[Part, ...] = ("head",)  # class token and its position stay random and frozen, as released
    rank: PositiveInt = 192  # width of the side path
    per_down: PositiveInt = 12  # a, blocks that share one projection down
    start: NonNegativeInt = 6  # s, first block that the side path sends something back to
    per_graph: PositiveInt = 6  # b, blocks that share one set of graph layers
    neighbors: PositiveInt = 8  # k, nearest patches, the patch itself included

    @model_validator(mode="after")
    def _all_blocks(self) -> STAGConfig:
        if self.blocks:
            raise UserValueError("stag's side path runs beside all blocks; leave blocks out, set start.")
        return self


class GraphSet(nn.Module):
    """Graph layers, u = own(r) + max over neighbours of near(r), r = fuse(u), and the way back, up."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.own, self.near, self.fuse = nn.Linear(rank, rank), nn.Linear(rank, rank), nn.Linear(rank, rank)
        self.up = nn.Linear(rank, dim)


class STAGDelta(Delta):
    """A block beside which the side path goes on."""

    def __init__(self, method: STAG, index: int) -> None:
        super().__init__()
        self._method = (method,)  # a tuple: the method owns the layers
        self.index = index

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        method, index, config = self._method[0], self.index, self._method[0].config
        start, end = tokens.num_prefix, tokens.num_prefix + tokens.center.shape[1]
        r = method.down(index)(x[:, start:end])
        if index:
            r = r + tokens.memo["stag", index - 1]
        y: Tensor = block(x, pos, tokens)
        if index >= config.start:
            graph = method.graph(index)
            rows = neighbor_rows(tokens, config.neighbors)
            r = graph.fuse(graph.own(r) + largest_of_neighbors(graph.near(r), rows))
            d = F.relu(graph.up(r))
            before = d.mean(dim=1, keepdim=True).expand(-1, start, -1)
            y = y + torch.cat([before, d], dim=1)
        tokens.memo["stag", index] = r
        return y


class NoNorm(Delta):
    """Leaves the last norm out."""

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), the same."""
        return x


class MeanPooling(Delta):
    """The mean over all tokens is what the head reads."""

    def forward(self, base_layer: nn.Module, compute: Any, features: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return features.mean(dim=1)


def _read_settings(file: FileFacts) -> dict[str, Any]:
    depth = file.count(r"blocks\.blocks\.(\d+)\.")
    downs = file.count(r"blocks\.addparam_downproj_dict\.(\d+)\.")
    graphs = {int(key.split(".")[2]) for key in file.shapes if key.startswith("blocks.addparam_fc_dict.")}
    start = min(graphs)
    return {
        "rank": file.shapes["blocks.addparam_downproj_dict.0.0.weight"][0],
        "per_down": -(-depth // downs),
        "start": start,
        "per_graph": -(-(depth - start) // len(graphs)),
    }


class STAG(SequenceMethod):
    """Side token adaptation on a graph: a path of width R beside the frozen blocks.

    r = r + D_i(patches before block i); from block s on r is replaced by Wf (Wc r_p + max over the 8 nearest
    centres q of Wn r_q), and ReLU(Wu r) is added to the patches, its mean to the class token. The head reads
    the mean over all tokens, without the last norm.

    Trained: 259,200 numbers for Point-MAE, 428,431 with the head of 15 classes; the larger form (per_down 3,
    start 3, per_graph 3) 851,520 and 1,020,751. No gradient reaches the blocks up to s. Not mergeable. Not
    the base at the start. It does not depend on batch mates. Class token and its position are random and
    frozen, and are in the adapter file.

    Mended: nothing in the formula; any depth, width and number of groups, where the release fixes them.

    Source: Furuya, Token Adaptation via Side Graph Convolution for Temporally and Spatially Efficient
    Fine-tuning of 3D Point Cloud Transformers, 2025, as released.
    """

    config_type: ClassVar[type[AdapterConfig]] = STAGConfig
    config: STAGConfig
    released_files = MethodFiles("STAG", r"^blocks\.addparam_downproj_dict\.", _read_settings)
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    official_keys: KeyMap = KeyMap(
        tuple(
            Rule(f"blocks.addparam_{official}_dict.*.0.", f"method.{ours}.", conv=1)
            for official, ours in (
                ("downproj", "downs.*"),
                ("graphconv1", "graphs.*.own"),
                ("graphconv2", "graphs.*.near"),
                ("fc", "graphs.*.fuse"),
                ("upproj", "graphs.*.up"),
            )
        )
    )

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.downs, self.graphs = nn.ModuleDict(), nn.ModuleDict()

    def down(self, index: int) -> nn.Module:
        """The projection down of a block."""
        return self.downs[str(index // self.config.per_down)]

    def graph(self, index: int) -> GraphSet:
        """The graph layers of a block."""
        found = self.graphs[self._graph_key(index)]
        assert isinstance(found, GraphSet)
        return found

    def _graph_key(self, index: int) -> str:
        config = self.config
        return str((index - config.start) // config.per_graph + config.start)

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the side path, and one delta a block."""
        config, dim, like = self.config, interface.embed_dim, next(model.parameters())
        blocks = self.chosen(interface)
        if interface.takes_category:
            raise UserValueError("stag is offered for classification; use another method for segmentation.")
        check_patches(interface, config.neighbors, f"neighbors={config.neighbors}")
        if config.start >= len(blocks):
            raise UserValueError(
                f"start={config.start} is behind the last of {len(blocks)} blocks, so nothing comes back "
                "from the side path; lower it."
            )
        deltas: dict[str, Delta] = {
            interface.place("norm"): NoNorm(),
            interface.place("pool"): MeanPooling(),
        }
        for index in blocks:
            key = str(index // config.per_down)
            if key not in self.downs:
                self.downs[key] = nn.Linear(dim, config.rank)
            if index >= config.start and self._graph_key(index) not in self.graphs:
                self.graphs[self._graph_key(index)] = GraphSet(dim, config.rank)
            deltas[interface.blocks[index]] = STAGDelta(self, index)
        self.to(like.device, like.dtype)
        return deltas

    def num_pooled(self, interface: ModelInterface) -> int | None:
        """The mean over all tokens."""
        return 1
