"""Checkpoints of the data2vec_vision repository (`checkpoint-N.pth`, and DeepSpeed's `module` files)."""

from __future__ import annotations

import ast
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl.safeload import load_torch, plain
from avssl_data2vec.formats import tables
from avssl_data2vec.formats.names import fresh_head, prefixed, tensors_only, unknown, whole
from avssl_data2vec.vision import relative_index

SOURCE = "github.com/facebookresearch/data2vec_vision (data2vec parts CC-BY-NC 4.0)"
LICENCE = "CC-BY-NC-4.0"
INCEPTION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # of the pixels; our default is ImageNet's
_INDEX = "relative_position_index"


def detect(path: Path) -> bool:
    """Whether a file holds a BEiT-like model with a mask token or relative positions; reads no tensor."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        index = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        content = archive.read(index) if index else b""
    return (
        b"patch_embed.proj.weight" in content
        and b"blocks.0.attn.qkv.weight" in content
        and b"blocks.0.attn.qkv.bias"
        not in content  # of other vision transformers: BEiT has q_bias and v_bias, or none
        and any(mark in content for mark in (b"relative_position_bias_table", b"mask_token", b"attn.q_bias"))
    )


def read(path: Path, *, heads: int = 0, updates: int | None = None, pooled_norm: bool | None = None) -> Imported:
    """A pretraining checkpoint (with `lm_head`), or a fine-tuned classifier (with `head`).

    heads: attention heads, for a model without relative positions whose args do not say. updates: finished optimiser
    updates, by default those that the file's optimiser counted. pooled_norm: see VisionConfig; by default False for a
    classifier.
    """
    with whole(path):
        return read_data(load_torch(path), path, heads=heads, updates=updates, pooled_norm=pooled_norm)


def read_data(
    data: Any, path: Path, *, heads: int = 0, updates: int | None = None, pooled_norm: bool | None = None
) -> Imported:
    """The content of the file at `path`, as `read` reads it."""
    model = _model(data, path)
    tensors = tensors_only(model, str(path))
    args = plain(data.get("args") or {}) if isinstance(data, Mapping) else {}
    ours, left = _ours(tensors, str(path))
    backbone = _backbone(ours, args, heads)
    classifier = "head.weight" in tensors
    if pooled_norm is None:
        pooled_norm = not classifier
    backbone["pooled_norm"] = pooled_norm
    # The published pretraining passes the flag, the published fine-tuning does not.
    imagenet = args.get("imagenet_default_mean_and_std", not classifier)
    frontend = {"size": backbone["image_size"], **({} if imagenet else INCEPTION)}
    if classifier:
        smoothing = float(args.get("smoothing", 0.1))
        return _classifier(ours, tensors, left, backbone, frontend, smoothing, str(path))
    unknown(left - {"lm_head.weight", "lm_head.bias"}, str(path))
    ema = data.get("model_ema") if isinstance(data, Mapping) else None
    if "lm_head.weight" in tensors or ema:
        head = {"heads.vision.0.weight": tensors["lm_head.weight"], "heads.vision.0.bias": tensors["lm_head.bias"]}
    else:
        head = fresh_head("vision", int(backbone["dim"]))
    teacher, teacher_head = ours, {k.removeprefix("heads."): v for k, v in head.items()}
    if ema:
        ema = tensors_only(ema, f"{path}: model_ema")
        teacher, left = _ours(ema, f"{path}: model_ema")
        teacher_head = {"vision.0.weight": ema["lm_head.weight"], "vision.0.bias": ema["lm_head.bias"]}
        unknown(left - {"lm_head.weight", "lm_head.bias"}, f"{path}: model_ema")
    out = {
        **prefixed(ours, "backbone."),
        **head,
        **prefixed(teacher, "teacher."),
        **prefixed(teacher_head, "teacher_heads."),
        "updates": torch.tensor(_steps(data) if updates is None else int(updates)),
    }
    return Imported(
        backbone={"name": "data2vec_vision", **backbone},
        loss=_loss(args, int(backbone["depth"])),
        tensors=out,
        frontend=frontend,
        ignored={_INDEX: "computed from the grid"},
        licence=LICENCE,
        source=SOURCE,
    )


def _model(data: Any, path: Path) -> Mapping[str, Any]:
    for key in ("model", "module"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            return data[key]
    check(
        isinstance(data, Mapping) and "patch_embed.proj.weight" in data,
        f"{path} holds no model",
        fix="give a checkpoint-N.pth of data2vec_vision",
        error=CheckpointError,
    )
    return data


def _steps(data: Any) -> int:
    """Updates that the optimiser of a file counted; 0 for a file without its state."""
    optimizer = data.get("optimizer") if isinstance(data, Mapping) else None
    states = (optimizer.get("state") or {}) if isinstance(optimizer, Mapping) else {}
    return max((int(s["step"]) for s in states.values() if "step" in s), default=0)


def _ours(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], set[str]]:
    """Our names and the unknown ones; index buffers are not needed, since we compute them.

    The teacher's may be off by one, as the official average truncates integers; the student's must be right."""
    ours, left = tables.VISION.to_ours(tensors)
    for key in [k for k in left if k.endswith(_INDEX)]:
        left.discard(key)
        side = math.isqrt(tensors[key].shape[0] - 1)
        wrong = (tensors[key] - relative_index(side, side)).abs().max() if side * side + 1 == len(tensors[key]) else 9
        allowed = 1 if "model_ema" in where else 0
        check(
            int(wrong) <= allowed,
            f"{where}: {key} is not that of a square grid",
            fix="is the file damaged?",
            error=CheckpointError,
        )
    return ours, left


def _backbone(ours: Mapping[str, Tensor], args: Mapping[str, Any], heads: int) -> dict[str, Any]:
    dim, channels, patch, _ = ours["patch.weight"].shape
    depth = 1 + max(int(k.split(".")[1]) for k in ours if k.startswith("layers."))
    table = next((v for k, v in ours.items() if k.endswith("relative.table")), None)
    shared, own = "relative.table" in ours, "layers.0.relative.table" in ours
    positions = "both" if shared and own else "shared_relative" if shared else "relative" if own else "none"
    if table is not None:
        heads = int(table.shape[1])
        side = (math.isqrt(table.shape[0] - 3) + 1) // 2
    else:
        heads = heads or int(args.get("num_heads", 0))
        side = math.isqrt(ours["absolute"].shape[1] - 1) if "absolute" in ours else 0
    size = side * patch or int(args.get("img_size", args.get("input_size", 224)))
    check(
        heads > 0,
        "the checkpoint does not say how many attention heads it has",
        fix="import it with the authors' number: --option heads=12",
        error=CheckpointError,
    )
    scaled = "layers.0.gamma1" in ours
    initial = args.get("init_values", args.get("layer_scale_init_value"))
    return {
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "ffn": int(ours["layers.0.fc1.weight"].shape[0]),
        "image_size": size,
        "patch": patch,
        "channels": channels,
        "positions": positions,
        "absolute_positions": "absolute" in ours,
        "qkv_bias": "layers.0.attn.q_bias" in ours,
        "norm_eps": float(args.get("norm_eps", 1e-6)),
        "layer_scale": float(initial or 1e-4) if scaled else 0.0,
        "dropout": float(args.get("drop_rate", 0.0) or 0.0),
        "attention_dropout": float(args.get("attn_drop_rate", 0.0) or 0.0),
        "drop_path": float(args.get("drop_path_rate", args.get("drop_path", 0.0)) or 0.0),
    }


def _loss(args: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Our loss table; options that the file does not hold are those of the published command."""
    layers = args.get("target_layers", list(range(max(0, depth - 6), depth)))
    layers = ast.literal_eval(layers) if isinstance(layers, str) else layers
    last = args.get("target_layer_norm_last", not args.get("no_target_layer_norm_last", False))
    per_layer = [
        ours for key, ours in (("target_batch_norm", "batch"), ("target_instance_norm", "instance")) if args.get(key)
    ]
    mean = [
        ours
        for key, ours, default in (
            ("post_target_instance_norm", "instance", False),
            ("post_target_layer_norm", "layer", True),
        )
        if args.get(key, default)
    ]
    scale = float(args.get("loss_scale", -1))
    beta = 0.0 if args.get("l2_loss") else float(args.get("l1_beta", 2.0))
    return {
        "name": "data2vec",
        "targets": {
            "layers": "ffn" if args.get("layer_results", "end") == "fc" else "blocks",
            "indices": [int(i) for i in layers],
            "per_layer": [*per_layer, *(["layer"] if last else [])],
            "mean": mean,
        },
        "teacher": {
            "start": float(args.get("ema_decay_init", 0.999)),
            "end": float(args.get("ema_decay", 0.9998)),
            "anneal": int(args.get("ema_start_at", 0)),
            "delay": 1,
            "average_head": True,
        },
        "beta": beta,
        "absolute": beta == 0 and not args.get("l2_loss"),
        "scale": 1.0 if scale == -1 else scale,
        "reduction": "mean",
        "variance_weight": float(args.get("var_w0", 0.0)),
        "variance_margin": float(args.get("var_margin0", 0.5)),
        "blocks": {
            "count": float(args.get("num_mask_patches", 120)),
            "min_patches": int(args.get("min_mask_patches_per_block", 16)),
            "dropout": max(0.0, float(args.get("mask_dropout_prob", -1.0))),
            **(
                {"max_patches": int(args["max_mask_patches_per_block"])}
                if args.get("max_mask_patches_per_block")
                else {}
            ),
        },
        "guard": {"min_target_std": 0.0, "min_prediction_std": 0.0},
    }


