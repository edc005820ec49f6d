"""CLoRA: low-rank updates of all layers, made from one set of shared spaces.

What the paper says and what this project adds is marked: K known from the paper (arXiv 2512.24603), D derived
from known facts, C our choice where the paper is silent. Settings, spaces, cores and
what becomes of a layer are one formula, so they stand in one file, though it is long.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, AdapterStateError, Delta, module_key
from pcl_clora.adapters.config import AdapterConfig, LayerwiseConfig, unique
from pcl_clora.adapters.methods.cores import BlockCore, Core, make_core
from pcl_clora.adapters.methods.lora import at_rows
from pcl_clora.adapters.methods.sade import SadeConfig, pair_similarities
from pcl_clora.adapters.methods.spaces import Bank, BankSpaces, Spaces, read_bank
from pcl_clora.adapters.paths import LinearSite, find_linears
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Role
from pcl_clora.models.layers import product

INPUT_TARGETS: tuple[Role, ...] = ("qkv", "fc1", "proj")  # linear layers that read tokens of width d
PARALLEL_TARGETS: tuple[Role, ...] = ("q", "k", "v", "proj")  # d x d pieces of the backbone
_DEFAULT_TARGETS: tuple[Role, ...] = ("qkv", "fc1")
_DEFAULT_PARALLEL: tuple[Role, ...] = ("q", "v")


class CLoRAConfig(LayerwiseConfig):
    """Settings of collaborative low-rank adaptation (arXiv 2512.24603)."""

    method: Literal["clora"] = "clora"
    rank: PositiveInt = 8  # R, width of one space (K: 8 for images)
    num_spaces: PositiveInt = 8  # E, spaces shared by all modules (C)
    placement: Literal["input", "parallel", "both"] = "input"  # before a layer, beside it, or both (D, C)
    targets: tuple[Role, ...] = _DEFAULT_TARGETS  # for "input": layers whose input is adapted (D)
    parallel_targets: tuple[Role, ...] = _DEFAULT_PARALLEL  # for "parallel": square places (C)
    sharing: Literal["global", "per_role", "none", "all"] = "global"  # of D, U; "all": Q too, CLoRA# (K)
    core: Literal["block", "diagonal", "full", "identity"] = "block"  # shape of Q; "block": E dense R x R (K)
    tied: bool = False  # U = D^T, as in ARC (C)
    init: Literal["core_zero", "up_zero"] = "core_zero"  # zero at first: Q, or U with Q = 1 (C)
    scale: float = 1.0  # s, factor of every update (C)
    bias: bool = False  # add a learned vector of size d, as in ARC (C)
    dropout: float = Field(0.0, ge=0, lt=1)  # between D and Q (C)
    sade: SadeConfig = SadeConfig()  # diversity term: form, normalized, weight
    bank: str = (
        ""  # an adapter file whose D and U are used and stay as they are; only Q and the head learn (C)
    )

    def left_out(self) -> frozenset[str]:
        """Leave out `bank` while there is none."""
        return super().left_out() | self.at_default("bank")

    def effective(self) -> CLoRAConfig:
        """Return the same adapter without what changes nothing: one space has no pairs that SADE compares."""
        if self.sade.weight and self.num_spaces > 1:
            return self
        return self.model_copy(update={"sade": SadeConfig(weight=0)})

    @model_validator(mode="after")
    def _check_targets(self) -> CLoRAConfig:
        for setting, used, valid, default in (
            ("targets", self.placement != "parallel", INPUT_TARGETS, _DEFAULT_TARGETS),
            ("parallel_targets", self.placement != "input", PARALLEL_TARGETS, _DEFAULT_PARALLEL),
        ):
            given: tuple[Role, ...] = getattr(self, setting)
            wrong = [role for role in unique(given, setting) if role not in valid]
            if wrong:
                raise UserValueError(
                    f"{setting} names {', '.join(wrong)}, but CLoRA's updates are d x d, so only "
                    f"{', '.join(valid)} fit."
                )
            if used and not given:
                raise UserValueError(
                    f"{setting} is empty, but placement={self.placement!r} needs at least one role there."
                )
            if not used and given != default:
                raise UserValueError(
                    f"{setting} has no effect with placement={self.placement!r}; leave it out."
                )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> CLoRAConfig:
        if self.scale == 0:
            raise UserValueError(
                "scale=0 switches every update off, and nothing would learn; use disabled() to compare."
            )
        if self.core == "identity" and self.init == "core_zero":
            raise UserValueError("core='identity' has no Q that could start at zero; set init='up_zero'.")
        if self.tied and self.init == "up_zero":
            raise UserValueError(
                "tied means U = D^T, so U = 0 would make D zero too, and its gradient with it; "
                "set init='core_zero'."
            )
        return self

    @model_validator(mode="after")
    def _check_sharing(self) -> CLoRAConfig:
        if self.core == "identity" and self.sharing == "all":
            raise UserValueError(
                "sharing='all' shares Q, but core='identity' has none to share; set sharing='global'."
            )
        if self.bank and (self.sharing == "none" or self.init == "up_zero"):
            raise UserValueError(
                f"sharing={self.sharing!r}, init={self.init!r}: a bank gives shared D and U, and U is not "
                "zero; set sharing='global' and init='core_zero', or leave bank out."
            )
        width = self.num_spaces * self.rank
        if self.core == "full" and self.sade.weight > 0:
            raise UserValueError(
                "SADE compares the E matrices D_h Q_h U_h of a module, but core='full' mixes all "
                f"spaces in one {width} x {width} matrix; set sade.weight=0."
            )
        return self


def new_spaces(dim: int, config: CLoRAConfig, like: Tensor) -> Spaces:
    """Make spaces for width d of the config's sizes, on the device and in the dtype of a tensor."""
    up = {"tied": config.tied, "zero_up": config.init == "up_zero"}
    return Spaces(dim, config.num_spaces, config.rank, like=like, **up)


