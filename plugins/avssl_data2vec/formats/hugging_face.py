"""Hugging Face folders of Data2VecAudio, Data2VecText and Data2VecVision, in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl.safeload import load_safetensors, load_torch
from avssl_data2vec.formats import tables
from avssl_data2vec.formats.defaults import HUGGING_FACE
from avssl_data2vec.formats.names import fresh_head, part, prefixed, tensors_only, unknown, whole
from avssl_data2vec.formats.vision1 import INCEPTION
from avssl_data2vec.frontends import tokens

_SOURCE = "Hugging Face transformers, models/data2vec (Apache-2.0)"
BESIDE = ("vocab.json", "preprocessor_config.json")  # files that some models bring
_OTHER_HEAD = "a head of another task"
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_fast": "gelu_fast",
    "relu": "relu",
    "silu": "swish",
    "swish": "swish",
    "tanh": "tanh",
    "linear": "linear",
}

_OTHER_HEADS = {  # what the classes of other tasks call theirs
    "data2vec-audio": {"projector", "classifier", "tdnn", "feature_extractor", "objective", "layer_weights"},
    "data2vec-text": {"lm_head", "classifier", "qa_outputs"},
    "data2vec-vision": {"decode_head", "auxiliary_head", "fpn1", "fpn2"},
}

_OBJECTIVES: dict[str, dict[str, Any]] = {  # of the published models (arXiv:2202.03555, Sec. 4)
    "audio": {
        "targets": {"layers": "ffn", "top_k": 8, "per_layer": ["instance"]},
        "teacher": {"own_local": False, "copied": ["positions.*"]},
    },
    "vision": {
        "targets": {"layers": "blocks", "top_k": 6, "per_layer": ["layer"], "mean": ["layer"]},
        "beta": 2.0,
        "scale": 1.0,
        "reduction": "mean",
        "teacher": {"end": 0.9998, "anneal": 0, "delay": 1},
    },
    "text": {
        "targets": {"layers": "ffn", "top_k": 10, "per_layer": ["layer"]},
        "beta": 4.0,
        "scale": 1.0,
        "head_layers": 2,
        "teacher": {"anneal": 300000, "copied": ["embed.*"]},
    },
}


def detect(path: Path) -> bool:
    """Whether a folder (or a weight file beside its config.json) is a Hugging Face data2vec model."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file() or (path.is_file() and path.suffix not in (".safetensors", ".bin")):
        return False
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type", "")).startswith("data2vec")
    except (ValueError, AttributeError, OSError):
        return False


def read(path: Path, *, config: str = "", tokenizer: str = "") -> Imported:
    """A folder with config.json and model.safetensors (one or sharded) or pytorch_model.bin, or one such weight file.

    config: the configuration's file when it is not config.json beside the weights. tokenizer: of a text model, a
    tokenizer.json or a folder with vocab.json and merges.txt; by default what lies beside the weights.
    """
    with whole(path):
        return _read(path, config=config, tokenizer=tokenizer)


def _read(path: Path, *, config: str, tokenizer: str) -> Imported:
    folder = path if path.is_dir() else path.parent
    settings = _json(Path(config) if config else folder / "config.json")
    beside = {name: _json(folder / name) for name in BESIDE if (folder / name).is_file()}
    found = read_parts(settings, _weights(path), beside, folder)
    if "vocabulary" in found.backbone:
        frontend = {**found.frontend, **tokens.imported(tokenizer, folder, found.backbone)}
        return replace(found, frontend=frontend)
    check(not tokenizer, f"{path} holds no text model: it has no tokenizer", fix="leave out --option tokenizer")
    return found


