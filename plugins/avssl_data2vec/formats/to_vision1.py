"""Writing `checkpoint.pth` files that the data2vec_vision code loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avssl_data2vec.config import Data2VecConfig
from avssl_data2vec.formats import tables, vision1
from avssl_data2vec.formats.faithful import check_written
from avssl_data2vec.formats.names import part
from avssl_data2vec.formats.training_state import (
    backbone_is,
    image_head,
    objective_of,
    own_tensors,
    save_torch,
    training_state,
)
from avssl_data2vec.vision import relative_index


def write(model: Any, path: Path) -> list[Path]:
    """Write an opened model: a classifier, or a pretrained one with head and teacher where its directory holds them."""
    backbone_is(model, "data2vec_vision")
    c = model.backbone.config
    args: dict[str, Any] = {
        "img_size": c.image_size,
        "patch_size": c.patch,
        "in_chans": c.channels,
        "embed_dim": c.dim,
        "depth": c.depth,
        "num_heads": c.heads,
        "mlp_ratio": c.ffn / c.dim,
        "qkv_bias": c.qkv_bias,
        "init_values": c.layer_scale,
        "use_abs_pos_emb": c.absolute_positions,
        "use_rel_pos_bias": c.positions in ("relative", "both"),
        "use_shared_rel_pos_bias": c.positions in ("shared_relative", "both"),
        "norm_eps": c.norm_eps,
        "drop_rate": c.dropout,
        "attn_drop_rate": c.attention_dropout,
        "drop_path_rate": c.drop_path,
        "imagenet_default_mean_and_std": list(getattr(model.frontend.config, "mean", ())) != vision1.INCEPTION["mean"],
    }
    student = _names(own_tensors(model), c)
    if (own_head := image_head(model)) is not None:
        student |= {f"head.{k}": v for k, v in own_head.linear.state_dict().items()}
        if own_head.norm is not None:  # which takes the place of the norm before the pooling
            student = {k: v for k, v in student.items() if not k.startswith("norm.")}
            student |= {f"fc_norm.{k}": v for k, v in own_head.norm.state_dict().items()}
        student = {k: v for k, v in student.items() if k != "mask_token"}
        args["smoothing"] = model.recipe["loss"].get("label_smoothing", 0.1)
        return _save(model, path, {"model": student, "optimizer": {}, "epoch": 0, "scaler": {}, "args": args})
    state = training_state(model)
    head = {f"lm_head.{k}": v for k, v in part(state, "heads.vision.0.").items()}
    counted = {"state": {0: {"step": int(state.get("updates", 0))}}, "param_groups": []}
    data: dict[str, Any] = {"model": {**student, **head}, "optimizer": counted, "epoch": 0, "scaler": {}, "args": args}
    if model.recipe["loss"]["name"] == "data2vec":
        args |= _loss_args(objective_of(model, "data2vec", Data2VecConfig), c)
    if teacher := part(state, "teacher."):
        own = {f"lm_head.{k}": v for k, v in part(state, "teacher_heads.vision.0.").items()}
        data["model_ema"] = {**_names(teacher, c), **(own or head)}
    return _save(model, path, data)


def _save(model: Any, path: Path, data: dict[str, Any]) -> list[Path]:
    c = model.backbone.config
    read = vision1.read_data(data, path, heads=c.heads, pooled_norm=c.pooled_norm)
    check_written(model, read, "data2vec_vision", training_only=("loss.guard.*",))
    return save_torch(path, data)


def _names(tensors: Mapping[str, Tensor], c: Any) -> dict[str, Tensor]:
    side = c.image_size // c.patch
    out = tables.VISION.to_theirs(tensors)
    if c.positions in ("shared_relative", "both"):
        out["rel_pos_bias.relative_position_index"] = relative_index(side, side)
    if c.positions in ("relative", "both"):
        out |= {f"blocks.{i}.attn.relative_position_index": relative_index(side, side) for i in range(c.depth)}
    return out


def _loss_args(o: Data2VecConfig, c: Any) -> dict[str, Any]:
    dim, depth = c.dim, c.depth
    own = dim**-0.5 if o.scale is None else o.scale
    scale = own * (dim if o.reduction == "sum" else 1)  # their loss is a mean over dimensions too
    layers = list(o.targets.indices) or list(range(depth - o.targets.top_k, depth))
    return {
        "target_layers": layers,
        "layer_results": "fc" if o.targets.layers == "ffn" else "end",
        "target_layer_norm_last": "layer" in o.targets.per_layer,
        "target_batch_norm": "batch" in o.targets.per_layer,
        "target_instance_norm": "instance" in o.targets.per_layer,
        "post_target_layer_norm": "layer" in o.targets.mean,
        "post_target_instance_norm": "instance" in o.targets.mean,
        "l2_loss": o.beta == 0 and not o.absolute,
        "l1_beta": o.beta,
        "loss_scale": -1 if scale == 1.0 else scale,
        "var_w0": o.variance_weight * own / scale,
        "var_margin0": o.variance_margin,
        "ema_decay_init": o.teacher.start,
        "ema_decay": o.teacher.end,
        "ema_start_at": o.teacher.anneal,
        "num_mask_patches": round(
            o.blocks.count * (c.image_size // c.patch) ** 2 if o.blocks.count < 1 else o.blocks.count
        ),
        "min_mask_patches_per_block": o.blocks.min_patches,
        "mask_dropout_prob": o.blocks.dropout if o.blocks.dropout else -1.0,
        "max_mask_patches_per_block": o.blocks.max_patches,
    }
