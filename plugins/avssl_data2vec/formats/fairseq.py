"""The fairseq `.pt` format: which model a file holds, and its config."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl.safeload import load_torch, plain
from avssl_data2vec.formats import defaults
from avssl_data2vec.formats.names import whole
from avssl_data2vec.frontends import tokens

_MARKS = (b"data2vec_audio", b"data2vec_text", b"data2vec_multi")  # also in what was fine-tuned from them


def detect(path: Path) -> bool:
    """Whether a file is a fairseq data2vec checkpoint: looks into its index, reads no tensor."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        index = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        content = archive.read(index) if index else b""
    return b"optimizer_history" in content and any(mark in content for mark in _MARKS)


def read(path: Path, *, modality: str = "", pad: int = 1, mask: int | None = None, tokenizer: str = "") -> Imported:
    """A fairseq checkpoint of data2vec 1 (audio, text) or 2.0, pretrained or fine-tuned.

    modality: "audio", "vision" or "text", for a 2.0 file that holds several. pad, mask: token ids of a text model's
    dictionary; mask defaults to the last id. tokenizer: a folder with encoder.json, vocab.bpe and dict.txt, or a
    tokenizer.json; by default what lies beside the file. Raises CheckpointError for any other file.
    """
    with whole(path):
        found = read_data(load_torch(path), path, modality=modality, pad=pad, mask=mask)
    if "vocabulary" in found.backbone:
        frontend = {**found.frontend, **tokens.imported(tokenizer, path.parent, found.backbone)}
        return replace(found, frontend=frontend)
    check(not tokenizer, f"{path} holds no text model: it has no tokenizer", fix="leave out --option tokenizer")
    return found


def read_data(data: Any, path: Path, *, modality: str = "", pad: int = 1, mask: int | None = None) -> Imported:
    """The content of the file at `path`, as `read` reads it."""
    from avssl_data2vec.formats import fairseq1, fairseq2, fairseq_tasks

    check(
        isinstance(data, Mapping) and isinstance(data.get("model"), Mapping),
        f"{path} is no fairseq checkpoint",
        fix="give a .pt file with the entries cfg and model",
        error=CheckpointError,
    )
    data = {**data, "cfg": _config(data, path)}
    cfg = data["cfg"]["model"]
    name = cfg.get("_name", "")
    if name == "data2vec_audio":
        return fairseq1.read_audio(data, cfg, str(path))
    heads = {k.split(".")[1] for k in data["model"] if k.startswith("classification_heads.")}
    if name == "data2vec_text_classification" or (name == "data2vec_text" and len(heads) == 1):
        return fairseq_tasks.read_sentences(data, str(path), pad=pad, mask=mask)
    if name == "data2vec_text":
        return fairseq1.read_text(data, cfg, str(path), pad=pad, mask=mask)
    if name == "data2vec_multi":
        return fairseq2.read(data, cfg, str(path), modality=modality, pad=pad, mask=mask)
    fine_tuned = {
        "wav2vec_ctc": fairseq_tasks.read_ctc,
        "audio_classification": fairseq_tasks.read_tags,
        "mae_image_classification": fairseq_tasks.read_images,
    }
    if name in fine_tuned:
        return fine_tuned[name](data, str(path))
    known = ("data2vec_audio", "data2vec_text", "data2vec_multi", "data2vec_text_classification", *fine_tuned)
    raise CheckpointError(f"{path} holds a {name or 'nameless'} model", fix=f"known are {', '.join(known)}")


def _resolved(value: Any, root: Mapping[str, Any]) -> Any:
    """Strings like "${optimization.max_update}" as the value at that place; left alone where there is none."""
    if isinstance(value, dict):
        return {k: _resolved(v, root) for k, v in value.items()}
    if not (isinstance(value, str) and value.startswith("${") and value.endswith("}")):
        return value
    found: Any = root
    for key in value[2:-1].split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return value if found is None or isinstance(found, (dict, str)) else found


def _config(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`cfg` as plain dictionaries; old files have the command line's `args` instead."""
    cfg = plain(data.get("cfg"))
    if not cfg:
        args = plain(data.get("args"))
        check(
            isinstance(args, dict) and bool(args),
            f"{path} has neither cfg nor args",
            fix="is the file complete?",
            error=CheckpointError,
        )
        cfg = {"model": {"_name": args.get("arch", ""), **args}, "task": args}
    cfg["model"] = defaults.full(cfg["model"], defaults.MODELS.get(cfg["model"].get("_name", ""), {}))
    return _resolved(cfg, defaults.full(cfg, defaults.ROOT))
