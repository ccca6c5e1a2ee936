"""The authors' files in and out: encoder, fine-tuned classifier and tokenizer (microsoft/unilm, beats/, MIT licence).

A file is {"cfg": dict, "model": state dict[, "label_dict": {index: label}]}. Keys that a cfg does not have take the
class defaults of the official code, which are not the values of the released models (no deep norm, no relative bias).
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.files import replacing
from avssl.imports import Imported
from avssl.safeload import load_torch, plain
from avssl_beats.config import BeatsConfig

SOURCE = "https://github.com/microsoft/unilm/tree/master/beats"
LICENCE = "MIT (Copyright (c) 2022 Microsoft)"

# official cfg key -> (our key, the official class default)
CONFIG: dict[str, tuple[str, Any]] = {
    "encoder_embed_dim": ("dim", 768),
    "encoder_layers": ("depth", 12),
    "encoder_attention_heads": ("heads", 12),
    "encoder_ffn_embed_dim": ("ffn", 3072),
    "input_patch_size": ("patch", -1),
    "embed_dim": ("patch_dim", 512),
    "conv_bias": ("patch_bias", False),
    "activation_fn": ("activation", "gelu"),
    "layer_norm_first": ("pre_norm", False),
    "deep_norm": ("deep_norm", False),
    "conv_pos": ("position_kernel", 128),
    "conv_pos_groups": ("position_groups", 16),
    "relative_position_embedding": ("relative_bias", False),
    "num_buckets": ("buckets", 320),
    "max_distance": ("max_distance", 1280),
    "gru_rel_pos": ("gated", False),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "dropout_input": ("input_dropout", 0.0),
    "encoder_layerdrop": ("layer_drop", 0.0),
    "layer_wise_gradient_decay_ratio": ("gradient_decay", 1.0),
}
# Keys of a cfg that describe no encoder. The statistics are ours and ESPnet's names for what the official code takes as
# arguments; its config class keeps keys that it does not know.
OTHER_KEYS = ("finetuned_model", "predictor_dropout", "predictor_class", "quant_n", "quant_dim")
STATISTICS = {"mean": "fbank_mean", "std": "fbank_std"}
# our name -> official name; the first pattern that matches the whole name decides
NAMES: tuple[tuple[str, str], ...] = (
    (r"patch\.(.+)", r"patch_embedding.\1"),
    (r"patch_norm\.(.+)", r"layer_norm.\1"),
    (r"project\.(.+)", r"post_extract_proj.\1"),
    (r"position\.direction", r"encoder.pos_conv.0.weight_v"),
    (r"position\.magnitude", r"encoder.pos_conv.0.weight_g"),
    (r"position\.bias", r"encoder.pos_conv.0.bias"),
    (r"norm\.(.+)", r"encoder.layer_norm.\1"),
    (r"layers\.bias\.table\.weight", r"encoder.layers.0.self_attn.relative_attention_bias.weight"),
    (r"layers\.blocks\.(\d+)\.attention\.gate_scale", r"encoder.layers.\1.self_attn.grep_a"),
    (r"layers\.blocks\.(\d+)\.attention\.gate\.(.+)", r"encoder.layers.\1.self_attn.grep_linear.\2"),
    (r"layers\.blocks\.(\d+)\.attention\.(q|k|v|out)\.(.+)", r"encoder.layers.\1.self_attn.\2_proj.\3"),
    (r"layers\.blocks\.(\d+)\.norm1\.(.+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"layers\.blocks\.(\d+)\.norm2\.(.+)", r"encoder.layers.\1.final_layer_norm.\2"),
    (r"layers\.blocks\.(\d+)\.(fc[12])\.(.+)", r"encoder.layers.\1.\2.\3"),
)
HEAD = {"head.linear.weight": "predictor.weight", "head.linear.bias": "predictor.bias"}
TOKENIZER = {
    "tokenizer.down.0.weight": "quantize_layer.0.weight",
    "tokenizer.down.0.bias": "quantize_layer.0.bias",
    "tokenizer.down.2.weight": "quantize_layer.2.weight",
    "tokenizer.down.2.bias": "quantize_layer.2.bias",
    "tokenizer.codebook.weight": "quantize.embedding.weight",
    "tokenizer.codebook.usage": "quantize.cluster_size",
    "tokenizer.codebook.started": "quantize.embedding.initted",
}
REMNANTS = {
    "quantize.embedding.embed_avg": "never read by the official quantizer",
    "quantize.embedding.cluster_size": "never read by the official quantizer",
}
FROZEN = re.compile(r"(patch_embedding_pad|raw2fbank_pad)\.")  # ESPnet's exports carry them beside the official keys
NEW_NORM = {
    "encoder.pos_conv.0.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv.0.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
}
TABLE = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.weight")


TABLE_NAME = "backbone.layers.bias.table.weight"
TABLE_KEY = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


def official_name(name: str) -> str:
    """Official key of a tensor of the backbone, e.g. "layers.blocks.0.fc1.weight" -> "encoder.layers.0.fc1.weight"."""
    for pattern, template in NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(template)
    raise CheckpointError(
        f"{name} has no place in the official format", fix="export as safetensors, or train without backbone.mask_token"
    )


def detect(path: Path) -> bool:
    """Whether a file looks like one of the authors': the names in its pickle, without loading tensors."""
    if path.is_dir() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith("data.pkl"):
                index = archive.read(member)
                return b"patch_embedding" in index and b"pos_conv" in index
    return False


