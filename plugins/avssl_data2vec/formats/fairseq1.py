"""fairseq checkpoints of data2vec 1: audio (pretraining and CTC) and text."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl_data2vec.formats import defaults, tables
from avssl_data2vec.formats.defaults import full
from avssl_data2vec.formats.names import fresh_head, part, prefixed, tensors_only, unknown

FAIRSEQ = "github.com/facebookresearch/fairseq, examples/data2vec (MIT)"
OTHER_HEADS = ("encoder.lm_head.", "encoder.emb_head.")  # of a text file; the official code deletes them
OLD_TEACHER = "encoder.target_model."
_NORMS = {"batch_norm_target_layer": "batch", "instance_norm_target_layer": "instance"}


def conv_layers(spec: str) -> list[list[int]]:
    """`[(512, 10, 5)] + [(512, 3, 2)] * 4` as lists, without evaluating code."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return value(node.left) * value(node.right)
        return ast.literal_eval(node)

    try:
        layers = value(ast.parse(spec, mode="eval").body)
        return [[int(x) for x in layer] for layer in layers]
    except (ValueError, SyntaxError, TypeError):
        raise CheckpointError(
            f"cannot read the convolution layers {spec!r}", fix="is the file a wav2vec-style model?"
        ) from None


def targets(cfg: Mapping[str, Any], top_k: int, *, time_first: bool) -> dict[str, Any]:
    """Our target table from the official switches, in the official order.

    time_first: layers are (T, B, C) there unless instance or batch norm permutes them (data2vec 1), which changes what
    the later norms see.
    """
    per_layer = [ours for key, ours in _NORMS.items() if cfg[key]]
    permuted = bool(per_layer) or not time_first
    if cfg.get("group_norm_target_layer"):  # an option of the audio model alone
        per_layer.append("item" if permuted else "frame")
    if cfg["layer_norm_target_layer"]:
        per_layer.append("layer")
    mean = ["layer"] if cfg["layer_norm_targets"] else []
    if cfg["instance_norm_targets"]:
        mean.append("instance" if permuted else "across_items")
    return {"layers": "ffn", "top_k": top_k, "per_layer": per_layer, "mean": mean}


def finished_updates(data: Mapping[str, Any]) -> int:
    """The number of updates that the file's optimiser had finished."""
    history = data.get("optimizer_history") or []
    return int(history[-1].get("num_updates", 0)) if history else 0


def read_audio(data: Mapping[str, Any], cfg: Mapping[str, Any], where: str) -> Imported:
    """A pretraining checkpoint: backbone, head and (when it was created) teacher."""
    model = dict(data["model"])
    ema = model.pop("_ema", None)
    tensors = tensors_only(model, where)
    backbone = audio_backbone(cfg, tensors)
    # What is averaged has its own prefix; the local part stays the student's unless the whole model is averaged.
    ours, left = audio_tensors(tensors, backbone["extractor"])
    head, left = _take(tensors, left, "final_proj.", "heads.audio.0.")
    if not head and ema is None:
        head = fresh_head("audio", int(backbone["dim"]))
    unknown(left, where)
    whole = not (cfg["ema_transformer_only"] or cfg["ema_layers_only"])
    teacher, own_head = _audio_teacher(ours, ema, backbone["extractor"], whole, where)
    layers = int(backbone["depth"])
    loss = {
        "name": "data2vec",
        "targets": targets(cfg, layers if whole else int(cfg["average_top_k_layers"]), time_first=True),
        "teacher": {
            "start": cfg["ema_decay"],
            "end": cfg["ema_end_decay"],
            "anneal": int(cfg["ema_anneal_end_step"]),
            "own_local": whole,
            "copied": ["positions.*"] if cfg["ema_layers_only"] else [],
            "average_head": bool(own_head),
        },
        "beta": float(cfg["loss_beta"]),
        **_scale(cfg["loss_scale"]),
        "spans": spans(cfg),
        "channels": channels(cfg),
        "channels_first": bool(cfg["mask_channel_before"]),
        "guard": guard(cfg),
    }
    out = {
        **prefixed(ours, "backbone."),
        **head,
        **prefixed(teacher, "teacher."),
        **own_head,
        "updates": torch.tensor(finished_updates(data)),
    }
    heard = audio_task(data["cfg"].get("task"))
    return Imported(
        backbone={"name": "data2vec_audio", **backbone, "rate": heard["rate"]},
        loss=loss,
        tensors=out,
        frontend=heard,
        licence="MIT",
        source=FAIRSEQ,
    )


