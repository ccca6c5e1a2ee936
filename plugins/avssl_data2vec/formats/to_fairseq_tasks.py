"""Writing fine-tuned fairseq models: letters by CTC, tags of sounds, images, sentences."""

from __future__ import annotations

from typing import Any

from avssl_data2vec.config import (
    AudioClassifyConfig,
    CtcConfig,
    ImageClassifyConfig,
)
from avssl_data2vec.formats import defaults, tables, to_fairseq1, to_fairseq2
from avssl_data2vec.formats.names import prefixed
from avssl_data2vec.formats.training_state import objective_of, own_tensors


# -- fine-tuned ------------------------------------------------------------------------------------------------------
def _encoder(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and `{"model": ..., "task": ...}` of the encoder alone, as pretraining configured it."""
    if model.recipe["backbone"]["name"] == "data2vec_audio":
        c = model.backbone.config
        cfg = {"model": {"_name": "data2vec_audio", **to_fairseq1.audio_cfg(c)}, "task": to_fairseq1.audio_task(model)}
        return to_fairseq1.audio_names(own_tensors(model), c.extractor), cfg
    tensors, cfg = to_fairseq2.multi(model)
    for modality in cfg["model"]["modalities"].values():
        modality["decoder"] = None
    return tensors, cfg


def _overridden(pretraining: dict[str, Any], masks: dict[str, Any], model: Any) -> dict[str, Any]:
    """The pretraining's configuration with what fine-tuning sets: the official code takes it from there."""
    own, c = pretraining["model"], model.backbone.config
    if "modalities" not in own:
        own |= {k: v for k, v in masks.items() if k in defaults.AUDIO1}
        return pretraining
    m = own["modalities"]["audio"]
    m |= {k: v for k, v in masks.items() if k in m or k == "mask_channel_length"}
    m |= {"inverse_mask": False, "add_masks": model.recipe["loss"].get("spans", {}).get("add", False)}
    if c.hidden_noise:
        m |= {"encoder_zero_mask": False, "mask_noise_std": c.hidden_noise}
    return pretraining


def _head(model: Any, prefix: str) -> dict[str, Any]:
    return {prefix + k: v.detach().cpu() for k, v in model.head.linear.state_dict().items()}


def _masked(model: Any, cls: type) -> dict[str, Any]:
    """What fine-tuning of sounds sets: masks and dropouts."""
    o, c = objective_of(model, model.recipe["loss"]["name"], cls), model.backbone.config
    first = model.recipe["backbone"]["name"] == "data2vec_audio"
    return {
        "final_dropout": o.final_dropout,
        "apply_mask": o.spans.probability > 0 or o.channels.probability > 0,
        **to_fairseq1.spans_cfg(o.spans),
        **to_fairseq1.channels_cfg(o.channels),
        "mask_channel_before": o.channels_first,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
        "dropout_input": c.input_dropout,
        "layerdrop": c.layerdrop,
        "feature_grad_mult": c.feature_grad if first else c.local_grad,
        "normalize": to_fairseq1.audio_task(model)["normalize"],
    }


def ctc(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    encoder, pretraining = _encoder(model)
    out = prefixed(encoder, "w2v_encoder.w2v_model.") | _head(model, "w2v_encoder.proj.")
    masks, c = _masked(model, CtcConfig), model.backbone.config
    cfg = {
        "_name": "wav2vec_ctc",
        "w2v_path": "",
        **masks,
        "zero_mask": not getattr(c, "hidden_noise", 0.0),
        "w2v_args": _overridden(pretraining, masks, model),
    }
    return out, {"model": cfg, "task": to_fairseq1.audio_task(model)}


def tags(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    encoder, pretraining = _encoder(model)
    out = prefixed(encoder, "d2v_model.") | _head(model, "proj.")
    masks = _masked(model, AudioClassifyConfig)
    cfg = {
        "_name": "audio_classification",
        "model_path": "",
        "prediction_mode": model.head.pooling,
        **masks,
        "d2v_args": _overridden(pretraining, masks, model),
    }
    return out, {"model": cfg, "task": to_fairseq1.audio_task(model)}


def images(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    encoder, pretraining = _encoder(model)
    o = objective_of(model, "data2vec_image_classify", ImageClassifyConfig)
    out = prefixed(encoder, "model.") | _head(model, "head.")
    if model.head.norm is not None:
        out |= {f"fc_norm.{k}": v.detach().cpu() for k, v in model.head.norm.state_dict().items()}
    cfg = {
        "_name": "mae_image_classification",
        "model_path": "",
        "num_classes": model.head.linear.out_features,
        "label_smoothing": o.label_smoothing,
        "drop_path_rate": model.backbone.config.drop_path[1],
        "use_fc_norm": o.norm,
        "prediction_mode": "CLS_TOKEN" if o.class_token else "MEAN_POOLING",
        "pretrained_model_args": pretraining,
    }
    return out, {"model": cfg, "task": {"_name": "mae_image_classification"}}


def _sentence_head(model: Any) -> dict[str, Any]:
    own = {k: v.detach().cpu() for k, v in model.head.state_dict().items()}
    return prefixed(tables.SENTENCE.to_theirs(own), "classification_heads.sentence_classification_head.")


def _sentence_task(model: Any) -> dict[str, Any]:
    classes = model.head.linear.out_features
    return {"_name": "sentence_prediction", "num_classes": classes, "regression_target": classes == 1}


def sentences1(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    encoder, cfg = to_fairseq1.text(model)
    return encoder | _sentence_head(model), {"model": cfg["model"], "task": _sentence_task(model)}


def sentences2(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    encoder, pretraining = _encoder(model)
    cfg = {
        "_name": "data2vec_text_classification",
        "model_path": "",
        "pooler_dropout": model.head.dropout.p,
        "pooler_activation_fn": "tanh",
        "pretrained_model_args": pretraining,
    }
    return prefixed(encoder, "model.") | _sentence_head(model), {"model": cfg, "task": _sentence_task(model)}
