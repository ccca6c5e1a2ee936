"""Writing fairseq `.pt` files of data2vec 1 and 2.0 and of CTC models, in the layout that fairseq saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl_data2vec.config import Data2Vec2Config, Data2VecConfig, DecoderConfig, SpanConfig
from avssl_data2vec.formats import fairseq2, tables
from avssl_data2vec.formats.names import Names
from avssl_data2vec.formats.training_state import (
    backbone_is,
    own_tensors,
    part,
    prefixed,
    save_torch,
    training_state,
)

_LOCAL = ("mask_token", "extractor.", "feature_norm.", "project.")
_KEYS = {"audio": "AUDIO", "vision": "IMAGE", "text": "TEXT"}


def write(model: Any, path: Path) -> list[Path]:
    """Write an opened model; a pretrained one with head and teacher where its directory holds them."""
    name = backbone_is(
        model, "data2vec_audio", "data2vec_text", "data2vec2_audio", "data2vec2_vision", "data2vec2_text"
    )
    if name == "data2vec_audio":
        return _save(path, *(_ctc(model) if model.recipe["loss"]["name"] == "ctc" else _audio(model)), model)
    return _save(path, *(_text(model) if name == "data2vec_text" else _multi(model)), model)


def _save(path: Path, tensors: Mapping[str, Any], cfg: Mapping[str, Any], model: Any) -> list[Path]:
    updates = training_state(model).get("updates")
    history = {
        "criterion_name": "ModelCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0 if updates is None else int(updates),
    }
    return save_torch(
        path,
        {
            "args": None,
            "cfg": {"_name": None, **cfg},
            "model": tensors,
            "criterion": None,
            "optimizer_history": [history],
            "task_state": {},
            "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
            "last_optimizer_state": {},
        },
    )


# -- data2vec 1 ------------------------------------------------------------------------------------------------------
def _audio_names(tensors: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    local = {k: v for k, v in tensors.items() if k.startswith(_LOCAL)}
    encoder = {k: v for k, v in tensors.items() if k not in local}
    return {
        **tables.audio_local(mode).to_theirs(local),
        **prefixed(tables.AUDIO_ENCODER.to_theirs(encoder), "encoder."),
    }


def _audio(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    state, mode = training_state(model), model.backbone.config.extractor
    out: dict[str, Any] = _audio_names(own_tensors(model), mode)
    out |= prefixed(part(state, "heads.audio.0."), "final_proj.")
    objective = _objective(model, "data2vec", Data2VecConfig)
    teacher = part(state, "teacher.")
    if teacher:
        whole = objective.teacher.own_local
        out["_ema"] = _audio_names(teacher, mode) if whole else tables.AUDIO_ENCODER.to_theirs(teacher)
        out["_ema"] |= prefixed(part(state, "teacher_heads.audio.0."), "final_proj.")
    cfg = {
        "_name": "data2vec_audio",
        **_audio_cfg(model.backbone.config),
        **_objective_cfg(objective),
        "ema_transformer_only": not objective.teacher.own_local,
        "ema_layers_only": "positions.*" in objective.teacher.copied,
    }
    return out, {"model": cfg, "task": _audio_task(model)}


def _ctc(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    out = prefixed(_audio_names(own_tensors(model), model.backbone.config.extractor), "w2v_encoder.w2v_model.")
    out |= {f"w2v_encoder.proj.{k}": v.detach().cpu() for k, v in model.head.linear.state_dict().items()}
    loss = model.recipe["loss"]
    spans, channels = loss.get("spans", {}), loss.get("channels", {})
    c = model.backbone.config
    pretraining = {"_name": "data2vec_audio", **_audio_cfg(c)}
    cfg = {
        "_name": "wav2vec_ctc",
        "w2v_path": "",
        "final_dropout": loss.get("final_dropout", 0.0),
        "apply_mask": True,
        "mask_prob": spans.get("probability", 0.0),
        "mask_length": spans.get("length", 10),
        "mask_channel_prob": channels.get("probability", 0.0),
        "mask_channel_length": channels.get("length", 64),
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
        "dropout_input": c.input_dropout,
        "layerdrop": c.layerdrop,
        "feature_grad_mult": c.feature_grad,
        "w2v_args": {"model": pretraining, "task": _audio_task(model)},
    }
    return out, {"model": cfg, "task": _audio_task(model)}


def _text(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    state, c = training_state(model), model.backbone.config
    version = {"version": torch.tensor([3.0])}
    encoder = tables.TEXT_ENCODER.to_theirs(own_tensors(model))
    out: dict[str, Any] = prefixed({**version, **encoder}, "encoder.sentence_encoder.")
    out |= prefixed(part(state, "heads.text."), "encoder.regression_head.")
    if teacher := part(state, "teacher."):
        out["encoder._ema"] = {**version, **tables.TEXT_ENCODER.to_theirs(teacher)}
    objective = _objective(model, "data2vec", Data2VecConfig)
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
        **_objective_cfg(objective),
        "ema_transformer_layers_only": bool(objective.teacher.copied),
    }
    if objective.scale is None:
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


def _audio_cfg(c: Any) -> dict[str, Any]:
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


def _audio_task(model: Any) -> dict[str, Any]:
    table = model.recipe.get("frontend", {})
    return {
        "_name": "audio_pretraining",
        "sample_rate": table.get("rate", 16000),
        "normalize": table.get("normalise", True),
    }


def _objective(model: Any, name: str, cls: type) -> Any:
    """The objective's config: the model's own, or the defaults for a model that was trained otherwise since."""
    from avssl.schema import structure

    table = dict(model.recipe["loss"])
    return structure(cls, table, "loss") if table.pop("name") == name else cls()


def _objective_cfg(o: Data2VecConfig) -> dict[str, Any]:
    s = o.spans
    return {
        **_targets_cfg(o.targets.per_layer, o.targets.mean),
        "loss_beta": o.beta,
        "loss_scale": o.scale,
        "average_top_k_layers": o.targets.top_k,
        **_ema_cfg(o),
        "mask_prob": s.probability,
        "mask_length": s.length,
        "mask_selection": s.selection,
        "mask_other": s.other,
        "no_mask_overlap": not s.overlap,
        "mask_min_space": s.min_space,
        "require_same_masks": s.same_count,
        "mask_dropout": s.dropout,
        **_channels_cfg(o.channels),
        "mask_channel_before": o.channels_first,
    }


def _channels_cfg(c: SpanConfig) -> dict[str, Any]:
    return {
        "mask_channel_prob": c.probability,
        "mask_channel_length": c.length,
        "mask_channel_selection": c.selection,
        "mask_channel_other": c.other,
        "no_mask_channel_overlap": not c.overlap,
        "mask_channel_min_space": c.min_space,
    }


def _targets_cfg(per_layer: tuple[str, ...], mean: tuple[str, ...]) -> dict[str, bool]:
    return {
        "batch_norm_target_layer": "batch" in per_layer,
        "instance_norm_target_layer": "instance" in per_layer,
        "group_norm_target_layer": bool({"item", "frame"} & set(per_layer)),
        "layer_norm_target_layer": "layer" in per_layer,
        "layer_norm_targets": "layer" in mean,
        "instance_norm_targets": bool({"instance", "across_items"} & set(mean)),
    }


def _ema_cfg(o: Data2VecConfig | Data2Vec2Config) -> dict[str, Any]:
    return {
        "ema_decay": o.teacher.start,
        "ema_end_decay": o.teacher.end,
        "ema_anneal_end_step": o.teacher.anneal,
        "min_target_var": o.guard.min_target_std,
        "min_pred_var": o.guard.min_prediction_std,
    }


# -- data2vec 2.0 ----------------------------------------------------------------------------------------------------
def _multi(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    state, c = training_state(model), model.backbone.config
    modality = model.backbone.modality
    key = _KEYS[modality]
    objective = _objective(model, "data2vec2", Data2Vec2Config)
    names = _multi_names(model)
    out: dict[str, Any] = names.to_theirs(own_tensors(model))
    out |= tables.decoder2(objective.decoder.projection_layers).to_theirs(part(state, "decoder."))
    out = fairseq2.unflat(out, key)
    if objective.shared_decoder is not None:
        names2 = tables.decoder2(objective.shared_decoder.projection_layers)
        second = names2.to_theirs(part(state, "shared_decoder."))
        out |= {f"shared_{k}": v for k, v in second.items()}
    out |= {f"recon_proj.{k}": v for k, v in part(state, "pixel_head.").items()}
    encoder_only = "prenet.*" in objective.teacher.copied
    if teacher := part(state, "teacher."):
        averaged = fairseq2.unflat(names.to_theirs(teacher), key)
        out["_ema"] = (
            {k.removeprefix("blocks."): v for k, v in averaged.items() if k.startswith("blocks.")}
            if encoder_only
            else averaged
        )
    cfg = {
        "_name": "data2vec_multi",
        "loss_beta": objective.beta,
        "loss_scale": objective.scale,
        "depth": c.depth,
        "start_drop_path_rate": c.drop_path[0],
        "end_drop_path_rate": c.drop_path[1],
        "num_heads": c.heads,
        "norm_eps": c.norm_eps,
        "norm_affine": c.norm_affine,
        "encoder_dropout": c.dropout,
        "post_mlp_drop": c.mlp_dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
        "dropout_input": c.input_dropout,
        "layerdrop": c.layerdrop,
        "embed_dim": c.dim,
        "mlp_ratio": c.mlp_ratio,
        "layer_norm_first": c.norm_first,
        "average_top_k_layers": objective.targets.top_k,
        "end_of_block_targets": objective.targets.layers == "blocks",
        "clone_batch": objective.mask.clones,
        **_targets_cfg(objective.targets.per_layer, objective.targets.mean),
        **_ema_cfg(objective),
        "ema_encoder_only": encoder_only,
        "supported_modality": key,
        "mae_init": c.mae_init,
        "shared_decoder": None if objective.shared_decoder is None else _decoder(objective.shared_decoder),
        "cls_loss": objective.class_weight,
        "recon_loss": objective.reconstruction_weight,
        "d2v_loss": objective.weight,
        "modalities": {"image" if key == "IMAGE" else modality: _modality(model, objective, key)},
    }
    blocks = objective.mask.kind == "blocks"
    task = {**(_audio_task(model) if modality == "audio" else {}), "precompute_mask_config": {} if blocks else None}
    return out, {"model": cfg, "task": task}


def _multi_names(model: Any) -> Names:
    import dataclasses

    table = {"name": f"data2vec2_{model.backbone.modality}", **dataclasses.asdict(model.backbone.config)}
    return fairseq2.names_of({k: v for k, v in table.items() if v is not None})


def _decoder(d: DecoderConfig) -> dict[str, Any]:
    return {
        "decoder_dim": d.dim,
        "decoder_groups": d.groups,
        "decoder_kernel": d.kernel,
        "decoder_layers": d.layers,
        "input_dropout": d.input_dropout,
        "decoder_residual": d.residual,
        "projection_layers": d.projection_layers,
        "projection_ratio": d.projection_ratio,
        "add_positions_all": d.add_positions in ("all", "both"),
        "add_positions_masked": d.add_positions in ("masked", "both"),
    }


def _modality(model: Any, o: Data2Vec2Config, key: str) -> dict[str, Any]:
    c, a, m = model.backbone.config, model.backbone.config.alibi, o.mask
    out: dict[str, Any] = {
        "type": key,
        "prenet_depth": c.prenet_depth,
        "prenet_layerdrop": c.prenet_layerdrop,
        "prenet_dropout": c.prenet_dropout,
        "start_drop_path_rate": c.prenet_drop_path[0],
        "end_drop_path_rate": c.prenet_drop_path[1],
        "num_extra_tokens": c.extra_tokens,
        "init_extra_token_zero": c.extra_tokens_zero,
        "mask_noise_std": o.noise_std,
        "mask_prob": m.probability,
        "inverse_mask": m.inverse,
        "mask_prob_adjust": m.adjust,
        "keep_masked_pct": 0.0,
        "mask_length": 1 if m.kind == "random" else m.length,
        "add_masks": m.add,
        "mask_dropout": m.dropout,
        "encoder_zero_mask": True,
        "mask_channel_prob": 0.0,
        "ema_local_encoder": o.teacher.own_local,
        "local_grad_mult": c.local_grad,
        "use_alibi_encoder": a.use,
        "alibi_scale": a.scale,
        "learned_alibi": a.learned_positions is not None,
        "alibi_max_pos": a.learned_positions,
        "learned_alibi_scale": a.learned_scale,
        "learned_alibi_scale_per_head": a.per_head,
        "learned_alibi_scale_per_layer": a.per_layer,
        "num_alibi_heads": c.heads,
        "model_depth": c.depth,
        "decoder": _decoder(o.decoder),
    }
    if key == "AUDIO":
        out |= {
            "extractor_mode": c.extractor,
            "feature_encoder_spec": repr([tuple(x) for x in c.conv_layers]),
            "conv_pos_width": c.positions_width,
            "conv_pos_groups": c.positions_groups,
            "conv_pos_depth": c.positions_depth,
            "conv_pos_pre_ln": c.positions_norm,
        }
    elif key == "IMAGE":
        out |= {
            "input_size": c.image_size,
            "in_chans": c.channels,
            "patch_size": c.patch,
            "embed_dim": c.patch_dim or c.dim,
            "alibi_dims": 2,
            "alibi_distance": a.distance,
            "fixed_positions": c.fixed_positions,
        }
    else:
        out |= {
            "max_source_positions": c.max_tokens,
            "learned_pos": c.positions == "learned",
            "dropout": c.embedding_dropout,
            "no_scale_embedding": not c.scale_embedding,
            "layernorm_embedding": c.embedding_norm,
            "no_token_positional_embeddings": c.positions == "none",
        }
    return out