def read_parts(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], beside: Mapping[str, Any], folder: Path
) -> Imported:
    """The content of the folder, as `read` reads it; beside: of the files of `BESIDE` that are there."""
    kind = settings.get("model_type", "")
    readers = {"data2vec-audio": _audio, "data2vec-text": _text, "data2vec-vision": _vision}
    check(
        kind in readers,
        f"{folder} is a {kind or 'nameless'} model",
        fix=f"one of {', '.join(readers)} is known",
        error=CheckpointError,
    )
    return readers[kind]({**HUGGING_FACE[kind], **settings}, weights, beside, folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: {error}", fix="import it with the model's config.json: --option config=PATH"
        ) from None


def _weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        files = _files(path)
    else:
        files = [path]
    out: dict[str, Tensor] = {}
    for file in files:
        loaded = load_safetensors(file) if file.suffix == ".safetensors" else load_torch(file)
        out |= tensors_only(loaded, str(file))
    return out


def _files(folder: Path) -> list[Path]:
    """The weight files of a folder: safetensors before pickles, one before shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return [folder / n for n in sorted(set(_json(index)["weight_map"].values()))]
    return [folder / "model.safetensors"]  # which is then said to be missing


def _split(weights: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors and those of a head beside it; a bare encoder has no prefix."""
    base = part(weights, prefix)
    return (base, {k: v for k, v in weights.items() if not k.startswith(prefix)}) if base else (dict(weights), {})


def _others(c: Mapping[str, Any], head: Iterable[str], folder: Path) -> dict[str, str]:
    """Why the tensors of another task's head are not needed. Raises CheckpointError for those of no known one."""
    known = _OTHER_HEADS[c["model_type"]]
    unknown({k for k in head if k.split(".")[0] not in known}, str(folder))
    return dict.fromkeys(sorted(head), _OTHER_HEAD)


def _spec_augment(c: Mapping[str, Any]) -> dict[str, Any]:
    """What training hides; their batches are not brought to equal counts."""

    def spans(kind: str) -> dict[str, Any]:
        return {
            "probability": float(c[f"mask_{kind}_prob"]) if c["apply_spec_augment"] else 0.0,
            "length": int(c[f"mask_{kind}_length"]),
            "min_spans": int(c[f"mask_{kind}_min_masks"]),
            "same_count": False,
        }

    return {"spans": spans("time"), "channels": spans("feature")}


def _only(c: Mapping[str, Any], folder: Path, **known: Any) -> None:
    """Raises CheckpointError for an option that changes the numbers in a way that our encoders do not follow."""
    for key, value in known.items():
        check(
            (c.get(key) or value) == value,
            f"{folder}: {key} = {c.get(key)!r} is not supported",
            fix=f"only {value!r} is",
            error=CheckpointError,
        )


def _audio(c: Mapping[str, Any], weights: Mapping[str, Tensor], beside: Mapping[str, Any], folder: Path) -> Imported:
    base, head = _split(weights, "data2vec_audio.")
    _only(c, folder, add_adapter=False, feat_extract_activation="gelu")
    ours, left = tables.HF_AUDIO.to_ours(base)
    unknown(left, str(folder))
    layers = list(zip(c["conv_dim"], c["conv_kernel"], c["conv_stride"], strict=True))
    depth = int(c["num_conv_pos_embeddings"])  # despite its name the number of convolutions
    backbone = {
        "name": "data2vec_audio",
        "dim": c["hidden_size"],
        "depth": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "ffn": c["intermediate_size"],
        "conv_layers": [list(x) for x in layers],
        "extractor": "layer_norm" if "extractor.norms.1.weight" in ours else "default",
        "conv_bias": bool(c["conv_bias"]),
        "positions_depth": depth,
        "positions_width": int(c["conv_pos_kernel_size"]) * depth,
        "positions_groups": c["num_conv_pos_embedding_groups"],
        "activation": _activation(c["hidden_act"]),
        "norm_eps": c["layer_norm_eps"],
        "dropout": c["hidden_dropout"],
        "attention_dropout": c["attention_dropout"],
        "activation_dropout": c["activation_dropout"],
        "input_dropout": c["feat_proj_dropout"],
        "layerdrop": c["layerdrop"],
    }
    if "mask_token" not in ours:  # models that were never masked leave it out
        ours["mask_token"] = torch.zeros(int(c["hidden_size"]))
    heard = beside.get("preprocessor_config.json", {})
    frontend = {"normalise": bool(heard.get("do_normalize", True)), "rate": int(heard.get("sampling_rate", 16000))}
    backbone["rate"] = frontend["rate"]
    if "lm_head.weight" in head:
        unknown(set(head) - {"lm_head.weight", "lm_head.bias"}, str(folder))
        return _recogniser(backbone, ours, c, head, beside, frontend)
    if set(head) == {f"{name}.{w}" for name in ("projector", "classifier") for w in ("weight", "bias")}:
        return _tagger(backbone, ours, c, head, frontend)
    return _encoder(backbone, ours, frontend, _others(c, head, folder))


