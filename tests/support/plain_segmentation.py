"""The part segmentation heads by their official names, from torch's own functions, nothing rewritten."""

import torch
import torch.nn.functional as F


def conv(state, at, x):
    """Convolution of kernel size 1 over (B, C, N) or (B, C, N, k)."""
    weight, bias = state[f"{at}.weight"], state.get(f"{at}.bias")
    return F.conv2d(x, weight, bias) if x.dim() == 4 else F.conv1d(x, weight, bias)


def norm(state, at, x):
    keys = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{at}.{key}"] for key in keys))


def nearest(known, queries, k):
    """Squared distances and indices of the k nearest, by the matrix of all: each (B, N, k)."""
    return (queries[:, :, None] - known[:, None]).square().sum(-1).topk(k, largest=False)


def propagate(state, at, points, center, own, features):
    """Interpolate features (B, C, M) to points, put their own (B, C', N) before them, two layers."""
    dist2, idx = nearest(center, points, 3)
    weight = 1 / (dist2 + 1e-8)
    weight = weight / weight.sum(-1, keepdim=True)
    rows = torch.arange(len(idx))[:, None, None]
    carried = (features.transpose(1, 2)[rows, idx] * weight[..., None]).sum(2).transpose(1, 2)
    x = torch.cat([own, carried], dim=1)
    for layer in (0, 1):
        x = norm(state, f"{at}.mlp_bns.{layer}", conv(state, f"{at}.mlp_convs.{layer}", x)).relu()
    return x


def plain_head(state, points, center, features, category, extra=None, pooled=None):
    """Point-MAE's head: features (B, C, G) of the three blocks -> log-probabilities (B, N, P).

    pooled (B, 2 C) stands in place of their maximum and mean.
    """
    num_points = points.shape[1]
    code = F.one_hot(category, state["label_conv.0.weight"].shape[1]).to(points)[..., None]
    label = F.leaky_relu(norm(state, "label_conv.1", conv(state, "label_conv.0", code)), 0.2)
    pooled = torch.cat([features.amax(2), features.mean(2)], dim=1) if pooled is None else pooled
    parts = [pooled[..., None], label]
    if extra is not None:
        parts.insert(1, extra[..., None])
    everywhere = [part.expand(-1, -1, num_points) for part in parts]
    own = points.transpose(1, 2)
    x = torch.cat([propagate(state, "propagation_0", points, center, own, features), *everywhere], dim=1)
    x = norm(state, "bns1", conv(state, "convs1", x)).relu()
    x = norm(state, "bns2", conv(state, "convs2", x)).relu()
    return conv(state, "convs3", x).transpose(1, 2).log_softmax(-1)


def farthest(points, count):
    """Farthest points of one cloud after another, from the first: (B, count, 3)."""
    chosen = []
    for cloud in points:
        index, dist2 = [0], (cloud - cloud[0]).square().sum(-1)
        while len(index) < count:
            index.append(int(dist2.argmax()))
            dist2 = torch.minimum(dist2, (cloud - cloud[index[-1]]).square().sum(-1))
        chosen.append(cloud[index])
    return torch.stack(chosen)


def graph(state, at, points, x, center, known):
    """Two layers over the edges to the 4 nearest: (B, C, N), (B, C, M) -> (B, C, N)."""
    for layer, (place, values) in enumerate([(center, known), (points, None)], start=1):
        values = x if values is None else values
        _, idx = nearest(place, points, 4)
        rows = torch.arange(len(idx))[:, None, None]
        there = values.transpose(1, 2)[rows, idx].permute(0, 3, 1, 2)
        here = x[..., None].expand_as(there)
        edges = conv(state, f"{at}.layer{layer}.0", torch.cat([there - here, here], dim=1))
        scale, shift = state[f"{at}.layer{layer}.1.weight"], state[f"{at}.layer{layer}.1.bias"]
        x = F.leaky_relu(F.group_norm(edges, 4, scale, shift), 0.2).amax(-1)
    return x


def plain_point_bert_head(state, points, center, features, category, num_points):
    """Point-BERT's head: features (B, 3 D, G) -> log-probabilities (B, N, P)."""
    low, middle, high = features.chunk(3, dim=1)
    level1, level2 = (farthest(points, count) for count in num_points)
    x2 = propagate(state, "propagation_2", level2, center, level2.transpose(1, 2), middle)
    x1 = propagate(state, "propagation_1", level1, center, level1.transpose(1, 2), low)
    x2 = graph(state, "dgcnn_pro_2", level2, x2, center, high)
    x1 = graph(state, "dgcnn_pro_1", level1, x1, level2, x2)
    num_categories = state["propagation_0.mlp_convs.0.weight"].shape[1] - 3 - x1.shape[1]
    code = F.one_hot(category, num_categories).to(points)[..., None].expand(-1, -1, points.shape[1])
    own = torch.cat([code, points.transpose(1, 2)], dim=1)
    x = propagate(state, "propagation_0", points, level1, own, x1)
    x = norm(state, "bn1", conv(state, "conv1", x)).relu()
    return conv(state, "conv2", x).transpose(1, 2).log_softmax(-1)
