"""What a verb is given, made ready: paths to rows, a model on its device, precision and processes of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.errors import CheckpointError, DataError, check

if TYPE_CHECKING:
    from avssl.data.clip import Row
    from avssl.model import Model


def need_model(path: str | Path, what: str = "model") -> None:
    """Torch takes seconds to load: a path that does not exist is said before."""
    check(
        Path(path).exists(),
        f"{path}: no such {what}",
        error=CheckpointError,
        fix="give a run directory, or a checkpoint file with --format",
    )


def opened(path: str | Path, format: str, device: str = "cpu", options: Mapping[str, Any] | None = None) -> Model:
    """The model on its device."""
    from avssl.model import open_model
    from avssl.training.setup import pick_device

    return open_model(path, format, pick_device(device), **(options or {}))


def settled(precision: str, device: str) -> str:
    """A precision with "auto" decided for this device, so that results can say what they were computed in."""
    check(precision in ("fp32", "bf16", "fp16", "auto"), f"--precision {precision}", fix="fp32, bf16, fp16 or auto")
    if precision != "auto":
        return precision
    from avssl.training.setup import pick_device

    return "bf16" if pick_device(device).type == "cuda" else "fp32"


def worker_count(workers: int | None, items: int) -> int:
    """Processes that decode: none for a handful of files, where starting them costs more than they save."""
    from avssl.data.workers import default_workers

    return workers if workers is not None else default_workers() if items >= 32 else 0


def rows_of(paths: Sequence[str | Path], modalities: Any = None) -> list[Row]:
    """The rows of several folders, manifests and files; ids that occur in two of them get the path in front."""
    from avssl.data.manifest import read_rows

    found = [(str(path), read_rows(path, modalities=modalities)) for path in paths]
    if len(found) == 1:
        return found[0][1]
    ids: dict[str, int] = {}
    for _, rows in found:
        for row in rows:
            ids[row.id] = ids.get(row.id, 0) + 1
    out, seen = [], set()
    for path, rows in found:
        for row in rows:
            row = row if ids[row.id] == 1 else replace(row, id=f"{path.rstrip('/')}/{row.id}")
            if row.id in seen:
                raise DataError(f"{path} is given twice", fix="name each path once")
            seen.add(row.id)
            out.append(row)
    return out