def _tagger(
    backbone: dict[str, Any],
    ours: dict[str, Tensor],
    c: Mapping[str, Any],
    head: Mapping[str, Tensor],
    frontend: dict[str, Any],
) -> Imported:
    """A classifier of clips. Nothing stands between projector, mean and classifier: together they are one linear layer."""
    weight = head["classifier.weight"] @ head["projector.weight"]
    bias = head["classifier.weight"] @ head["projector.bias"] + head["classifier.bias"]
    loss = {"name": "data2vec_audio_classify", "classes": len(bias), "pooling": "average_before", **_spec_augment(c)}
    return _finetuned(
        backbone, loss, {**prefixed(ours, "backbone."), "head.linear.weight": weight, "head.linear.bias": bias}, c,
        frontend,
    )  # fmt: skip


def _recogniser(
    backbone: dict[str, Any],
    ours: dict[str, Tensor],
    c: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    beside: Mapping[str, Any],
    frontend: dict[str, Any],
) -> Imported:
    size = int(weights["lm_head.weight"].shape[0])
    symbols = [f"<{i}>" for i in range(size)]
    if table := beside.get("vocab.json"):
        symbols = [s for s, _ in sorted(table.items(), key=lambda pair: pair[1])]
        symbols += [f"<{i}>" for i in range(len(symbols), size)]
    loss = {
        "name": "ctc",
        "classes": size,
        "blank": int(c["pad_token_id"]),
        "final_dropout": float(c["final_dropout"]),
        **_spec_augment(c),
    }
    head = prefixed(part(weights, "lm_head."), "head.linear.")
    tensors = {**prefixed(ours, "backbone."), **head}
    return _finetuned(backbone, loss, tensors, c, frontend, targets={"kind": "characters", "classes": symbols})


def _finetuned(
    backbone: dict[str, Any],
    loss: dict[str, Any],
    tensors: dict[str, Tensor],
    c: Mapping[str, Any],
    frontend: dict[str, Any],
    ignored: Mapping[str, str] | None = None,
    targets: dict[str, Any] | None = None,
) -> Imported:
    """A model with the head of a task; the labels are those of the configuration unless `targets` says them."""
    if targets is None and loss.get("regression"):
        targets = {"kind": "float", "classes": []}
    elif targets is None and (names := c.get("id2label")):
        names = [str(name) for _, name in sorted(names.items(), key=lambda pair: int(pair[0]))]
        several = c.get("problem_type") == "multi_label_classification"
        targets = {"kind": "multi_hot" if several else "index", "classes": names, "exclusive": not several}
    return Imported(
        backbone=backbone,
        loss=loss,
        tensors=tensors,
        frontend=frontend,
        ignored=ignored or {},
        assets={} if targets is None else {"targets": targets},
        licence="Apache-2.0",
        source=_SOURCE,
    )


