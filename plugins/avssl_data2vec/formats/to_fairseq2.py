"""Writing fairseq files of data2vec 2.0 (`data2vec_multi`), one modality."""

from __future__ import annotations

from typing import Any

from avssl_data2vec.config import (
    Data2Vec2Config,
    DecoderConfig,
)
from avssl_data2vec.formats import fairseq2, tables, to_fairseq1
from avssl_data2vec.formats.names import Names, part
from avssl_data2vec.formats.training_state import objective_of, own_tensors, training_state

_KEYS = {"audio": "AUDIO", "vision": "IMAGE", "text": "TEXT"}


# -- data2vec 2.0 ----------------------------------------------------------------------------------------------------
def multi(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    state, c = training_state(model), model.backbone.config
    modality = model.backbone.modality
    key = _KEYS[modality]
    objective = objective_of(model, "data2vec2", Data2Vec2Config)
    names = _multi_names(model)
    encoder = names.to_theirs(own_tensors(model))
    encoder |= tables.decoder2(objective.decoder.projection_layers).to_theirs(part(state, "decoder."))
    out: dict[str, Any] = dict(fairseq2.unflat(encoder, key))
    if objective.shared_decoder is not None:
        names2 = tables.decoder2(objective.shared_decoder.projection_layers)
        second = names2.to_theirs(part(state, "shared_decoder."))
        out |= {f"shared_{k}": v for k, v in second.items()}
    out |= {f"recon_proj.{k}": v for k, v in part(state, "pixel_head.").items()}
    encoder_only = bool(objective.teacher.copied)
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
        "average_top_k_layers": to_fairseq1.top_k(objective.targets),
        "end_of_block_targets": objective.targets.layers == "blocks",
        "clone_batch": objective.mask.clones,
        **to_fairseq1.targets_cfg(objective.targets.per_layer, objective.targets.mean),
        **to_fairseq1.ema_cfg(objective),
        **to_fairseq1.guard_cfg(objective),
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
    task = {
        **(to_fairseq1.audio_task(model) if modality == "audio" else {}),
        "precompute_mask_config": {} if blocks else None,
    }
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
        "learned_alibi": False,
        "alibi_max_pos": None,
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
