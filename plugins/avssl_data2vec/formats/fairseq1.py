"""fairseq checkpoints of data2vec 1: audio (pretraining and CTC) and text."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl_data2vec.formats import tables
from avssl_data2vec.formats.names import fresh_head, part, prefixed, tensors_only, unknown

FAIRSEQ = "github.com/facebookresearch/fairseq, examples/data2vec (MIT)"
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
    per_layer = [ours for key, ours in _NORMS.items() if cfg.get(key)]
    permuted = bool(per_layer) or not time_first
    if cfg.get("group_norm_target_layer"):
        per_layer.append("item" if permuted else "frame")
    if cfg.get("layer_norm_target_layer"):
        per_layer.append("layer")
    mean = ["layer"] if cfg.get("layer_norm_targets") else []
    if cfg.get("instance_norm_targets"):
        mean.append("instance" if permuted else "across_items")
    return {"layers": "ffn", "top_k": top_k, "per_layer": per_layer, "mean": mean}


def finished_updates(data: Mapping[str, Any]) -> int:
    """The number of updates that the file's optimiser had finished."""
    history = data.get("optimizer_history") or []
    return int(history[-1].get("num_updates", 0)) if history else 0


def read_audio(data: Mapping[str, Any], cfg: Mapping[str, Any], where: str) -> Imported:
    """A pretraining checkpoint: backbone, head and (when it was created) teacher."""
    import torch

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
    whole = not (cfg.get("ema_transformer_only", True) or cfg.get("ema_layers_only"))
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
            "copied": ["positions.*"] if cfg.get("ema_layers_only") else [],
            "average_head": bool(own_head),
        },
        "beta": float(cfg.get("loss_beta", 0.0)),
        **_scale(cfg.get("loss_scale")),
        "spans": spans(cfg),
        "channels": channels(cfg),
        "channels_first": bool(cfg.get("mask_channel_before", False)),
        "guard": _guard(cfg),
    }
    out = {
        **prefixed(ours, "backbone."),
        **head,
        **prefixed(teacher, "teacher."),
        **own_head,
        "updates": torch.tensor(finished_updates(data)),
    }
    heard = audio_task(data.get("cfg", {}).get("task"))
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
            cfg.get(key, only) == only,
            f"{key} = {cfg.get(key)!r} is not supported",
            fix=f"only {only!r} is",
            error=CheckpointError,
        )
    return {
        "dim": int(cfg["encoder_embed_dim"]),
        "depth": int(cfg["encoder_layers"]),
        "heads": int(cfg["encoder_attention_heads"]),
        "ffn": int(cfg["encoder_ffn_embed_dim"]),
        "extractor": cfg.get("extractor_mode", "default"),
        "conv_layers": conv_layers(cfg["conv_feature_layers"]),
        "conv_bias": bool(cfg.get("conv_bias", False)),
        "project": "post_extract_proj.weight" in tensors,
        "positions_depth": depth if (depth := int(cfg.get("pos_conv_depth", 1))) > 1 else 0,
        "positions_width": int(cfg.get("conv_pos", 128)),
        "positions_groups": int(cfg.get("conv_pos_groups", 16)),
        "norm_first": bool(cfg.get("layer_norm_first", False)),
        "activation": _plain(cfg.get("activation_fn", "gelu")),
        "feature_grad": float(cfg.get("feature_grad_mult", 1.0)),
        "dropout": float(cfg.get("dropout", 0.1)),
        "attention_dropout": float(cfg.get("attention_dropout", 0.1)),
        "activation_dropout": float(cfg.get("activation_dropout", 0.0)),
        "input_dropout": float(cfg.get("dropout_input", 0.0)),
        "layerdrop": float(cfg.get("encoder_layerdrop", 0.0)),
    }


