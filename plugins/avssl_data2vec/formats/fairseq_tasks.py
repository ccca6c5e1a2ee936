"""Fine-tuned fairseq checkpoints of data2vec 1 and 2.0: letters by CTC, tags of sounds, images, sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl_data2vec.formats import fairseq1, fairseq2, tables
from avssl_data2vec.formats.defaults import AUDIO1, FINE_TUNED_AUDIO, MULTI, full
from avssl_data2vec.formats.names import part, prefixed, tensors_only, unknown
from avssl_data2vec.letters import FAIRSEQ_LETTERS

_OVERRIDDEN = (  # ours, and what fine-tuning sets anew in data2vec 1
    ("dropout", "dropout"),
    ("attention_dropout", "attention_dropout"),
    ("layerdrop", "layerdrop"),
    ("activation_dropout", "activation_dropout"),
    ("input_dropout", "dropout_input"),
    ("feature_grad", "feature_grad_mult"),
)


_LEFT_OUT = {
    "_ema": "the teacher of pretraining",
    "target_model.": "the teacher of pretraining",
    "lm_head.": "the head of pretraining",
    "emb_head.": "the head of pretraining",
    "final_proj.": "the head of pretraining",
    "regression_head.": "the head of pretraining",
    "decoder.": "the decoder of pretraining",
}


def read_ctc(data: Mapping[str, Any], where: str) -> Imported:
    """A speech recogniser (`wav2vec_ctc`): the encoder's config lies in `w2v_args`."""
    cfg = data["cfg"]["model"]
    inner, rest = _split(data, "w2v_encoder.w2v_model.", where)
    backbone, ours = _waveforms(cfg, cfg["w2v_args"], inner, where)
    head = prefixed(part(rest, "w2v_encoder.proj."), "head.linear.")
    unknown({k for k in rest if not k.startswith("w2v_encoder.proj.")}, where)
    size = int(head["head.linear.weight"].shape[0])
    loss = {
        "name": "ctc",
        "classes": size,
        "final_dropout": float(cfg["final_dropout"]),
        **_masks(cfg, cfg["w2v_args"]),
    }
    symbols = list(FAIRSEQ_LETTERS) if size == len(FAIRSEQ_LETTERS) else [f"<{i}>" for i in range(size)]
    targets = {"targets": {"kind": "characters", "classes": symbols}}
    return _imported(data, backbone, loss, ours, head, _heard(data, cfg["w2v_args"]), targets)


def read_tags(data: Mapping[str, Any], where: str) -> Imported:
    """A tagger of sounds (`audio_classification`): the encoder's config lies in `d2v_args`."""
    cfg = data["cfg"]["model"]
    pooling = cfg["prediction_mode"]
    known = ("lin_softmax", "average_sigmoid", "average", "average_before", "max")
    check(
        pooling in known,
        f"{where}: prediction_mode = {pooling!r} is not supported",
        fix=f"one of {', '.join(known)} is",
        error=CheckpointError,
    )
    inner, rest = _split(data, "d2v_model.", where)
    backbone, ours = _waveforms(cfg, cfg["d2v_args"], inner, where)
    unknown(set(rest) - {"proj.weight", "proj.bias"}, where)
    head = prefixed(part(rest, "proj."), "head.linear.")
    loss = {
        "name": "data2vec_audio_classify",
        "classes": int(head["head.linear.weight"].shape[0]),
        "pooling": pooling,
        "final_dropout": float(cfg["final_dropout"]),
        **_masks(cfg, cfg["d2v_args"]),
    }
    return _imported(data, backbone, loss, ours, head, _heard(data, cfg["d2v_args"]))


def read_images(data: Mapping[str, Any], where: str) -> Imported:
    """An image classifier of data2vec 2.0 (`mae_image_classification`)."""
    cfg = data["cfg"]["model"]
    mode = str(cfg["prediction_mode"])
    check(
        mode in ("MEAN_POOLING", "CLS_TOKEN"),
        f"{where}: prediction_mode = {mode!r} is not supported",
        fix="MEAN_POOLING and CLS_TOKEN are",
        error=CheckpointError,
    )
    inner, rest = _split(data, "model.", where)
    backbone, ours = _second(cfg["pretrained_model_args"], inner, "IMAGE", where)
    names = {"head.": "head.linear.", "fc_norm.": "head.norm."}
    unknown({k for k in rest if not k.startswith(tuple(names))}, where)
    head = {new + k: v for old, new in names.items() for k, v in part(rest, old).items()}
    loss = {
        "name": "data2vec_image_classify",
        "classes": int(head["head.linear.weight"].shape[0]),
        "class_token": mode == "CLS_TOKEN",
        "norm": "head.norm.weight" in head,
        "label_smoothing": float(cfg["label_smoothing"]),
    }
    return _imported(data, backbone, loss, ours, head, {"size": backbone["image_size"]})