def _text(c: Mapping[str, Any], weights: Mapping[str, Tensor], beside: Mapping[str, Any], folder: Path) -> Imported:
    base, head = _split(weights, "data2vec_text.")
    _only(c, folder, is_decoder=False, position_embedding_type="absolute")
    ignored = {
        k: "every token is of segment 0: added to its embedding"
        for k in base
        if k == "embeddings.token_type_embeddings.weight"
    }
    extra = base.get("embeddings.token_type_embeddings.weight")
    ignored |= {
        k: _OTHER_HEAD if k.startswith("pooler.") else "a constant"
        for k in base
        if k.startswith("pooler.") or k.endswith("position_ids")
    }
    ours, left = tables.HF_TEXT.to_ours({k: v for k, v in base.items() if k not in ignored})
    unknown(left, str(folder))
    if extra is not None:  # every token is of segment 0, so its embedding is part of every token's
        ours["embed.tokens.weight"] = (
            ours["embed.tokens.weight"] + extra[0] if bool(extra[0].any()) else ours["embed.tokens.weight"]
        )
    pad = int(c["pad_token_id"])
    vocabulary = int(c["vocab_size"])
    backbone = {
        "name": "data2vec_text",
        "dim": c["hidden_size"],
        "depth": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "ffn": c["intermediate_size"],
        "vocabulary": vocabulary,
        "max_tokens": int(c["max_position_embeddings"]) - pad - 1,
        "pad": pad,
        "mask": vocabulary - 1,
        "activation": _activation(c["hidden_act"]),
        "norm_eps": c["layer_norm_eps"],
        "dropout": c["hidden_dropout_prob"],
        "attention_dropout": c["attention_probs_dropout_prob"],
    }
    frontend = {"max_tokens": backbone["max_tokens"]}
    sentence, other = tables.HF_SENTENCE.to_ours(head)
    if len(sentence) == 4:
        classes = len(sentence["linear.bias"])
        dropout = c["classifier_dropout"]
        loss = {
            "name": "data2vec_text_classify",
            **({"regression": True} if classes == 1 else {"classes": classes}),
            "dropout": backbone["dropout"] if dropout is None else dropout,
        }
        unknown(other, str(folder))
        return _finetuned(
            backbone, loss, {**prefixed(ours, "backbone."), **prefixed(sentence, "head.")}, c, frontend, ignored
        )
    return _encoder(backbone, ours, frontend, ignored | _others(c, head, folder))


