"""fairseq checkpoints of data2vec 2.0 (`data2vec_multi`), one modality at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl_data2vec.formats import fairseq1, tables
from avssl_data2vec.formats.defaults import DECODER, full
from avssl_data2vec.formats.names import Names, part, prefixed, tensors_only, unknown

_MODALITIES = {"AUDIO": "audio", "IMAGE": "vision", "TEXT": "text"}
# Options of no published model, and the value that leaves them off. Fine-tuning sets masks of its own, has no decoder
# and drops no tokens.
_UNSUPPORTED: dict[str, Any] = {
    "keep_masked_pct": 0, "encoder_zero_mask": True, "mask_channel_prob": 0, "transformer_decoder": False,
}  # fmt: skip
_NEVER: dict[str, Any] = {"mask_prob_min": None, "learned_alibi": False}


def read(
    data: Mapping[str, Any], cfg: Mapping[str, Any], where: str, *, modality: str, pad: int, mask: int | None
) -> Imported:
    """One modality of a file: encoder, decoder and teacher."""
    model = dict(data["model"])
    ema = model.pop("_ema", None)
    tensors = tensors_only(model, where)
    key = _choose(tensors, modality, where)
    m = cfg["modalities"][key.lower()]
    backbone, ours, left = encoder(cfg, tensors, key, pad, mask, where)
    frontend = _frontend(backbone, data)
    backbone |= {k: v for k, v in frontend.items() if k == "rate"}
    names = names_of(backbone)
    decoder, left = (
        tables.decoder2(_projections(m, key)).to_ours({k: v for k, v in flat(tensors, key).items() if k in left})[0],
        {k for k in left if not k.startswith("decoder.")},
    )
    head = part(tensors, "recon_proj.") if cfg["recon_loss"] else {}
    left -= {f"shared.recon_proj.{k}" for k in head}
    shared = _shared_decoder(cfg)
    if shared:
        names2 = tables.decoder2(shared["projection_layers"])
        second, odd = names2.to_ours(prefixed(part(tensors, "shared_decoder."), "decoder."))
        left = {k for k in left if not k.startswith("shared.shared_decoder.")} | odd
        decoder = {**prefixed(decoder, "decoder."), **prefixed(second, "shared_decoder.")}
    else:
        decoder = prefixed(decoder, "decoder.")
    unknown(left, where)
    encoder_only = bool(cfg["ema_encoder_only"])
    own_local = bool(m["ema_local_encoder"]) and not encoder_only
    teacher = _teacher(ours, ema, names, key, own_local, encoder_only, where)
    # With only the blocks averaged, what comes before them is the student's at every step.
    copied = ["alibi.*", "extra_tokens", "context_norm.*", "prenet.*", "positions*", "norm.*"] if encoder_only else []
    layers = "blocks" if cfg["end_of_block_targets"] else "ffn"
    loss = {
        "name": "data2vec2",
        "targets": {**fairseq1.targets(cfg, int(cfg["average_top_k_layers"]), time_first=False), "layers": layers},
        "teacher": {
            "start": float(cfg["ema_decay"]),
            "end": float(cfg["ema_end_decay"]),
            "anneal": int(cfg["ema_anneal_end_step"]),
            "own_local": own_local,
            "copied": copied,
        },
        "mask": _mask(cfg, m, key, data["cfg"].get("task") or {}),
        "decoder": _decoder(m["decoder"], _projections(m, key)),
        **({"shared_decoder": shared} if shared else {}),
        "noise_std": float(m["mask_noise_std"]),
        "beta": float(cfg["loss_beta"]),
        **({} if cfg["loss_scale"] is None else {"scale": float(cfg["loss_scale"])}),
        "weight": float(cfg["d2v_loss"]),
        "class_weight": float(cfg["cls_loss"]),
        "reconstruction_weight": float(cfg["recon_loss"] or 0),
        "guard": fairseq1.guard(cfg),
    }
    others = sorted({k.split(".")[1] for k in tensors if k.startswith("modality_encoders.")} - {key})
    return Imported(
        backbone=backbone,
        loss=loss,
        frontend=frontend,
        tensors={
            **prefixed(ours, "backbone."),
            **decoder,
            **prefixed(head, "pixel_head."),
            **prefixed(teacher, "teacher."),
            "updates": torch.tensor(fairseq1.finished_updates(data)),
        },
        ignored={f"modality_encoders.{o}": f"another modality: --option modality={_MODALITIES[o]}" for o in others},
        licence="MIT",
        source=fairseq1.FAIRSEQ,
    )


def encoder(
    cfg: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    key: str,
    pad: int,
    mask: int | None,
    where: str,
    *,
    fine_tuned: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor], set[str]]:
    """Table and tensors of one modality's encoder, and the names that are none of it."""
    m = cfg["modalities"][key.lower()]
    for option, off in (_NEVER if fine_tuned else {**_UNSUPPORTED, **_NEVER}).items():
        check(
            m.get(option, off) in (off, None),
            f"{where}: {option} = {m.get(option)!r} is not supported",
            fix=f"only {off!r} is",
            error=CheckpointError,
        )
    backbone = _backbone(cfg, m, tensors, key, pad, mask)
    if fine_tuned and not m["encoder_zero_mask"]:
        backbone["hidden_noise"] = float(m["mask_noise_std"])
    ours, left = names_of(backbone).to_ours(flat(tensors, key))
    return backbone, ours, left


