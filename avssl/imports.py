"""Published checkpoints in and out: what a format's reader gives, and how it becomes a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from avssl.errors import CheckpointError, check
from avssl.loss import Loss


@dataclass(frozen=True)
class Imported:
    """A foreign checkpoint in our terms. `tensors` is a strict state dict of the Loss that `backbone` and `loss` build:
    keys start with "backbone." or with a part of the loss (decoder, teacher, head)."""

    backbone: Mapping[str, Any]  # {"name": ..., config keys}
    loss: Mapping[str, Any]  # {"name": ..., config keys}; the objective that the file was trained with
    tensors: Mapping[str, Tensor]
    frontend: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)  # foreign key -> why it is not needed
    assets: Mapping[str, Any] = field(default_factory=dict)  # class list, tokenizer, ... (JSON-able, or file paths)
    licence: str = ""
    source: str = ""


def import_checkpoint(path: str | Path, format: str = "", **options: Any) -> Imported:
    """Read a published checkpoint.

    format: a name from `avssl import --list`; "" = the one whose detector recognises the file. options: what the file
    does not say (head counts, ...), passed to the reader. Raises CheckpointError or UsageError.
    """
    from avssl.entries import resolve
    from avssl.registry import load, registry

    check(
        Path(path).exists(),
        f"{path}: no such file or folder",
        fix="give the path of a checkpoint",
        error=CheckpointError,
    )
    check(
        Path(path).is_file() or Path(path).is_dir(),
        f"{path}: is no regular file (a pipe, socket or device)",
        fix="copy its content to a file",
        error=CheckpointError,
    )
    if not format:
        found = [e.name for e in registry().all("format") if e.detect and resolve(e.detect)(Path(path))]
        if len(found) != 1:
            seen = f"it may be {' or '.join(found)}" if found else "no registered format recognises it"
            raise CheckpointError(f"{path}: {seen}", fix="name the format: --format NAME; see `avssl import --list`")
        format = found[0]
    return load("format", format, "read")(Path(path), **options)


def build(imported: Imported) -> Loss:
    """The Loss (with its backbone) of an imported checkpoint, every tensor loaded strictly, on the CPU."""
    from avssl.model import build_backbone, build_loss

    tables = {"backbone": imported.backbone, "loss": imported.loss}
    loss = build_loss(tables, build_backbone(tables))
    load_strictly(loss, imported.tensors, "imported checkpoint")
    return loss


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict; a missing, unexpected or misshapen tensor raises CheckpointError and names itself."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if own[k].shape != tensors[k].shape
    ]
    for what, names in (("misses", missing), ("has unknown", extra), ("has other shapes:", sorted(wrong))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{where} {what} {', '.join(names[:3])}{more}", fix="is it a checkpoint of this system and size?"
            )
    module.load_state_dict(dict(tensors))


__all__ = ["Imported", "build", "import_checkpoint", "load_strictly"]