def audio_task(task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Our frontend table from the official task."""
    task = task or {}
    return {"normalise": bool(task.get("normalize", True)), "rate": int(task.get("sample_rate", 16000))}


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
    import torch

    model = modern_text(data["model"])
    ema = model.pop("encoder._ema", None)
    tensors = tensors_only(model, where)
    backbone, ours, left = text_encoder(tensors, cfg, pad, mask)
    heads = {k for k in left if k.startswith("classification_heads.")}
    head, left = _take(tensors, left - heads, "encoder.regression_head.", "heads.text.")
    if not head and ema is None:
        head = fresh_head("text", int(backbone["dim"]), int(cfg.get("head_layers", 1)))
    unknown(left, where)
    teacher, odd = (ours, set()) if ema is None else tables.TEXT_ENCODER.to_ours(tensors_only(ema, f"{where}: _ema"))
    unknown({f"_ema.{k}" for k in odd if k != "version"}, where)
    copied = ["embed.positions.*", "embed.norm.*"] if cfg.get("ema_transformer_layers_only") else []
    if copied and backbone["positions"] == "learned":
        copied.append("embed.tokens.*")  # the official rule walks the position table's parameters to name the tokens'
    scale = cfg.get("loss_scale")
    task = data.get("cfg", {}).get("task") or {}
    loss = {
        "name": "data2vec",
        "targets": targets(cfg, int(cfg["average_top_k_layers"]), time_first=False),
        "teacher": {
            "start": cfg["ema_decay"],
            "end": cfg["ema_end_decay"],
            "anneal": int(cfg["ema_anneal_end_step"]),
            "copied": copied,
        },
        "beta": float(cfg.get("loss_beta", 0.0)),
        **_scale(None if scale is None or scale <= 0 else scale),
        "head_layers": int(cfg.get("head_layers", 1)),
        "tokens": {
            "probability": float(task.get("mask_prob", 0.15)),
            "span": int(task.get("mask_multiple_length", 1)),
            "span_std": float(task.get("mask_stdev", 0.0)),
            "unchanged": float(task.get("leave_unmasked_prob", 0.1)),
            "random": float(task.get("random_token_prob", 0.1)),
        },
        # the text model of fairseq has no guard
        "guard": {"min_target_std": 0.0, "min_prediction_std": 0.0},
    }
    ignored = {k: "a classification head beside the pretraining model" for k in sorted(heads)}
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
    positions = "learned" if learned else "none" if t.get("no_token_positional_embeddings") else "sinusoidal"
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
        "scale_embedding": not t.get("no_scale_embedding", False),
        "norm_first": bool(t["encoder"].get("normalize_before", False)),
        "activation": _plain(t.get("activation_fn", "gelu")),
        "dropout": float(t.get("dropout", 0.1)),
        "attention_dropout": float(t.get("attention_dropout", 0.0)),
        "activation_dropout": float(t.get("activation_dropout", 0.0)),
        "layerdrop": float(t["encoder"].get("layerdrop", 0.0)),
    }
    return backbone, ours, left


def _modern_text_name(key: str) -> str:
    if key.startswith("decoder."):
        key = "encoder." + key[len("decoder.") :]
    return key.replace(".emb_layer_norm.", ".layernorm_embedding.").replace(".lm_head.", ".regression_head.")


def spans(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Our span table from the official mask options."""
    return {
        "probability": float(cfg.get("mask_prob", 0.65)),
        "length": int(cfg.get("mask_length", 10)),
        "selection": _plain(cfg.get("mask_selection", "static")),
        "other": float(cfg.get("mask_other", 0.0)),
        "same_count": bool(cfg.get("require_same_masks", True)),
        "dropout": float(cfg.get("mask_dropout", 0.0)),
        "overlap": not cfg.get("no_mask_overlap", False),
        "min_space": int(cfg.get("mask_min_space", 1)),
    }


def channels(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Our table of channel masks from the official options."""
    return {
        "probability": float(cfg.get("mask_channel_prob", 0.0)),
        "length": int(cfg.get("mask_channel_length", 64)),
        "selection": _plain(cfg.get("mask_channel_selection", "static")),
        "other": float(cfg.get("mask_channel_other", 0.0)),
        "min_spans": 0,
        "overlap": not cfg.get("no_mask_channel_overlap", False),
        "min_space": int(cfg.get("mask_channel_min_space", 1)),
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


def _guard(cfg: Mapping[str, Any]) -> dict[str, float]:
    return {
        "min_target_std": float(cfg.get("min_target_var", 0.1)),
        "min_prediction_std": float(cfg.get("min_pred_var", 0.01)),
    }
