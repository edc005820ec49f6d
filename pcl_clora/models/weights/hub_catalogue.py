"""Pre-trained weights known by id: where they are, whose they are, what their authors claim of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

HUB_OWNER = "torch-pointcloud"
HUB_FILE = "model.safetensors"
UNKNOWN = "unknown"

_MAE_PAPER = "Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022"
_BERT_PAPER = "Yu et al., Point-BERT, CVPR 2022"
_SHAPENET = "ShapeNet-55 without labels"
_MODELNET = "ModelNet40, pre-trained on ShapeNet-55"
_SCAN = "ScanObjectNN {}, pre-trained on ShapeNet-55"
_BEST = "best epoch chosen on the test set"
_VOTE = f"{_BEST}, with voting"


@dataclass(frozen=True)
class Published:
    """A result that the authors of weights state; nobody here has checked it.

    Attributes:
        dataset: what was tested on.
        metric: "OA" or "instance mIoU", in [0, 1].
        value: the result.
        protocol: how it was reached.
    """

    dataset: str
    metric: str
    value: float
    protocol: str


@dataclass(frozen=True)
class PretrainedSpec:
    """One file of pre-trained weights.

    Attributes:
        id: what stands after "hub:".
        model: id of `create_model` that takes it; "" where no model here does.
        task: task of the network in the file.
        revision: commit that the address is pinned to, 40 hex digits.
        sha256: of the file; empty where it was never seen: it is then recorded on first use.
        licence: of the authors' code repository, which says nothing else about its weights.
        paper: where the weights come from.
        training_data: what the weights have seen.
        published: results that the authors state.
        measured: result that this project measured; None for none.
        num_classes: logits of the head, 0 for none.
    """

    id: str
    model: str
    task: str
    revision: str
    licence: str
    paper: str
    training_data: str
    num_classes: int = 0
    published: tuple[Published, ...] = field(default=())
    measured: Published | None = None
    sha256: str = ""

    @property
    def repo_id(self) -> str:
        """Owner and name of the repository on the hub."""
        return f"{HUB_OWNER}/{self.id}"

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"hf://{self.repo_id}/resolve/{self.revision}/{HUB_FILE}"


def _mae(
    name: str, revision: str, data: str, classes: int = 0, *published: Published, task: str
) -> PretrainedSpec:
    full = f"point-mae-base.{name}.yatian-pang"
    return PretrainedSpec(full, "point_mae", task, revision, "MIT", _MAE_PAPER, data, classes, published)


def _bert(
    name: str, revision: str, data: str, classes: int = 0, *published: Published, task: str
) -> PretrainedSpec:
    full = f"point-bert-base.{name}.xumin-yu"
    model = "" if name == "dvae" else "point_bert"
    return PretrainedSpec(full, model, task, revision, "MIT", _BERT_PAPER, data, classes, published)


def _oa(dataset: str, value: float, protocol: str = _BEST) -> Published:
    return Published(dataset, "OA", value, protocol)


_CLS, _PRE, _SEG = "classification", "pretraining", "part_segmentation"

_SPECS = (
    _mae("pretrain", "29921d9f3f4eb70ef01ade99a9534af7022c3648", _SHAPENET, task=_PRE),
    _mae(
        "modelnet40",
        "5e6a6427246e989894f1013a13ed60c49e9e560d",
        _MODELNET,
        40,
        _oa("ModelNet40, 1,024 points", 0.9380, _VOTE),
        task=_CLS,
    ),
    _mae(
        "modelnet40-8k",
        "3ed87566031344c329c7583123e31d7a5ef4e727",
        _MODELNET,
        40,
        _oa("ModelNet40, 8,192 points", 0.9404, _VOTE),
        task=_CLS,
    ),
    _mae(
        "scanobjectnn-hardest",
        "de280eb1fbeb793baa540255e398cc7b2d5d2a77",
        _SCAN.format("PB_T50_RS"),
        15,
        _oa("ScanObjectNN PB_T50_RS", 0.8518),
        task=_CLS,
    ),
    _mae(
        "scanobjectnn-objbg",
        "73ca8f4bedee155de72a7fbed4159aaa8d69f8db",
        _SCAN.format("OBJ_BG"),
        15,
        _oa("ScanObjectNN OBJ_BG", 0.9002),
        task=_CLS,
    ),
    _mae(
        "scanobjectnn-objonly",
        "9c008ef507144f3816a31556c06ab6da47ca00fa",
        _SCAN.format("OBJ_ONLY"),
        15,
        _oa("ScanObjectNN OBJ_ONLY", 0.8829),
        task=_CLS,
    ),
    _mae(
        "shapenetpart",
        "7f283670e1997fdf385132a835c3d14ca159bbee",
        "ShapeNetPart, pre-trained on ShapeNet-55",
        0,
        Published("ShapeNetPart", "instance mIoU", 0.861, _BEST),
        task=_SEG,
    ),
    _bert("dvae", "ef1dfc2e5de122dea5a85c950ec863f93e5b940e", _SHAPENET, task=_PRE),
    _bert("pretrain", "d9e0a98afbeb66e1fa465e89687132fe2eb434dd", _SHAPENET, task=_PRE),
    _bert(
        "modelnet40",
        "84d8db5edaba5cf45f77fc1485aa5a1f59d5fb0f",
        _MODELNET,
        40,
        _oa("ModelNet40, 1,024 points", 0.9267),
        _oa("ModelNet40, 1,024 points", 0.9324, _VOTE),
        task=_CLS,
    ),
    _bert(
        "modelnet40-4k",
        "659ad7361e9aa83641b5c9eb86a4aebe0dbc1974",
        _MODELNET,
        40,
        _oa("ModelNet40, 4,096 points", 0.9291),
        _oa("ModelNet40, 4,096 points", 0.9348, _VOTE),
        task=_CLS,
    ),
    _bert(
        "modelnet40-8k",
        "eb0e09720f8f25ddc759715c88b6a5e89a61aa50",
        _MODELNET,
        40,
        _oa("ModelNet40, 8,192 points", 0.9319),
        _oa("ModelNet40, 8,192 points", 0.9376, _VOTE),
        task=_CLS,
    ),
    _bert(
        "scanobjectnn-hardest",
        "c24e44cf95da3a813de37633dae52d99e6fcb31a",
        _SCAN.format("PB_T50_RS"),
        15,
        _oa("ScanObjectNN PB_T50_RS", 0.8307),
        task=_CLS,
    ),
    _bert(
        "scanobjectnn-objbg",
        "5743a6dd88200b6f333634044bbb06b5960af935",
        _SCAN.format("OBJ_BG"),
        15,
        _oa("ScanObjectNN OBJ_BG", 0.8743),
        task=_CLS,
    ),
    _bert(
        "scanobjectnn-objonly",
        "08db072b75a497ca99cde4d2769a471d518559cc",
        _SCAN.format("OBJ_ONLY"),
        15,
        _oa("ScanObjectNN OBJ_ONLY", 0.8812),
        task=_CLS,
    ),
)
PRETRAINED: dict[str, PretrainedSpec] = {spec.id: spec for spec in _SPECS}


def list_pretrained(pattern: str = "*") -> list[PretrainedSpec]:
    """List the weights whose id or model matches a shell-style pattern, sorted by id.

    Example:
        >>> [spec.id for spec in list_pretrained("point-mae-base.scan*")]
    """
    return [
        PRETRAINED[name]
        for name in sorted(PRETRAINED)
        if fnmatchcase(name, pattern) or fnmatchcase(PRETRAINED[name].model, pattern)
    ]
