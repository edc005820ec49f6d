"""PointGPT's classifier by its official names, from torch's own layers: an oracle without our layers."""

import torch
import torch.nn.functional as F

from pcl_clora.models.backbones.pointgpt.layers import TurnEmbedding


def plain_layers(state, at, h, pos, depth, heads):
    """Blocks with the official names, by torch's own multi-head attention and a boolean mask."""
    blocked = torch.ones(len(h), len(h), dtype=torch.bool).triu(1)
    for index in range(depth):
        w = {key.removeprefix(f"{at}.{index}."): value for key, value in state.items()}
        norm = [F.layer_norm(h + pos, h.shape[1:], w["ln_1.weight"], w["ln_1.bias"])]
        projection = w["attn.in_proj_weight"], w["attn.in_proj_bias"]
        read, _ = F.multi_head_attention_forward(
            *(norm * 3), h.shape[1], heads, *projection, None, None, False, 0.0,
            w["attn.out_proj.weight"], w["attn.out_proj.bias"], training=False, attn_mask=blocked,
        )  # fmt: skip
        u = norm[0] + read
        v = F.layer_norm(u, h.shape[1:], w["ln_2.weight"], w["ln_2.bias"])
        v = F.gelu(F.linear(v, w["mlp.0.weight"], w["mlp.0.bias"]))
        h = u + F.linear(v, w["mlp.2.weight"], w["mlp.2.bias"])
    return h


def plain_encoder(state, patches):
    """The convolutions of the official patch encoder, small or large, by their names."""

    def run(x, at):
        numbers = sorted({int(key.split(".")[2]) for key in state if key.startswith(f"{at}.")})
        for number in numbers:
            w = {
                key.split(".")[3]: value for key, value in state.items() if key.startswith(f"{at}.{number}.")
            }
            if "running_mean" in w:
                x = F.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"]).relu()
            else:
                x = F.conv1d(x, w["weight"], w["bias"])
        return x

    x = run(patches.transpose(1, 2), "encoder.first_conv")
    x = torch.cat([x.amax(2, keepdim=True).expand_as(x), x], dim=1)
    return run(x, "encoder.second_conv").amax(2)


def plain_classifier(state, patches, center, heads):
    """Logits of one cloud whose patches are in order already."""

    def norm(at, x):
        return F.layer_norm(x, x.shape[1:], state[f"{at}.weight"], state[f"{at}.bias"])

    width = state["cls_token"].shape[2]
    h = torch.cat([state["blocks.sos"][None], state["cls_token"][0], plain_encoder(state, patches)])
    pos = torch.cat([state["cls_pos"][0], state["sos_pos"][0], TurnEmbedding(width)(center)])
    z = norm("blocks.cls_norm", norm("blocks.ln_f", plain_layers(state, "blocks.layers", h, pos, 2, heads)))
    x = torch.cat([z[1], z[2:].amax(0)])[None]
    at = "blocks.cls_head_finetune"
    for number in (0, 4, 8):
        x = F.linear(x, state[f"{at}.{number}.weight"], state[f"{at}.{number}.bias"])
        if number < 8:
            w = {
                key.split(".")[-1]: value
                for key, value in state.items()
                if key.startswith(f"{at}.{number + 1}.")
            }
            x = F.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"]).relu()
    return x[0]