def _vision(c: Mapping[str, Any], weights: Mapping[str, Tensor], beside: Mapping[str, Any], folder: Path) -> Imported:
    base, head = _split(weights, "data2vec_vision.")
    _only(c, folder, hidden_act="gelu")
    ignored = {k: "computed from the grid" for k in base if k.endswith("relative_position_index")}
    pooler = {
        f"head.norm.{w}": base[f"pooler.layernorm.{w}"] for w in ("weight", "bias") if f"pooler.layernorm.{w}" in base
    }
    classifier = prefixed(part(head, "classifier."), "head.linear.")
    head = {k: v for k, v in head.items() if not k.startswith("classifier.")}
    known = {k: v for k, v in base.items() if k not in ignored and not k.startswith("pooler.")}
    ours, left = tables.HF_VISION.to_ours(known)
    unknown(left, str(folder))
    dim = int(c["hidden_size"])
    ours.setdefault("mask_token", torch.zeros(1, 1, dim))  # left out where nothing is ever hidden
    if "norm.weight" not in ours:  # mean pooling moves the last norm behind the pooling
        ours |= {"norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim)}
    shared, own = c["use_shared_relative_position_bias"], c["use_relative_position_bias"]
    backbone = {
        "name": "data2vec_vision",
        "dim": dim,
        "depth": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "ffn": c["intermediate_size"],
        "image_size": c["image_size"],
        "patch": c["patch_size"],
        "channels": c["num_channels"],
        "positions": "both" if shared and own else "shared_relative" if shared else "relative" if own else "none",
        "absolute_positions": bool(c["use_absolute_position_embeddings"]),
        "layer_scale": float(c["layer_scale_init_value"] or 1e-4) if "layers.0.gamma1" in ours else 0.0,
        "norm_eps": c["layer_norm_eps"],
        "dropout": c["hidden_dropout_prob"],
        "attention_dropout": c["attention_probs_dropout_prob"],
        "drop_path": c["drop_path_rate"],
        "pooled_norm": not pooler,
    }
    frontend = {"size": c["image_size"], **_pixels(beside.get("preprocessor_config.json"), bool(classifier))}
    if classifier:
        loss = {
            "name": "data2vec_image_classify",
            "classes": int(classifier["head.linear.weight"].shape[0]),
            "class_token": not pooler,
            "norm": bool(pooler),
            "norm_eps": c["layer_norm_eps"],
        }
        tensors = {**prefixed(ours, "backbone."), **pooler, **classifier}
        return _finetuned(backbone, loss, tensors, c, frontend, ignored | _others(c, head, folder))
    ignored |= {k: "the norm of the pooled patches, without a classifier" for k in base if k.startswith("pooler.")}
    ignored |= _others(c, head, folder)
    return _encoder(backbone, ours, frontend, ignored)


def _pixels(seen: Mapping[str, Any] | None, classifier: bool) -> dict[str, Any]:
    """How images are cropped and normalised; without a processor's file as pretraining or fine-tuning does."""
    if seen is None:
        return INCEPTION if classifier else {}
    unit = 255 * (float(seen.get("rescale_factor", 1 / 255)) if seen.get("do_rescale", True) else 1.0)
    normal = bool(seen.get("do_normalize", True))
    mean, std = (seen[k] if normal else [d] * 3 for k, d in (("image_mean", 0.0), ("image_std", 1.0)))
    resized, kept = (_edge(seen.get(k, 224)) for k in ("size", "crop_size"))
    return {
        "mean": [float(x) / unit for x in mean],
        "std": [float(x) / unit for x in std],
        "eval_crop": kept / resized if seen.get("do_center_crop") else 1.0,
    }


def _edge(size: Any) -> int:
    """A side in pixels, from the ways in which processors of several versions write it."""
    if not isinstance(size, Mapping):
        return int(size)
    return int(size["shortest_edge"] if "shortest_edge" in size else size["height"])


def _encoder(
    backbone: dict[str, Any],
    ours: dict[str, Tensor],
    frontend: dict[str, Any],
    ignored: Mapping[str, str] | None = None,
) -> Imported:
    """An encoder alone: the conversion to Hugging Face drops head and teacher. The objective is the published one, its
    teacher a copy of the encoder and its head new (from a fixed seed), as at the start of pretraining."""
    modality = backbone["name"].removeprefix("data2vec_")
    objective = _OBJECTIVES[modality]
    depth = int(backbone["depth"])
    targets = {**objective["targets"], "top_k": min(objective["targets"]["top_k"], depth)}
    teacher = dict(ours)
    if modality == "audio":
        teacher = {
            k: v for k, v in ours.items() if not k.startswith(("extractor.", "feature_norm.", "project.", "mask_"))
        }
    return Imported(
        backbone=backbone,
        loss={"name": "data2vec", **objective, "targets": targets},
        tensors={
            **prefixed(ours, "backbone."),
            **prefixed(teacher, "teacher."),
            **fresh_head(modality, int(backbone["dim"]), objective.get("head_layers", 1)),
            "updates": torch.tensor(0),
        },
        frontend=frontend,
        ignored=ignored or {},
        licence="Apache-2.0",
        source=_SOURCE,
    )


def _activation(name: str) -> str:
    check(
        name in _ACTIVATIONS,
        f"activation {name!r} is not supported",
        fix=f"one of {', '.join(_ACTIVATIONS)} is",
        error=CheckpointError,
    )
    return _ACTIVATIONS[name]
