"""Writing Hugging Face folders of Data2VecAudio (also with its CTC head), Data2VecText and Data2VecVision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from avssl.errors import CheckpointError, check
from avssl.files import write_text
from avssl.model import save_tensors
from avssl_data2vec.classify import SentenceHead
from avssl_data2vec.config import CtcConfig
from avssl_data2vec.formats import hugging_face, tables
from avssl_data2vec.formats.faithful import check_written
from avssl_data2vec.formats.names import prefixed
from avssl_data2vec.formats.training_state import backbone_is, image_head, objective_of, own_tensors
from avssl_data2vec.frontends.configs import VisionFrontendConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_fast",
    "relu": "relu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "linear",
}

_TRAINING_ONLY = (
    *(f"backbone.{key}" for key in ("feature_grad", "activation_dropout", "layerdrop", "specials")),
    *(f"loss.{key}" for key in ("spans.*", "channels.*", "channels_first", "label_smoothing")),
)


def write(model: Any, path: Path) -> list[Path]:
    """Write config.json and model.safetensors into the folder `path`; head and teacher of pretraining have no place
    there. Raises CheckpointError for a model that those classes cannot hold."""
    name = backbone_is(model, "data2vec_audio", "data2vec_text", "data2vec_vision")
    config, tensors, extra = {"data2vec_audio": _audio, "data2vec_text": _text, "data2vec_vision": _vision}[name](model)
    folder = Path(path)
    read = hugging_face.read_parts(config, tensors, extra, folder)
    check_written(model, read, "data2vec_hf", training_only=_TRAINING_ONLY, objective=read.loss["name"] != "data2vec")
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", tensors)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    written = [folder / "config.json", folder / "model.safetensors"]
    if (
        name == "data2vec_text" and model.frontend.config.tokenizer != "bytes"
    ):  # their classes have no tokenizer of bytes
        model.frontend.tokens.save(folder / "tokenizer.json")
        written.append(folder / "tokenizer.json")
    for file, content in extra.items():
        write_text(folder / file, json.dumps(content, ensure_ascii=False) + "\n")
        written.append(folder / file)
    return written


def _audio(model: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    c = model.backbone.config
    check(
        not c.norm_first and c.positions_depth > 0 and c.project and c.extractor == "layer_norm",
        "the Hugging Face class knows post-norm models with a norm after every convolution, plain positional "
        "convolutions and a projection only",
        fix="export as data2vec_fairseq",
        error=CheckpointError,
    )
    tensors = tables.HF_AUDIO.to_theirs(own_tensors(model))
    kernel = max(3, c.positions_width // c.positions_depth)
    config: dict[str, Any] = {
        "model_type": "data2vec-audio",
        "architectures": ["Data2VecAudioModel"],
        "hidden_size": c.dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.ffn,
        "hidden_act": _ACTIVATIONS[c.activation],
        "hidden_dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
        "feat_proj_dropout": c.input_dropout,
        "layerdrop": c.layerdrop,
        "layer_norm_eps": c.norm_eps,
        "conv_dim": [x[0] for x in c.conv_layers],
        "conv_bias": c.conv_bias,
        "conv_kernel": [x[1] for x in c.conv_layers],
        "conv_stride": [x[2] for x in c.conv_layers],
        "num_conv_pos_embeddings": c.positions_depth,
        "conv_pos_kernel_size": kernel,
        "num_conv_pos_embedding_groups": c.positions_groups,
        "num_feat_extract_layers": len(c.conv_layers),
        "feat_extract_activation": "gelu",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    heard = model.frontend.config
    beside: dict[str, Any] = {
        "preprocessor_config.json": {
            "do_normalize": getattr(heard, "normalise", True),
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": c.rate,
        }
    }
    if model.recipe["loss"]["name"] != "ctc":
        return config, tensors, beside
    o: CtcConfig = objective_of(model, "ctc", CtcConfig)
    head = {f"lm_head.{k}": v for k, v in model.head.linear.state_dict().items()}
    config |= {
        "architectures": ["Data2VecAudioForCTC"],
        "vocab_size": model.head.linear.out_features,
        "pad_token_id": o.blank,
        "final_dropout": o.final_dropout,
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": True,
        "apply_spec_augment": o.spans.probability > 0 or o.channels.probability > 0,
        "mask_time_prob": o.spans.probability,
        "mask_time_length": o.spans.length,
        "mask_time_min_masks": o.spans.min_spans,
        "mask_feature_prob": o.channels.probability,
        "mask_feature_length": o.channels.length,
        "mask_feature_min_masks": o.channels.min_spans,
    }
    if model.codec is not None:
        beside["vocab.json"] = {s: i for i, s in enumerate(model.codec.classes)}
    return config, {**prefixed(tensors, "data2vec_audio."), **head}, beside


def _text(model: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    c = model.backbone.config
    check(
        not c.norm_first
        and c.positions == "learned"
        and c.embedding_norm
        and not c.scale_embedding
        and c.mask == c.vocabulary - 1,
        "the Hugging Face class knows post-norm models with learned positions and <mask> as last token only",
        fix="export as data2vec_fairseq",
        error=CheckpointError,
    )
    tensors = tables.HF_TEXT.to_theirs(own_tensors(model))
    tensors["embeddings.token_type_embeddings.weight"] = torch.zeros(1, c.dim)
    config: dict[str, Any] = {
        "model_type": "data2vec-text",
        "architectures": ["Data2VecTextModel"],
        "hidden_size": c.dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.ffn,
        "hidden_act": _ACTIVATIONS[c.activation],
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "vocab_size": c.vocabulary,
        "type_vocab_size": 1,
        "max_position_embeddings": c.max_tokens + c.pad + 1,
        "pad_token_id": c.pad,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": c.norm_eps,
    }
    if not isinstance(model.head, SentenceHead):
        return config, tensors, {}
    config |= {"architectures": ["Data2VecTextForSequenceClassification"], "classifier_dropout": model.head.dropout.p}
    head = tables.HF_SENTENCE.to_theirs(model.head.state_dict())
    return config | _labels(model), {**prefixed(tensors, "data2vec_text."), **head}, {}


def _vision(model: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    c = model.backbone.config
    check(
        c.qkv_bias,
        "the Hugging Face class has biases in its attention, the model has none",
        fix="export as data2vec_vision",
        error=CheckpointError,
    )
    tensors = tables.HF_VISION.to_theirs(own_tensors(model))
    config: dict[str, Any] = {
        "model_type": "data2vec-vision",
        "architectures": ["Data2VecVisionModel"],
        "hidden_size": c.dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.ffn,
        "hidden_act": "gelu",
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "layer_norm_eps": c.norm_eps,
        "image_size": c.image_size,
        "patch_size": c.patch,
        "num_channels": c.channels,
        "use_mask_token": True,
        "use_absolute_position_embeddings": c.absolute_positions,
        "use_relative_position_bias": c.positions in ("relative", "both"),
        "use_shared_relative_position_bias": c.positions in ("shared_relative", "both"),
        "use_mean_pooling": False,
        "layer_scale_init_value": c.layer_scale,
        "drop_path_rate": c.drop_path,
    }
    seen = model.frontend.config
    beside = {"preprocessor_config.json": _processor(seen)} if isinstance(seen, VisionFrontendConfig) else {}
    own = image_head(model)
    if own is None:
        return config, tensors, beside
    head = {f"classifier.{k}": v for k, v in own.linear.state_dict().items()}
    config["architectures"] = ["Data2VecVisionForImageClassification"]
    if own.norm is not None:
        head |= {f"data2vec_vision.pooler.layernorm.{k}": v for k, v in own.norm.state_dict().items()}
        tensors = {k: v for k, v in tensors.items() if not k.startswith("layernorm.")}
        config["use_mean_pooling"] = True
    return config | _labels(model), {**prefixed(tensors, "data2vec_vision."), **head}, beside


def _processor(f: VisionFrontendConfig) -> dict[str, Any]:
    """The image processor that does what our frontend does outside training: CLIP's resizes the short side, which BEiT's
    cannot in every version of transformers."""
    side = {"height": f.size, "width": f.size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(f.size / f.eval_crop)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(f.mean),
        "image_std": list(f.std),
    }


def _labels(model: Any) -> dict[str, Any]:
    """The names of the classes, where they are known; their number otherwise."""
    known = () if model.codec is None else model.codec.classes  # a regression has none
    names = known or range(model.head.linear.out_features)
    return {"id2label": {i: str(n) for i, n in enumerate(names)}, "label2id": {str(n): i for i, n in enumerate(names)}}