def read_sentences(data: Mapping[str, Any], where: str, *, pad: int, mask: int | None) -> Imported:
    """A classifier of sentences: `data2vec_text` with one head, or `data2vec_text_classification` of data2vec 2.0."""
    cfg = data["cfg"]["model"]
    if cfg["_name"] == "data2vec_text":
        tensors = tensors_only(fairseq1.modern_text(data["model"]), where, besides=("encoder._ema",))
        backbone, ours, left = fairseq1.text_encoder(tensors, cfg, pad, mask)
        unused = ("encoder.regression_head.", fairseq1.OLD_TEACHER, *fairseq1.OTHER_HEADS)
        rest = {k: tensors[k] for k in left if not k.startswith(unused)}
    else:
        inner, rest = _split(data, "model.", where)
        backbone, ours = _second(cfg["pretrained_model_args"], inner, "TEXT", where, pad=pad, mask=mask)
    check(
        cfg["pooler_activation_fn"] == "tanh" and not cfg["spectral_norm_classification_head"],
        f"{where}: its head is not RoBERTa's",
        fix="pooler_activation_fn=tanh without spectral norm is known",
        error=CheckpointError,
    )
    loss, head, left = sentence_head(rest, float(cfg["pooler_dropout"]), where)
    unknown(left, where)
    return _imported(data, backbone, loss, ours, head, {"max_tokens": backbone["max_tokens"]})


def sentence_head(
    tensors: Mapping[str, Tensor], dropout: float, where: str
) -> tuple[dict[str, Any], dict[str, Tensor], set[str]]:
    """The one head below `classification_heads.`: its loss table, its tensors, and the names that are none of it."""
    heads = sorted({k.split(".")[1] for k in tensors if k.startswith("classification_heads.")})
    check(
        len(heads) == 1,
        f"{where} has {len(heads)} classification heads{': ' if heads else ''}{', '.join(heads)}",
        fix="only a file with one can be read",
        error=CheckpointError,
    )
    ours, left = tables.SENTENCE.to_ours(part(tensors, f"classification_heads.{heads[0]}."))
    unknown({f"classification_heads.{heads[0]}.{k}" for k in left}, where)
    classes = len(ours["linear.bias"])
    loss = {
        "name": "data2vec_text_classify",
        **({"regression": True} if classes == 1 else {"classes": classes}),
        "dropout": dropout,
    }
    return loss, prefixed(ours, "head."), {k for k in tensors if not k.startswith("classification_heads.")}


# -- the parts -------------------------------------------------------------------------------------------------------
def _split(data: Mapping[str, Any], prefix: str, where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors without their prefix, and the others; a teacher of pretraining is left out."""
    tensors = tensors_only(data["model"], where, besides=(f"{prefix}_ema",))
    return part(tensors, prefix), {k: v for k, v in tensors.items() if not k.startswith(prefix)}


def _waveforms(
    cfg: Mapping[str, Any], pretraining: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Table and tensors of a waveform encoder of either generation."""
    own = pretraining.get("model", pretraining)
    if _is_second(own):
        return _second(pretraining, tensors, "AUDIO", where)
    backbone = fairseq1.audio_backbone(full(own, AUDIO1), tensors)
    backbone |= {ours: float(cfg[theirs]) for ours, theirs in _OVERRIDDEN}
    ours, left = fairseq1.audio_tensors(tensors, backbone["extractor"])
    unknown({k for k in left if not k.startswith("final_proj.")}, where)
    return {"name": "data2vec_audio", **backbone}, ours


def _second(
    pretraining: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    key: str,
    where: str,
    *,
    pad: int = 1,
    mask: int | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Table and tensors of an encoder of data2vec 2.0."""
    own = pretraining["model"]
    check(
        _is_second(own),
        f"{where}: fine-tuned from a {own.get('_name') or 'nameless'} model",
        fix="only data2vec_multi is known",
        error=CheckpointError,
    )
    backbone, ours, left = fairseq2.encoder(full(own, MULTI), tensors, key, pad, mask, where, fine_tuned=True)
    unknown({k for k in left if not k.startswith("decoder.")}, where)
    return backbone, ours


def _is_second(own: Mapping[str, Any]) -> bool:
    return "modalities" in own or own.get("_name") == "data2vec_multi"


def _masks(cfg: Mapping[str, Any], pretraining: Mapping[str, Any]) -> dict[str, Any]:
    """What training hides; nothing without `apply_mask`. data2vec 2.0 reads few of these options."""
    if not cfg["apply_mask"]:
        return {}
    own = pretraining.get("model", pretraining)
    if _is_second(own):
        read = {
            k: cfg[k] for k in ("mask_prob", "mask_length", "mask_dropout", "mask_channel_prob", "mask_channel_length")
        }
        cfg = {**FINE_TUNED_AUDIO, **read}
        add = bool(full(own, MULTI)["modalities"]["audio"]["add_masks"])
        return {"spans": {**fairseq1.spans(cfg), "add": add}, "channels": fairseq1.channels(cfg)}
    first = bool(cfg["mask_channel_before"])
    return {"spans": fairseq1.spans(cfg), "channels": fairseq1.channels(cfg), "channels_first": first}


def _heard(data: Mapping[str, Any], pretraining: Mapping[str, Any]) -> dict[str, Any]:
    return fairseq1.audio_task(data["cfg"].get("task") or pretraining.get("task"))


def _imported(
    data: Mapping[str, Any],
    backbone: dict[str, Any],
    loss: dict[str, Any],
    ours: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    frontend: dict[str, Any],
    assets: dict[str, Any] | None = None,
) -> Imported:
    return Imported(
        backbone=backbone | {k: v for k, v in frontend.items() if k == "rate"},
        loss=loss,
        tensors={**prefixed(ours, "backbone."), **head},
        frontend=frontend,
        ignored={k: why for k, why in _LEFT_OUT.items() if any(f".{k}" in f".{name}" for name in data["model"])},
        assets=assets or {},
        licence="MIT",
        source=fairseq1.FAIRSEQ,
    )