def read(path: Path, padding: str = "official", **overrides: Any) -> Imported:
    """Read an encoder, a fine-tuned classifier or a tokenizer.

    padding: "official" (as trained), "exact" or "centre"; see avssl_beats.padding. overrides: keys of the official cfg,
    for files whose cfg is wrong or missing, and fbank_mean and fbank_std where they are not AudioSet's. Raises
    CheckpointError for anything that is no BEATs checkpoint.
    """
    for key in overrides.keys() - CONFIG.keys() - set(OTHER_KEYS) - set(STATISTICS.values()):
        warnings.warn(f"{key} is no option of a BEATs file, and changes nothing", stacklevel=2)
    file = plain(load_torch(path))
    check(
        isinstance(file, dict) and isinstance(file.get("model"), dict),
        f"{path} is no BEATs checkpoint: no 'model'",
        fix="give a file of microsoft/unilm beats/, or another --format",
        error=CheckpointError,
    )
    cfg = {**dict(file.get("cfg") or {}), **overrides}
    check(
        "input_patch_size" in cfg,
        f"{path}: its cfg does not say input_patch_size",
        fix="give it as an option of the import: input_patch_size=16",
        error=CheckpointError,
    )
    config = {ours: cfg.get(theirs, default) for theirs, (ours, default) in CONFIG.items()}
    tensors = {k.removeprefix("module."): v for k, v in file["model"].items()}  # saved from DataParallel
    tensors = {NEW_NORM.get(k, k): v for k, v in tensors.items()}
    kind = _kind(tensors)
    ignored = {k: "frozen helper of ESPnet's exports" for k in tensors if FROZEN.match(k)}
    ignored |= {k: why for k, why in REMNANTS.items() if k in tensors}
    names = _encoder(config)
    copies = sorted((k for k in tensors if TABLE.fullmatch(k)), key=lambda k: int(k.split(".")[2]))
    if copies and TABLE_NAME in names:
        names[TABLE_NAME] = copies[-1]
        ignored |= {k: "a layer's copy of the shared table: the last layer's counts" for k in copies[:-1]}
    names |= {"encoder": {}, "classifier": HEAD, "tokenizer": TOKENIZER}[kind]
    _check_keys(set(names.values()), tensors.keys() - ignored.keys(), path)
    loss, assets = _loss(kind, cfg, tensors, file.get("label_dict"))
    return Imported(
        backbone={"name": "beats", **config, "padding": padding},
        loss=loss,
        tensors={ours: tensors[theirs] for ours, theirs in names.items()},
        frontend={"padding": padding, **{ours: cfg[key] for ours, key in STATISTICS.items() if key in cfg}},
        ignored=ignored,
        assets=assets,
        licence=LICENCE,
        source=SOURCE,
    )


def _kind(tensors: Mapping[str, Tensor]) -> str:
    if "quantize.embedding.weight" in tensors:
        return "tokenizer"
    return "classifier" if "predictor.weight" in tensors else "encoder"


def _encoder(config: Mapping[str, Any]) -> dict[str, str]:
    """Our name -> official key of every tensor of an encoder of that config."""
    from avssl.schema import structure
    from avssl_beats.backbone import Beats

    with torch.device("meta"):
        names = Beats(structure(BeatsConfig, config, "cfg")).state_dict()
    return {f"backbone.{name}": official_name(name) for name in names}


