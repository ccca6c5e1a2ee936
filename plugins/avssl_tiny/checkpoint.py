"""The `tiny` format: tensors under BERT's names and a JSON of sizes, in and out. There is no official checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from avssl.errors import CheckpointError, UsageError, check, nearest
from avssl.imports import Imported
from avssl.safeload import load_safetensors, load_torch, plain
from avssl.schema import unstructure

from .config import TinyConfig

if TYPE_CHECKING:
    from avssl.model import Model

# spellings of the specification and of `transformers.BertConfig` -> ours
SIZES = {
    **{"n_mels": "features", "d": "dim", "L": "layers", "H": "heads", "T_max": "max_tokens", "max_len": "max_tokens"},
    **{"frames_per_token": "stack", "patch": "stack", "patch_frames": "stack", "stack_frames": "stack"},
    **{"hidden_size": "dim", "num_hidden_layers": "layers", "num_attention_heads": "heads", "intermediate_size": "ff"},
    **{"hidden_act": "activation", "hidden_dropout_prob": "dropout", "max_position_embeddings": "max_tokens"},
}
COUNTED = ("C", "classes", "num_labels", "parameters", "name")  # of the whole model: the tensors say them
ACTIVATION = {"gelu_exact": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_erf": "gelu"}
POOLER = {
    "none": "cls",
    "": "cls",
    "True": "tanh_dense_of_cls",
    "False": "cls",
    "mean_pool": "mean",
    "mean_pooling": "mean",
}
SOUND = {"sample_rate": "rate", "sr": "rate", "hop_length": "hop", "fmin": "low", "fmax": "high", "db_floor": "floor"}
POSITIONS = (
    "positions.weight",
    "pos",
    "pos_embed",
    "position_embeddings.weight",
    "embeddings.position_embeddings.weight",
)
COMPUTED = {"position_ids": "positions are counted", "embeddings.position_ids": "positions are counted"}


def detect(path: Path) -> bool:
    """A safetensors file beside a JSON with our marker, or the folder that holds them."""
    file = path.with_suffix(".json") if path.is_file() else path / "tiny.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("system") == "tiny"
    except (OSError, ValueError, AttributeError):
        return False


def read(path: Path, **options: Any) -> Imported:
    """A `.pt` state dict or `.safetensors` file, or a folder with `tiny.safetensors` and `tiny.json`.

    options: sizes that neither the JSON nor the tensors say (`H`, `activation`, `layer_norm_eps`, ...), in the words of
    the specification or of `TinyConfig`; `front_end`: a mapping of its numbers. Raises CheckpointError or UsageError.
    """
    file = path / "tiny.safetensors" if path.is_dir() else path
    beside = path / "tiny.json" if path.is_dir() else path.with_suffix(".json")
    told: dict[str, Any] = {}
    if detect(path):
        told = json.loads(beside.read_text(encoding="utf-8"))
    tensors = dict(load_safetensors(file) if file.suffix == ".safetensors" else plain(load_torch(file)))
    if set(tensors) == {"state_dict"}:
        tensors = dict(tensors["state_dict"])
    for name, value in tensors.items():
        check(
            isinstance(value, Tensor),
            f"{file}: {name!r} is no tensor",
            fix="give a plain state dict",
            error=CheckpointError,
        )
    ignored = {name: COMPUTED[name] for name in list(tensors) if name in COMPUTED}
    for name in ignored:
        del tensors[name]
    for name in POSITIONS:
        if name in tensors:
            tensors["positions"] = tensors.pop(name)
    if "positions" in tensors:
        tensors["positions"] = tensors["positions"].reshape(-1, tensors["positions"].shape[-1])
    if "cls" in tensors:
        tensors["cls"] = tensors["cls"].flatten()
    front_end = options.pop("front_end", None)
    config = _sizes(tensors, {**told.get("model", {}), **options}, file)
    frontend = told.get("frontend") or _sound(front_end or {}, config)
    has_head = "head.weight" in tensors
    check(
        has_head,
        f"{file}: there is no head.weight",
        fix="is it a checkpoint of a tiny Transformer?",
        error=CheckpointError,
    )
    classes = tensors["head.weight"].shape[0]
    names = {k: k if k.startswith("head.") else f"backbone.{k}" for k in tensors}
    assets = {"targets": told["targets"]} if told.get("targets") else {}
    return Imported(
        backbone={"name": "tiny", **config},
        loss={"name": "tiny_classify", "classes": classes},
        tensors={names[k]: v for k, v in tensors.items()},
        frontend=frontend,
        ignored=ignored,
        assets=assets,
        licence=str(told.get("licence", "")),
        source=str(told.get("source", "")),
    )


def _sizes(tensors: Mapping[str, Tensor], told: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The constructor arguments: what is told, and what the shapes say; a contradiction is an error."""
    known = set(TinyConfig.__dataclass_fields__)
    out: dict[str, Any] = {}
    for key, value in told.items():
        if key in COUNTED:
            continue
        name = SIZES.get(key, key)
        if name not in known:
            raise UsageError(f"{file}: unknown size {key!r}", fix=nearest(key, known | set(SIZES)))
        out[name] = value
    out["activation"] = ACTIVATION.get(out.get("activation", "gelu"), out.get("activation", "gelu"))
    if "pooler" in told:
        out["pooler"] = POOLER.get(str(told["pooler"]), told["pooler"]) if told["pooler"] is not None else "cls"
    else:
        out["pooler"] = (
            "mean" if "cls" not in tensors else "tanh_dense_of_cls" if "pooler.dense.weight" in tensors else "cls"
        )
    try:
        dim, width = tensors["proj.weight"].shape
        layers = 1 + max((int(k.split(".")[2]) for k in tensors if k.startswith("encoder.layer.")), default=-1)
        seen: dict[str, Any] = {
            "dim": dim,
            "layers": layers,
            "ff": tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: {error} is missing", fix="is it a checkpoint of a tiny Transformer?") from None
    stem = [len(tensors[k]) for k in sorted(tensors) if k.startswith("stem.convs.")]
    if stem:
        out.setdefault("stack", 1)
        seen |= {"stem": stem, "stem_bins": width // int(out["stack"]) // stem[-1]}
        if "input_norm.running_mean" in tensors:
            seen["features"] = len(tensors["input_norm.running_mean"])
        check(
            "features" in {**out, **seen},
            f"{file}: the number of bands before the stem is not in the file",
            fix="give it: --option n_mels=64",
        )
    else:
        out.setdefault("stack", max(1, width // out["features"]) if "features" in out else 1)
        seen["features"] = width // int(out["stack"])
    seen["positions"] = "learned" if "positions" in tensors else "sine"
    if "positions" in tensors:
        seen["max_tokens"] = tensors["positions"].shape[0]
    for name, value in seen.items():
        check(
            out.setdefault(name, value) == value,
            f"{file}: {name} is said to be {out[name]}, the tensors say {value}",
            fix="correct the option or the JSON",
            error=CheckpointError,
        )
    out["input_norm"] = "input_norm.running_mean" in tensors
    check("heads" in out, f"{file}: the number of heads is not in the file", fix="give it: --option H=2")
    return out


def _sound(told: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Front-end numbers of the specification's spelling in ours. Unknown keys are errors of `SoundConfig`."""
    features = {"mfcc": "coefficients", "raw": "segment"}.get(str(told.get("kind", "mel")), "n_mels")
    out: dict[str, Any] = {features: config["features"]}
    for key, value in told.items():
        if key in ("note", "pad_mode", "window"):
            wanted = {"pad_mode": "reflect", "window": "hann_periodic"}.get(key, value)
            check(value == wanted, f"front end: {key} {value!r}", fix=f"only {wanted!r} is supported")
        elif key == "standardise":
            out |= _standardised(value)
        elif key in ("mean", "std"):
            out[key] = _numbers(value)
        elif key == "mel_norm":
            out[key] = value or "none"
        else:
            out[SOUND.get(key, key)] = value
    for key in ("low", "high", "power"):
        if key in out:
            out[key] = float(out[key] or 0.0)
    return out


OVER = {
    **dict.fromkeys(("bin", "mel", "mel_bin", "band", "feature"), "coefficient"),
    "dataset": "fixed",
    "None": "none",
}


def _standardised(told: Any) -> dict[str, Any]:
    """`standardise` as a word (or null), or a table with the scope ("over"), eps, and the numbers of a data set."""
    table = told if isinstance(told, Mapping) else {"over": told}
    over = OVER.get(str(table.get("over", "clip")), table.get("over", "clip"))
    if over in ("clip", "coefficient"):
        std = table.get("std", "population")
        check(std == "population", f"front end: std {std!r}", fix="only 'population' is supported")
        return {"standardise": over} | ({"eps": table["eps"]} if "eps" in table else {})
    return {"standardise": over} | {name: _numbers(table[name]) for name in ("mean", "std") if name in table}


def _numbers(value: Any) -> list[float]:
    return [float(v) for v in (value if isinstance(value, Sequence) else [value])]


def write(model: Model, path: Path) -> list[Path]:
    """`tiny.safetensors` and `tiny.json` in folder `path`: what `read` reads, and public BERT tools understand."""
    from avssl.files import write_json
    from avssl.model import save_tensors

    check(
        isinstance(model.backbone.config, TinyConfig),
        f"a {model.recipe['backbone']['name']} model has no tiny format",
        fix="choose another format",
    )
    check(
        model.head is not None,
        f"{model.path} has no classification head",
        fix="fine-tune it first",
        error=CheckpointError,
    )
    assert model.head is not None
    head = {f"head.{k}": v for k, v in model.head.state_dict().items()}
    check(
        set(head) == {"head.weight", "head.bias"},
        f"{model.path}: its head is no plain linear layer",
        fix="fine-tune with loss.name=tiny_classify",
        error=CheckpointError,
    )
    path.mkdir(parents=True, exist_ok=True)
    save_tensors(path / "tiny.safetensors", {**model.backbone.state_dict(), **head})
    write_json(
        path / "tiny.json",
        {
            "system": "tiny",
            "model": unstructure(model.backbone.config),
            "frontend": unstructure(model.frontend.config),
            "targets": model.codec.state() if model.codec else None,
            "licence": model.licence,
            "source": model.source,
        },
    )
    return [path / "tiny.safetensors", path / "tiny.json"]
