"""Writing fairseq files: the audio and the text model of data2vec 1, and what both generations share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl_data2vec.config import (
    Data2Vec2Config,
    Data2VecConfig,
    SpanConfig,
    TargetConfig,
)
from avssl_data2vec.formats import tables
from avssl_data2vec.formats.names import part, prefixed
from avssl_data2vec.formats.training_state import objective_of, own_tensors, training_state

_LOCAL = ("mask_token", "extractor.", "feature_norm.", "project.")


# -- data2vec 1 ------------------------------------------------------------------------------------------------------
def audio_names(tensors: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    local = {k: v for k, v in tensors.items() if k.startswith(_LOCAL)}
    encoder = {k: v for k, v in tensors.items() if k not in local}
    return {
        **tables.audio_local(mode).to_theirs(local),
        **prefixed(tables.AUDIO_ENCODER.to_theirs(encoder), "encoder."),
    }


def audio(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    state, mode = training_state(model), model.backbone.config.extractor
    out: dict[str, Any] = audio_names(own_tensors(model), mode)
    out |= prefixed(part(state, "heads.audio.0."), "final_proj.")
    objective = objective_of(model, "data2vec", Data2VecConfig)
    teacher = part(state, "teacher.")
    if teacher:
        whole = objective.teacher.own_local
        out["_ema"] = audio_names(teacher, mode) if whole else tables.AUDIO_ENCODER.to_theirs(teacher)
        out["_ema"] |= prefixed(part(state, "teacher_heads.audio.0."), "final_proj.")
    cfg = {
        "_name": "data2vec_audio",
        **audio_cfg(model.backbone.config),
        **_objective_cfg(objective, model.backbone.config.dim),
        **guard_cfg(objective),
        "group_norm_target_layer": bool({"item", "frame"} & set(objective.targets.per_layer)),
        **spans_cfg(objective.spans),
        **channels_cfg(objective.channels),
        "mask_channel_before": objective.channels_first,
        "ema_transformer_only": not objective.teacher.own_local,
        "ema_layers_only": bool(objective.teacher.copied),
    }
    return out, {"model": cfg, "task": audio_task(model)}


def text(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    state, c = training_state(model), model.backbone.config
    version = {"version": torch.tensor([3.0])}
    encoder = tables.TEXT_ENCODER.to_theirs(own_tensors(model))
    out: dict[str, Any] = prefixed({**version, **encoder}, "encoder.sentence_encoder.")
    out |= prefixed(part(state, "heads.text."), "encoder.regression_head.")
    if teacher := part(state, "teacher."):
        out["encoder._ema"] = {**version, **tables.TEXT_ENCODER.to_theirs(teacher)}
    objective = objective_of(model, "data2vec", Data2VecConfig)
    transformer = {
        "activation_fn": c.activation,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
        "max_source_positions": c.max_tokens,
        "layernorm_embedding": c.embedding_norm,
        "no_scale_embedding": not c.scale_embedding,
        "no_token_positional_embeddings": c.positions == "none",
        "encoder": {
            "embed_dim": c.dim,
            "ffn_embed_dim": c.ffn,
            "layers": c.depth,
            "attention_heads": c.heads,
            "normalize_before": c.norm_first,
            "learned_pos": c.positions != "sinusoidal",
            "layerdrop": c.layerdrop,
        },
    }
    cfg = {
        "_name": "data2vec_text",
        "max_positions": c.max_tokens,
        "head_layers": objective.head_layers,
        "transformer": transformer,
        **_objective_cfg(objective, c.dim),
        "ema_transformer_layers_only": bool(objective.teacher.copied),
    }
    if cfg["loss_scale"] is None:
        cfg["loss_scale"] = -1.0  # the text model compares it with 0, and fails on None
    t = objective.tokens
    task = {
        "_name": "masked_lm",
        "tokens_per_sample": c.max_tokens,
        "mask_prob": t.probability,
        "mask_stdev": t.span_std,
        "mask_multiple_length": t.span,
        "leave_unmasked_prob": t.unchanged,
        "random_token_prob": t.random,
        "include_target_tokens": True,
    }
    return out, {"model": cfg, "task": task}


def audio_cfg(c: Any) -> dict[str, Any]:
    check(
        c.positions_depth != 1,
        "fairseq has a single positional convolution with weight normalisation only",
        fix="export as data2vec_hf",
        error=CheckpointError,
    )
    return {
        "extractor_mode": c.extractor,
        "encoder_layers": c.depth,
        "encoder_embed_dim": c.dim,
        "encoder_ffn_embed_dim": c.ffn,
        "encoder_attention_heads": c.heads,
        "activation_fn": c.activation,
        "layer_type": "transformer",
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
        "encoder_layerdrop": c.layerdrop,
        "dropout_input": c.input_dropout,
        "layer_norm_first": c.norm_first,
        "conv_feature_layers": repr([tuple(x) for x in c.conv_layers]),
        "conv_bias": c.conv_bias,
        "feature_grad_mult": c.feature_grad,
        "conv_pos": c.positions_width,
        "conv_pos_groups": c.positions_groups,
        "pos_conv_depth": c.positions_depth or 1,
        "pos_enc_type": "abs",
        "required_seq_len_multiple": 2,
        "max_positions": 100000,
    }


def audio_task(model: Any) -> dict[str, Any]:
    table = model.recipe.get("frontend", {})
    return {
        "_name": "audio_pretraining",
        "sample_rate": table.get("rate", 16000),
        "normalize": table.get("normalise", True),
    }


def _objective_cfg(o: Data2VecConfig, dim: int) -> dict[str, Any]:
    """What the audio and the text model of data2vec 1 both have; their loss is a sum over the dimensions."""
    own = dim**-0.5 if o.scale is None else o.scale
    return {
        **targets_cfg(o.targets.per_layer, o.targets.mean),
        "loss_beta": o.beta,
        "loss_scale": own / dim if o.reduction == "mean" else o.scale,
        "average_top_k_layers": top_k(o.targets),
        **ema_cfg(o),
    }


def spans_cfg(s: SpanConfig) -> dict[str, Any]:
    return {
        "mask_prob": s.probability,
        "mask_length": s.length,
        "mask_selection": s.selection,
        "mask_other": s.other,
        "no_mask_overlap": not s.overlap,
        "mask_min_space": s.min_space,
        "require_same_masks": s.same_count,
        "mask_dropout": s.dropout,
    }


def channels_cfg(c: SpanConfig) -> dict[str, Any]:
    return {
        "mask_channel_prob": c.probability,
        "mask_channel_length": c.length,
        "mask_channel_selection": c.selection,
        "mask_channel_other": c.other,
        "no_mask_channel_overlap": not c.overlap,
        "mask_channel_min_space": c.min_space,
    }


def top_k(t: TargetConfig) -> int:
    """How many layers are averaged; fairseq takes the last ones."""
    return len(t.indices) or t.top_k


def targets_cfg(per_layer: tuple[str, ...], mean: tuple[str, ...]) -> dict[str, bool]:
    return {
        "batch_norm_target_layer": "batch" in per_layer,
        "instance_norm_target_layer": "instance" in per_layer,
        "layer_norm_target_layer": "layer" in per_layer,
        "layer_norm_targets": "layer" in mean,
        "instance_norm_targets": bool({"instance", "across_items"} & set(mean)),
    }


def ema_cfg(o: Data2VecConfig | Data2Vec2Config) -> dict[str, Any]:
    return {
        "ema_decay": o.teacher.start,
        "ema_end_decay": o.teacher.end,
        "ema_anneal_end_step": o.teacher.anneal,
    }


def guard_cfg(o: Data2VecConfig | Data2Vec2Config) -> dict[str, float]:
    return {"min_target_var": o.guard.min_target_std, "min_pred_var": o.guard.min_prediction_std}