class LowRankModule(nn.Module):
    """One adapted place, x -> s (x D Q U + bias); the paper calls it LRM.

    Args:
        config: settings of the method.
        dim: d, width of a token.
        like: gives device and dtype.
        spaces: the shared D and U; None makes its own.
        core: the shared Q; None makes its own.

    Attributes:
        bias: (d,), zero at the start; None without `bias`.
    """

    def __init__(
        self,
        config: CLoRAConfig,
        dim: int,
        like: Tensor,
        spaces: Spaces | None = None,
        core: Core | None = None,
    ) -> None:
        super().__init__()
        self.scale = config.scale
        if spaces is None:
            spaces = new_spaces(dim, config, like)
            self.spaces = spaces
        if core is None:
            core = make_core(config, like)
            self.core = core
        self._uses: tuple[Spaces, Core]
        self._uses = (spaces, core)  # a tuple: what is shared gets no second entry in the state_dict
        zero = torch.zeros(dim, device=like.device, dtype=like.dtype)
        self.bias = nn.Parameter(zero) if config.bias else None

    @property
    def used_spaces(self) -> Spaces:
        """D and U, shared or its own."""
        return self._uses[0]

    @property
    def used_core(self) -> Core:
        """Q, shared or its own."""
        return self._uses[1]

    def scaled_up(self, like: Tensor | None = None) -> Tensor:
        """Return s Q U, (E R, d). Q is folded in here, once a step, rather than applied to every token."""
        up = self.used_spaces.stacked_up()
        up = self.used_core.times(up if like is None else up.to(like))
        return up if self.scale == 1 else self.scale * up

    def scaled_bias(self) -> Tensor:
        """Return s times the bias, (d,)."""
        assert self.bias is not None
        return self.scale * self.bias

    def delta_matrix(self, like: Tensor | None = None) -> Tensor:
        """Return s D Q U, (d, d), rows in, columns out; for merging and analysis only."""
        up = self.scaled_up(like)
        return self.used_spaces.down.to(up) @ up