def _choose(tensors: Mapping[str, Tensor], modality: str, where: str) -> str:
    there = sorted({k.split(".")[1] for k in tensors if k.startswith("modality_encoders.")})
    check(
        bool(there) and set(there) <= set(_MODALITIES),
        f"{where} has the modality encoders {there}",
        fix="is it a data2vec 2.0 model?",
        error=CheckpointError,
    )
    wanted = [k for k in there if not modality or _MODALITIES[k] == modality]
    check(
        len(wanted) == 1,
        f"{where} holds {', '.join(_MODALITIES[k] for k in there)}",
        fix=f"import one: --option modality={_MODALITIES[there[0]]}",
        error=CheckpointError,
    )
    return wanted[0]


def flat(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The modality's tensors without their prefix, and the shared blocks as `shared.`."""
    shared = {f"shared.{k}": v for k, v in tensors.items() if not k.startswith("modality_encoders.")}
    own = part(tensors, f"modality_encoders.{key}.")
    if "alibi_scale" in own and own["alibi_scale"].ndim == 4:  # of files from before there was one per layer
        own["alibi_scale"] = own["alibi_scale"][None]
    return {**own, **shared}


def unflat(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The inverse of `flat`."""
    return {
        k.removeprefix("shared.") if k.startswith("shared.") else f"modality_encoders.{key}.{k}": v
        for k, v in tensors.items()
    }


def _teacher(
    student: Mapping[str, Tensor], ema: Any, names: Names, key: str, own_local: bool, encoder_only: bool, where: str
) -> dict[str, Tensor]:
    local = ("extractor.", "feature_norm.", "project.", "patch.", "embed.")
    mine = {k: v for k, v in student.items() if own_local or not k.startswith(local)}
    if ema is None:
        return mine
    averaged = tensors_only(ema, f"{where}: _ema")
    if encoder_only:  # the average is a bare list of blocks
        averaged = {f"blocks.{k}": v for k, v in averaged.items()}
    ours, left = names.to_ours(flat(averaged, key))
    unknown({f"_ema.{k}" for k in left}, where)
    return {**mine, **{k: v for k, v in ours.items() if k in mine}} if encoder_only else ours


def names_of(backbone: Mapping[str, Any]) -> Names:
    if backbone["name"] == "data2vec2_audio":
        return tables.audio2(backbone["extractor"], backbone["positions_depth"], backbone["positions_norm"])
    if backbone["name"] == "data2vec2_vision":
        return tables.vision2(backbone.get("patch_dim", backbone["dim"]) != backbone["dim"])
    return tables.TEXT2


def _backbone(
    cfg: Mapping[str, Any], m: Mapping[str, Any], tensors: Mapping[str, Tensor], key: str, pad: int, mask: int | None
) -> dict[str, Any]:
    own = f"modality_encoders.{key}."
    out: dict[str, Any] = {
        "name": f"data2vec2_{_MODALITIES[key]}",
        "dim": int(cfg["embed_dim"]),
        "depth": int(cfg["depth"]),
        "prenet_depth": int(m["prenet_depth"]),
        "heads": int(cfg["num_heads"]),
        "mlp_ratio": float(cfg["mlp_ratio"]),
        "norm_first": bool(cfg["layer_norm_first"]),
        "norm_eps": float(cfg["norm_eps"]),
        "norm_affine": bool(cfg["norm_affine"]),
        "extra_tokens": int(m["num_extra_tokens"]),
        "extra_tokens_zero": bool(m["init_extra_token_zero"]),
        "mae_init": bool(cfg["mae_init"]),
        "local_grad": float(m["local_grad_mult"]),
        "dropout": float(cfg["encoder_dropout"]),
        "mlp_dropout": float(cfg["post_mlp_drop"]),
        "attention_dropout": float(cfg["attention_dropout"]),
        "activation_dropout": float(cfg["activation_dropout"]),
        "input_dropout": float(cfg["dropout_input"]),
        "prenet_dropout": float(m["prenet_dropout"]),
        "layerdrop": float(cfg["layerdrop"]),
        "prenet_layerdrop": float(m["prenet_layerdrop"]),
        "drop_path": [float(cfg["start_drop_path_rate"]), float(cfg["end_drop_path_rate"])],
        "prenet_drop_path": [float(m["start_drop_path_rate"]), float(m["end_drop_path_rate"])],
        "alibi": _alibi(m),
    }
    if key == "AUDIO":
        out |= {
            "extractor": m["extractor_mode"],
            "conv_layers": fairseq1.conv_layers(m["feature_encoder_spec"]),
            "positions_depth": int(m["conv_pos_depth"]),
            "positions_width": int(m["conv_pos_width"]),
            "positions_groups": int(m["conv_pos_groups"]),
            "positions_norm": bool(m["conv_pos_pre_ln"]),
        }
    elif key == "IMAGE":
        out |= {
            "image_size": int(m["input_size"]),
            "patch": int(m["patch_size"]),
            "channels": int(m["in_chans"]),
            "fixed_positions": bool(m["fixed_positions"]),
        }
        if int(m["embed_dim"]) != out["dim"]:
            out["patch_dim"] = int(m["embed_dim"])
    else:
        vocabulary = int(tensors[own + "local_encoder.embed_tokens.weight"].shape[0])
        learned = own + "local_encoder.embed_positions.weight" in tensors
        positions = "none" if m["no_token_positional_embeddings"] else "learned" if learned else "sinusoidal"
        out |= {
            "vocabulary": vocabulary,
            "max_tokens": int(m["max_source_positions"]),
            "pad": pad,
            "mask": vocabulary - 1 if mask is None else mask,
            "positions": positions,
            "embedding_norm": bool(m["layernorm_embedding"]),
            "scale_embedding": not m["no_scale_embedding"],
            "embedding_dropout": float(m["dropout"]),
        }
    return out


def _alibi(m: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "use": bool(m["use_alibi_encoder"]),
        "scale": float(m["alibi_scale"]),
        "learned_scale": bool(m["learned_alibi_scale"]),
        "per_head": bool(m["learned_alibi_scale_per_head"]),
        "per_layer": bool(m["learned_alibi_scale_per_layer"]),
        "distance": m.get("alibi_distance", "manhattan"),  # an option of images alone
    }


def _projections(m: Mapping[str, Any], key: str) -> int:
    return 1 if key == "IMAGE" else int(m["decoder"]["projection_layers"])


def _shared_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder that all modalities share beside their own; {} where there is none."""
    if not cfg["shared_decoder"]:
        return {}
    d = full(cfg["shared_decoder"], DECODER)
    return _decoder(d, int(d["projection_layers"]))


def _decoder(d: Mapping[str, Any], projections: int) -> dict[str, Any]:
    masked, every = d["add_positions_masked"], d["add_positions_all"]
    return {
        "dim": int(d["decoder_dim"]),
        "groups": int(d["decoder_groups"]),
        "kernel": int(d["decoder_kernel"]),
        "layers": int(d["decoder_layers"]),
        "residual": bool(d["decoder_residual"]),
        "projection_layers": projections,
        "projection_ratio": float(d["projection_ratio"]),
        "input_dropout": float(d["input_dropout"]),
        "add_positions": "both" if masked and every else "all" if every else "masked" if masked else "none",
    }


def _mask(cfg: Mapping[str, Any], m: Mapping[str, Any], key: str, task: Mapping[str, Any]) -> dict[str, Any]:
    blocks = key == "IMAGE" or task.get("precompute_mask_config") is not None
    return {
        "clones": int(cfg["clone_batch"]),
        "kind": "random" if int(m["mask_length"]) == 1 else "blocks" if blocks else "spans",
        "probability": float(m["mask_prob"]),
        "adjust": float(m["mask_prob_adjust"]),
        "length": int(m["mask_length"]),
        "inverse": bool(m["inverse_mask"]),
        "dropout": float(m["mask_dropout"]),
        "add": bool(m["add_masks"]),
        "over_padding": True,
    }


def _frontend(backbone: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    if backbone["name"] == "data2vec2_audio":
        return fairseq1.audio_task(data["cfg"].get("task"))
    if backbone["name"] == "data2vec2_vision":
        return {"size": backbone["image_size"]}
    return {"max_tokens": backbone["max_tokens"]}