def _check_keys(wanted: set[str], there: set[str], path: Path) -> None:
    for what, keys in (("misses", sorted(wanted - there)), ("has unknown", sorted(there - wanted))):
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        check(
            not keys,
            f"{path} {what} {', '.join(keys[:3])}{more}",
            fix="is it a BEATs checkpoint, and complete?",
            error=CheckpointError,
        )


def _loss(
    kind: str, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], labels: Mapping[int, str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The loss table and the assets of a file of that kind."""
    if kind == "tokenizer":
        codes, code_dim = tensors["quantize.embedding.weight"].shape
        return {"name": "beats_tokenizer", "codes": codes, "code_dim": code_dim, "padded_take_part": True}, {}
    if kind == "encoder":
        return {"name": "beats"}, {}
    classes = tensors["predictor.weight"].shape[0]
    loss = {"name": "beats_classify", "classes": classes, "dropout": cfg.get("predictor_dropout", 0.1), "loss": "bce"}
    if not labels:
        return loss, {}
    check(
        sorted(map(int, labels)) == list(range(classes)),
        f"label_dict names {len(labels)} classes, the head has {classes}",
        fix="the file is damaged",
        error=CheckpointError,
    )
    ordered = [str(labels[i]) for i in sorted(labels, key=int)]
    return loss, {"targets": {"kind": "multi_hot", "classes": ordered}}


def write(model: Any, path: Path) -> list[Path]:
    """Write an encoder, a classifier or a tokenizer as the authors' file, which their code loads strictly.

    model: an opened model (`avssl.model.Model`); path: a .pt or .pth file, or a folder that gets beats.pt or
    tokenizer.pt. Raises CheckpointError for parts that the format cannot hold.
    """
    is_tokenizer = model.recipe["loss"]["name"] == "beats_tokenizer"
    if path.suffix not in (".pt", ".pth"):
        path.mkdir(parents=True, exist_ok=True)
        path = path / ("tokenizer.pt" if is_tokenizer else "beats.pt")
    from avssl.schema import unstructure

    config = {**unstructure(BeatsConfig()), **unstructure(model.backbone.config)}
    cfg = {theirs: config[ours] for theirs, (ours, _) in CONFIG.items()}
    cfg |= {theirs: model.recipe["frontend"][ours] for ours, theirs in STATISTICS.items()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.backbone.state_dict().items():
        tensors[official_name(name)] = tensor
        if f"backbone.{name}" == TABLE_NAME:
            tensors |= {TABLE_KEY.format(i): tensor for i in range(model.backbone.config.depth)}
    file: dict[str, Any] = {"cfg": cfg, "model": tensors}
    if is_tokenizer:
        tensors |= _tokenizer(model.path, cfg)
    elif model.head is not None:
        linear = getattr(model.head, "linear", None)
        if linear is None or getattr(getattr(model.head, "norm", None), "weight", None) is not None:
            raise CheckpointError(
                "the head is more than one linear layer, which the official format cannot hold",
                fix="fine-tune with the loss beats_classify, or export as safetensors",
            )
        tensors |= {"predictor.weight": linear.weight, "predictor.bias": linear.bias}
        cfg |= {
            "finetuned_model": True,
            "predictor_class": linear.out_features,
            "predictor_dropout": model.recipe["loss"].get("dropout", 0.1),
        }
        if model.codec is not None:
            file["label_dict"] = dict(enumerate(model.codec.classes))
    file["model"] = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as temporary:
        torch.save(file, temporary)
    return [path]


def _tokenizer(path: Path, cfg: dict[str, Any]) -> dict[str, Tensor]:
    """The official tensors of a tokenizer's head, from the files of its model; adds its sizes to `cfg`."""
    from avssl.model import read_initial

    have = read_initial(path).tensors
    out = {theirs: have[ours] for ours, theirs in TOKENIZER.items()}
    codebook = out["quantize.embedding.weight"]
    cfg |= {"quant_n": codebook.shape[0], "quant_dim": codebook.shape[1]}
    remnants = {"quantize.embedding.embed_avg": codebook, "quantize.embedding.cluster_size": torch.zeros(len(codebook))}
    return out | remnants


__all__ = ["detect", "official_name", "read", "write"]