class CLoRADelta(Delta):
    """The updates of one linear layer: one on its input, or beside slices of its output rows, or both.

    On the input (D), x_hat = x + s (x D Q U + bias) goes into the layer. Beside it (C), the slices of the
    output get s (x D Q U + bias) added, computed from the same x. What reads x through the same D shares one
    product.

    Args:
        layer: the linear layer.
        places: "input" -> its module, and role -> (module, output rows) for those beside.
        dropout: probability of zeroing a value between D and Q.
        borrowed: modules that another layer's delta owns.
    """

    def __init__(
        self,
        layer: nn.Linear,
        places: dict[str, tuple[LowRankModule, tuple[int, int]]],
        dropout: float,
        borrowed: Collection[LowRankModule] = (),
    ) -> None:
        super().__init__()
        self.out_features = layer.out_features
        self.lrms = nn.ModuleDict({p: module for p, (module, _) in places.items() if module not in borrowed})
        self._places = {place: (module,) for place, (module, _) in places.items()}  # tuples: no second entry
        self.rows = {place: rows for place, (_, rows) in places.items() if place != "input"}
        self.dropout = nn.Dropout(dropout)
        together: dict[Spaces, list[str]] = {}
        for place, (module, _) in places.items():
            together.setdefault(module.used_spaces, []).append(place)
        self._together = tuple(together.values())  # places that read through one D

    def at(self, place: str) -> LowRankModule:
        """Return the low-rank module at "input" or at a role, its own or borrowed."""
        return self._places[place][0]

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., d) -> (..., C_out)."""
        flat, narrow = x.flatten(0, -2), {}
        for places in self._together:
            hidden = self.dropout(product.linear(flat, self.at(places[0]).used_spaces.down.t()))
            narrow.update({place: hidden for place in places})
        if "input" in self._places:
            front = self.at("input")
            flat = flat + product.linear(narrow["input"], front.scaled_up().t())
            x = (flat if front.bias is None else flat + front.scaled_bias()).view(x.shape)
        y: Tensor = base_layer(x)
        return self._add_beside(y, narrow) if self.rows else y

    def _add_beside(self, y: Tensor, narrow: dict[str, Tensor]) -> Tensor:
        groups = [[place for place in places if place != "input"] for places in self._together]
        groups = [places for places in groups if places]
        hidden = [narrow[places[0]] for places in groups]
        ups = [
            at_rows([(self.rows[place], self.at(place).scaled_up()) for place in places], self.out_features)
            for places in groups
        ]
        one = len(ups) == 1
        hidden_all, up_all = (hidden[0], ups[0]) if one else (torch.cat(hidden, dim=1), torch.cat(ups))
        y = y + product.linear(hidden_all, up_all.t()).view(y.shape)
        biases = [
            (rows, self.at(place).scaled_bias()[None])
            for place, rows in self.rows.items()
            if self.at(place).bias is not None
        ]
        return y + at_rows(biases, self.out_features)[0] if biases else y

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Fold in: W' = W (1 + s Delta)^T for the input, W' = W + s Delta^T at the rows of those beside."""
        new_weight = weight.clone()
        shift = weight.new_zeros(weight.shape[0])
        has_bias = False
        for place in self._places:
            lrm = self.at(place)
            delta = lrm.delta_matrix(like=weight)
            offset = None if lrm.bias is None else lrm.scaled_bias().to(weight)
            if place == "input":
                new_weight += weight @ delta.t()
                shift += 0 if offset is None else weight @ offset
            else:
                rows = slice(*self.rows[place])
                new_weight[rows] += delta.t()
                shift[rows] += 0 if offset is None else offset
            has_bias = has_bias or offset is not None
        if bias is None:
            return new_weight, shift if has_bias else None
        return new_weight, bias + shift

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return D^T and s (Q U)^T, behind W for the one on the input: rank E R for every place.

        Raises:
            AdapterStateError: if a place has a bias.
        """
        downs, ups = [], []
        for place in self.lrms:
            lrm = self.at(place)
            if lrm.bias is not None:
                raise AdapterStateError(
                    "This CLoRA has a bias, which no low-rank update of a weight has; merge it instead, or "
                    "train one with bias=False."
                )
            scaled = lrm.scaled_up(like=weight)
            downs.append(lrm.used_spaces.down.to(weight).t())
            if place == "input":
                ups.append(weight @ scaled.t())
            else:
                ups.append(at_rows([(self.rows[place], scaled)], self.out_features).t())
        return torch.cat(downs), torch.cat(ups, dim=1)


class CLoRA(AdapterMethod):
    """Collaborative low-rank adaptation: Delta W_j = sum over h of D_h Q_h^j U_h, with D and U shared (K).

    Trainable parameters with one set of spaces: E (2 d r + m r^2) for m adapted places (K); 61,440 for
    Point-MAE with r = E = 8 and m = 24, against 147,456 for LoRA there. rank(Delta W_j) <= E r. All updates
    fold into the frozen weights, so merged inference costs what the backbone costs (K); an input update with
    a bias gives a layer without bias one.

    Placement on the LayerNorm outputs in front of `qkv` and `fc1` is derived from ARC, the closest
    predecessor (D); all other settings marked C in `CLoRAConfig` are our choice where the paper is silent.

    Attributes:
        settings: of the CLoRA that it is.
        spaces: what layers share, by who shares it: "global", or "attention" and "ffn"; empty without
            sharing.
        core: Q if all modules share it (CLoRA#), else None.
        bank_digest: (32,) uint8, SHA-256 of the spaces of a bank; there with a bank only.

    Source: Liu, Zhu, Huang, Collaborative Low-Rank Adaptation for Pre-Trained Vision Transformers,
    arXiv 2512.24603; Dong et al., ARC, NeurIPS 2023, for the placement.
    """

    config_type: ClassVar[type[AdapterConfig]] = CLoRAConfig

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.settings = self.read(config)
        self.spaces = nn.ModuleDict()
        self.core: Core | None = None
        self.bank: Bank | None = None
        if self.settings.bank:
            self.bank = read_bank(self.settings.bank, self.settings.model_dump())
            self.register_buffer("bank_digest", self.bank.digest_bytes())
        self._lrms: tuple[LowRankModule, ...] = ()  # a tuple: the layers own them

    def read(self, config: AdapterConfig) -> CLoRAConfig:
        """Return the settings of the CLoRA that the config describes; a special case says them here."""
        return cast(CLoRAConfig, config)

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the shared spaces and, for every adapted layer, its delta.

        What stands in front of separate layers q, k, v is one module, which the first of them owns.
        """
        sites = self._find_sites(model, interface)
        modules: dict[tuple[str, Role, int], LowRankModule] = {}
        places: dict[str, dict[str, tuple[LowRankModule, tuple[int, int]]]] = {}
        for place, site in sites:
            there = places.setdefault(site.path, {})
            if place in there:
                raise UserValueError(
                    f"Two roles name {site.path}; the backbone's interface must tell them apart."
                )
            lrm = modules.get((place, site.role, site.block))
            if lrm is None:
                lrm = modules[place, site.role, site.block] = self._make_module(site, interface.embed_dim)
                self._lrms += (lrm,)
            there[place] = (lrm, site.rows)
        layers, owned = {site.path: site.layer for _, site in sites}, set[LowRankModule]()
        deltas: dict[str, Delta] = {}
        for path, found in places.items():
            deltas[path] = CLoRADelta(layers[path], found, self.settings.dropout, borrowed=owned)
            owned.update(module for module, _ in found.values())
        return deltas

    def _find_sites(self, model: nn.Module, interface: ModelInterface) -> list[tuple[str, LinearSite]]:
        config, dim = self.settings, interface.embed_dim
        sites: list[tuple[str, LinearSite]] = []
        if config.placement != "parallel":
            sites += [
                ("input", site)
                for role in config.targets
                for site in find_linears(model, interface, role, config.blocks)
            ]
        if config.placement != "input":
            for role in config.parallel_targets:
                sites += [(role, site) for site in find_linears(model, interface, role, config.blocks)]
        for place, site in sites:
            rows = site.rows[1] - site.rows[0]
            if site.layer.in_features != dim or (place != "input" and rows != dim):
                raise UserValueError(
                    f"{site.path} maps {site.layer.in_features} to {rows} features for role {site.role!r}, "
                    f"but CLoRA's updates are {dim} x {dim} here; take this role out of the targets."
                )
        return sites

    def _make_module(self, site: LinearSite, dim: int) -> LowRankModule:
        config, like = self.settings, site.layer.weight
        if config.sharing == "none":
            return LowRankModule(config, dim, like)
        key = module_key("global")
        if config.sharing == "per_role":
            key = "ffn" if site.role in ("fc1", "fc2") else "attention"
        if key not in self.spaces:
            self.spaces[key] = self.make_spaces(key, dim, like)
        if config.sharing == "all" and self.core is None:
            self.core = make_core(config, like)
        return LowRankModule(config, dim, like, cast(Spaces, self.spaces[key]), self.core)

    def make_spaces(self, key: str, dim: int, like: Tensor) -> Spaces:
        """Make new spaces that share a name, or take those of the bank; see `Bank.take`."""
        config = self.settings
        if self.bank is None:
            return new_spaces(dim, config, like)
        return BankSpaces(self.bank.take(key.replace("/", ""), dim, config.num_spaces * config.rank), like)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuse tensors that were trained on another bank."""
        if self.bank is not None:
            self.bank.check_digest(state["method.bank_digest"])

    def extra_loss_values(self) -> dict[str, Tensor]:
        """Compute SADE before weighting; nothing where there are no pairs of spaces to compare."""
        config = self.settings
        if config.num_spaces == 1 or config.core == "full":
            return {}
        groups: dict[Spaces, list[LowRankModule]] = {}
        for lrm in self._lrms:
            groups.setdefault(lrm.used_spaces, []).append(lrm)
        totals = [self._total_similarity(spaces, lrms) for spaces, lrms in groups.items()]
        total = torch.stack(totals).sum()
        return {"sade": total / len(self._lrms) if config.sade.modules == "mean" else total}

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute SADE times its weight; nothing if the weight is zero."""
        weight = self.settings.sade.weight
        values = {} if weight == 0 else self.extra_loss_values()
        return {name: weight * value for name, value in values.items()}

    def _total_similarity(self, spaces: Spaces, lrms: list[LowRankModule]) -> Tensor:
        """Sum over the modules that use these spaces of the mean or sum over their pairs."""
        sade, down, up = self.settings.sade, spaces.down, spaces.stacked_up()
        split = (self.settings.num_spaces, self.settings.rank)
        distinct = lrms if self.core is None else lrms[:1]  # a shared Q gives every module the same value
        cores = torch.stack([cast(BlockCore, lrm.used_core).blocks() for lrm in distinct]).to(down)
        with torch.autocast(down.device.type, enabled=False):
            values = pair_similarities(
                down.view(-1, *split),
                up.view(*split, -1),
                cores,
                sade.form,
                normalized=sade.normalized,
                eps=sade.eps,
            )
        pairs = values.mean(1) if sade.pairs == "mean" else values.sum(1)
        return pairs.sum() * (len(lrms) / len(distinct))