def audio_backbone(cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our backbone table from the official model config."""
    for key, only in (("layer_type", "transformer"), ("pos_enc_type", "abs")):
        check(
            cfg[key] == only,
            f"{key} = {cfg[key]!r} is not supported",
            fix=f"only {only!r} is",
            error=CheckpointError,
        )
    return {
        "dim": int(cfg["encoder_embed_dim"]),
        "depth": int(cfg["encoder_layers"]),
        "heads": int(cfg["encoder_attention_heads"]),
        "ffn": int(cfg["encoder_ffn_embed_dim"]),
        "extractor": cfg["extractor_mode"],
        "conv_layers": conv_layers(cfg["conv_feature_layers"]),
        "conv_bias": bool(cfg["conv_bias"]),
        "project": "post_extract_proj.weight" in tensors,
        "positions_depth": depth if (depth := int(cfg["pos_conv_depth"])) > 1 else 0,
        "positions_width": int(cfg["conv_pos"]),
        "positions_groups": int(cfg["conv_pos_groups"]),
        "norm_first": bool(cfg["layer_norm_first"]),
        "activation": _plain(cfg["activation_fn"]),
        "feature_grad": float(cfg["feature_grad_mult"]),
        "dropout": float(cfg["dropout"]),
        "attention_dropout": float(cfg["attention_dropout"]),
        "activation_dropout": float(cfg["activation_dropout"]),
        "input_dropout": float(cfg["dropout_input"]),
        "layerdrop": float(cfg["encoder_layerdrop"]),
    }


def audio_task(task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Our frontend table from the official task."""
    if not task:  # a file from which somebody cut it: data2vec was trained on normalised waveforms
        return {"normalise": True, "rate": 16000}
    task = full(task, defaults.AUDIO_TASK)
    return {"normalise": bool(task["normalize"]), "rate": int(task["sample_rate"])}


def audio_tensors(tensors: Mapping[str, Tensor], mode: str) -> tuple[dict[str, Tensor], set[str]]:
    """Our names of a whole waveform encoder, and the foreign ones that are none of it; mode: of the extractor."""
    encoder, odd = tables.AUDIO_ENCODER.to_ours(part(tensors, "encoder."))
    local, left = tables.audio_local(mode).to_ours({k: v for k, v in tensors.items() if not k.startswith("encoder.")})
    return {**local, **encoder}, left | {f"encoder.{k}" for k in odd}


def _audio_teacher(
    student: Mapping[str, Tensor], ema: Any, mode: str, whole: bool, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The averaged encoder, or the whole averaged model and its head; a file without one starts from its student."""
    local = ("extractor.", "feature_norm.", "project.", "mask_token")
    if ema is None:
        return {k: v for k, v in student.items() if whole or not k.startswith(local)}, {}
    ema = tensors_only(ema, f"{where}: _ema")
    teacher, left = audio_tensors(ema, mode) if whole else tables.AUDIO_ENCODER.to_ours(ema)
    head, left = _take(ema, left, "final_proj.", "teacher_heads.audio.0.")
    unknown({f"_ema.{k}" for k in left}, where)
    return teacher, head


def read_text(data: Mapping[str, Any], cfg: Mapping[str, Any], where: str, *, pad: int, mask: int | None) -> Imported:
    """A pretraining checkpoint of the text model; names of older files are understood."""
    model = modern_text(data["model"])
    ema, old = model.pop("encoder._ema", None), part(model, OLD_TEACHER)
    ignored = {OLD_TEACHER: "an older teacher than encoder._ema"} if old and ema is not None else {}
    ema = old or None if ema is None else ema
    tensors = tensors_only({k: v for k, v in model.items() if not k.startswith(OLD_TEACHER)}, where)
    backbone, ours, left = text_encoder(tensors, cfg, pad, mask)
    heads = {k for k in left if k.startswith(("classification_heads.", *OTHER_HEADS))}
    ignored |= {k: "a head of another task beside the pretraining model" for k in sorted(heads)}
    head, left = _take(tensors, left - heads, "encoder.regression_head.", "heads.text.")
    if not head and ema is None:
        head = fresh_head("text", int(backbone["dim"]), int(cfg["head_layers"]))
    unknown(left, where)
    teacher, odd = (ours, set()) if ema is None else tables.TEXT_ENCODER.to_ours(tensors_only(ema, f"{where}: _ema"))
    unknown({f"_ema.{k}" for k in odd if k != "version"}, where)
    copied = ["embed.positions.*", "embed.norm.*"] if cfg["ema_transformer_layers_only"] else []
    if copied and backbone["positions"] == "learned":
        copied.append("embed.tokens.*")  # the official rule walks the position table's parameters to name the tokens'
    scale = cfg["loss_scale"]
    task = full(data["cfg"].get("task") or {}, defaults.TEXT_TASK)
    loss = {
        "name": "data2vec",
        "targets": targets(cfg, int(cfg["average_top_k_layers"]), time_first=False),
        "teacher": {
            "start": cfg["ema_decay"],
            "end": cfg["ema_end_decay"],
            "anneal": int(cfg["ema_anneal_end_step"]),
            "copied": copied,
        },
        "beta": float(cfg["loss_beta"]),
        **_scale(None if scale is None or scale <= 0 else scale),
        "head_layers": int(cfg["head_layers"]),
        "tokens": {
            "probability": float(task["mask_prob"]),
            "span": int(task["mask_multiple_length"]),
            "span_std": float(task["mask_stdev"]),
            "unchanged": float(task["leave_unmasked_prob"]),
            "random": float(task["random_token_prob"]),
        },
        # the text model of fairseq has no guard
        "guard": {"min_target_std": 0.0, "min_prediction_std": 0.0},
    }
    return Imported(
        backbone=backbone,
        loss=loss,
        ignored=ignored,
        tensors={
            **prefixed(ours, "backbone."),
            **head,
            **prefixed(teacher, "teacher."),
            "updates": torch.tensor(finished_updates(data)),
        },
        frontend={"max_tokens": backbone["max_tokens"]},
        licence="MIT",
        source=FAIRSEQ,
    )


def modern_text(model: Mapping[str, Any]) -> dict[str, Any]:
    """A text model's entries under the names of newer files."""
    return {_modern_text_name(k): v for k, v in model.items()}


def text_encoder(
    tensors: Mapping[str, Tensor], cfg: Mapping[str, Any], pad: int, mask: int | None
) -> tuple[dict[str, Any], dict[str, Tensor], set[str]]:
    """Table and tensors of the token encoder, and the names that are none of it."""
    ours, odd = tables.TEXT_ENCODER.to_ours(part(tensors, "encoder.sentence_encoder."))
    left = {f"encoder.sentence_encoder.{k}" for k in odd if k != "version"}
    left |= {k for k in tensors if not k.startswith("encoder.sentence_encoder.")}
    t = cfg["transformer"]
    vocabulary = int(ours["embed.tokens.weight"].shape[0])
    learned = "embed.positions.weight" in ours
    positions = "learned" if learned else "none" if t["no_token_positional_embeddings"] else "sinusoidal"
    rows = ours["embed.positions.weight"].shape[0] - pad - 1 if learned else int(t["max_source_positions"])
    backbone = {
        "name": "data2vec_text",
        "dim": int(t["encoder"]["embed_dim"]),
        "depth": int(t["encoder"]["layers"]),
        "heads": int(t["encoder"]["attention_heads"]),
        "ffn": int(t["encoder"]["ffn_embed_dim"]),
        "vocabulary": vocabulary,
        "max_tokens": int(rows),
        "pad": pad,
        "mask": vocabulary - 1 if mask is None else mask,
        "positions": positions,
        "embedding_norm": "embed.norm.weight" in ours,
        "scale_embedding": not t["no_scale_embedding"],
        "norm_first": bool(t["encoder"]["normalize_before"]),
        "activation": _plain(t["activation_fn"]),
        "dropout": float(t["dropout"]),
        "attention_dropout": float(t["attention_dropout"]),
        "activation_dropout": float(t["activation_dropout"]),
        "layerdrop": float(t["encoder"]["layerdrop"]),
    }
    return backbone, ours, left


def _modern_text_name(key: str) -> str:
    if key.startswith("decoder."):
        key = "encoder." + key[len("decoder.") :]
    key = key.replace(".emb_layer_norm.", ".layernorm_embedding.")
    return re.sub(r"\.lm_head\.(?=[0-9])", ".regression_head.", key)  # a numbered one; a language model's has names


def spans(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Our span table from the official mask options."""
    return {
        "probability": float(cfg["mask_prob"]),
        "length": int(cfg["mask_length"]),
        "selection": _plain(cfg["mask_selection"]),
        "other": float(cfg["mask_other"]),
        "same_count": bool(cfg["require_same_masks"]),
        "dropout": float(cfg["mask_dropout"]),
        "overlap": not cfg["no_mask_overlap"],
        "min_space": int(cfg["mask_min_space"]),
    }


def channels(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Our table of channel masks from the official options."""
    return {
        "probability": float(cfg["mask_channel_prob"]),
        "length": int(cfg["mask_channel_length"]),
        "selection": _plain(cfg["mask_channel_selection"]),
        "other": float(cfg["mask_channel_other"]),
        "min_spans": 0,
        "overlap": not cfg["no_mask_channel_overlap"],
        "min_space": int(cfg["mask_channel_min_space"]),
    }


def _take(tensors: Mapping[str, Tensor], left: set[str], theirs: str, ours: str) -> tuple[dict[str, Tensor], set[str]]:
    """Rename the tensors of `left` below a prefix; what remains of `left`."""
    taken = {k for k in left if k.startswith(theirs)}
    return {ours + k[len(theirs) :]: tensors[k] for k in taken}, left - taken


def _plain(value: Any) -> str:
    """A string, also where an old file pickled an enumeration."""
    return str(getattr(value, "value", value))


def _scale(value: float | None) -> dict[str, float]:
    return {} if value is None else {"scale": float(value)}


def guard(cfg: Mapping[str, Any]) -> dict[str, float]:
    """Our table of the least deviations, which the official code calls variances."""
    return {
        "min_target_std": float(cfg["min_target_var"]),
        "min_prediction_std": float(cfg["min_pred_var"]),
    }