def _classifier(
    ours: dict[str, Tensor],
    tensors: Mapping[str, Tensor],
    left: set[str],
    backbone: dict[str, Any],
    frontend: dict[str, Any],
    smoothing: float,
    where: str,
) -> Imported:
    names = {
        "head.weight": "head.linear.weight",
        "head.bias": "head.linear.bias",
        "fc_norm.weight": "head.norm.weight",
        "fc_norm.bias": "head.norm.bias",
    }
    unknown(left - set(names), where)
    dim = int(backbone["dim"])
    filled = {  # a classifier has neither: its patches are pooled before any norm, and nothing is hidden
        "mask_token": torch.zeros(1, 1, dim),
        "norm.weight": torch.ones(dim),
        "norm.bias": torch.zeros(dim),
    }
    classes = int(tensors["head.weight"].shape[0])
    class_token = "fc_norm.weight" not in tensors
    return Imported(
        backbone={"name": "data2vec_vision", **backbone},
        loss={
            "name": "data2vec_image_classify",
            "classes": classes,
            "class_token": class_token,
            "norm": not class_token,
            "label_smoothing": smoothing,
        },
        tensors={**prefixed({**filled, **ours}, "backbone."), **{names[k]: tensors[k] for k in names if k in tensors}},
        frontend=frontend,
        ignored={_INDEX: "computed from the grid"},
        licence=LICENCE,
        source=SOURCE,
    )
