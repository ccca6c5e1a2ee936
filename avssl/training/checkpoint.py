"""Training states: a directory is complete or absent, verified when read, never a pickle."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError
from avssl.files import os_error, sha256, sync, write_text
from avssl.safeload import load_safetensors
from avssl.training.distributed import whole

FORMAT = 1  # of the directory; a newer one is refused by number
OLDER, UPGRADE = "delete it; an older one will be used", "upgrade avssl"
_NAME = re.compile(r"step-(\d{8})$")


@dataclass(frozen=True)
class Saved:
    """A training state in memory: named groups of tensors, and JSON-able numbers."""

    updates: int
    tensors: Mapping[str, Mapping[str, Tensor]]  # file stem -> name -> tensor
    meta: Mapping[str, Any]


def save(folder: Path, state: Saved, keep_last: int = 2, best: bool = False) -> Path:
    """Write `folder/step-N`: files, checksums, fsync, then one rename. Older steps beyond `keep_last` go afterwards.

    best: also mark it as the best so far, which is kept whatever its age. Raises CheckpointError when the disk is full
    or refuses; what was saved before stays as it was.
    """
    target = folder / name_of(state.updates)
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        _write(temporary, state, best)
        if target.exists():  # only a damaged one, or one from beyond the checkpoint that was resumed: out of the way
            os.replace(target, temporary.with_suffix(".old.tmp"))
        os.replace(temporary, target)
        sync(folder)
        if best:
            mark_best(folder, target.name)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        previous = [p.name for p in steps(folder)]
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        kept = f"the last good one is {previous[-1]}" if previous else "there is no earlier one"
        raise CheckpointError(
            f"cannot save {target}: {why}; {kept}", fix="free some space, then resume with --resume"
        ) from None
    past = [p for p in steps(folder) if p.name <= target.name]  # later ones were damaged when this run was resumed
    keep = {p.name for p in past[-max(1, keep_last) :]} | {best_name(folder)}
    for old in [*steps(folder), *folder.glob(".step-*.tmp")]:
        if old.name not in keep:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _write(temporary: Path, state: Saved, best: bool) -> None:
    from safetensors.torch import save_file

    temporary.mkdir()
    for stem, tensors in state.tensors.items():
        path = temporary / f"{stem}.safetensors"
        try:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, str(path))
        except Exception as error:
            raise os_error(error) or OSError(errno.EIO, str(error)) from error
    meta = {"format": FORMAT, "updates": state.updates, "is_best": best, **state.meta}
    (temporary / "state.json").write_text(json.dumps(meta), encoding="utf-8")
    names = sorted(p.name for p in temporary.iterdir())
    (temporary / "checksums.json").write_text(json.dumps({n: sha256(temporary / n) for n in names}), encoding="utf-8")
    for path in temporary.iterdir():
        sync(path)
    sync(temporary)


def name_of(updates: int) -> str:
    """Directory name of the checkpoint after that many updates."""
    return f"step-{updates:08d}"


def steps(folder: Path) -> list[Path]:
    """Complete checkpoint directories, oldest first."""
    return (
        sorted((p for p in folder.glob("step-*") if _NAME.search(p.name)), key=lambda p: p.name)
        if folder.is_dir()
        else []
    )


def mark_best(folder: Path, name: str) -> None:
    """Say which checkpoint is the best so far, atomically."""
    write_text(folder / "best", name)


def best_name(folder: Path) -> str:
    """Directory name of the best checkpoint, or ""."""
    try:
        return (folder / "best").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def read(path: Path) -> Saved:
    """A checkpoint directory, every file verified. Raises CheckpointError naming the damage or the newer format."""
    try:
        sums = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
        meta = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: incomplete or damaged ({error})", fix=OLDER) from None
    if not isinstance(sums, dict) or not isinstance(meta, dict) or "state.json" not in sums:
        raise CheckpointError(
            f"{path}: incomplete or damaged (checksums.json and state.json do not belong together)", fix=OLDER
        )
    if isinstance(meta.get("format"), int) and meta["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {meta['format']}, this avssl reads up to {FORMAT}", fix=UPGRADE)
    for name, wanted in sums.items():
        if Path(name).name != name or not (path / name).is_file() or sha256(path / name) != wanted:
            raise CheckpointError(f"{path / name} is damaged: its checksum differs", fix=OLDER)
    names = [n for n in sums if n.endswith(".safetensors")]
    return Saved(meta["updates"], {n.removesuffix(".safetensors"): load_safetensors(path / n) for n in names}, meta)


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that reads well (None without one), and a note for each newer one that did not."""
    notes: list[str] = []
    for path in reversed(steps(folder)):
        try:
            return read(path), notes
        except CheckpointError as error:
            if error.fix == UPGRADE:
                raise
            notes.append(error.message)
    return None, notes


# -- optimisers -----------------------------------------------------------------------------------------------------
def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state by "slot/parameter name" (groups carry `names`)."""
    out = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for slot, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    out[f"{slot}/{name}"] = whole(value) if isinstance(value, Tensor) else torch.tensor(value)
    return out


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put a saved state back; parameters without one (never updated) keep none."""
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        slots.setdefault(name, {})[slot] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in slots:  # the step counter of the unfused kernels lives on the CPU
                optimizer.state[parameter] = {
                    slot: v.clone()
                    if v.ndim == 0 and not group.get("fused")
                    else _like(parameter, v.to(parameter.device, copy=True))
                    for slot, v in slots[name].items()
                }


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, sharded as its parameter is."""
    if not hasattr(parameter, "full_tensor") or value.ndim == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
