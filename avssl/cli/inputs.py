"""What the commands share: the options of a model, paths to rows, and the checks that are made before torch loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from avssl.errors import CheckpointError, DataError, check

if TYPE_CHECKING:
    from avssl.data.clip import Row
    from avssl.model import Model

ModelPath = Annotated[str, Option(help="A run directory, an imported model, or a published checkpoint with --format.")]
Format = Annotated[str, Option(help="Format of a published checkpoint given as the model.")]
ReaderOptions = Annotated[
    list[str] | None,
    Option("--option", metavar="KEY=VALUE", help="What a published checkpoint does not say, e.g. heads=12."),
]
Precision = Annotated[
    str, Option(help="fp32, or bf16 or fp16: faster, and less exact by about a percent; auto: bf16 on CUDA, else fp32.")
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")]
BatchSize = Annotated[int, Option(help="Items that go through the network at once; changes no number.", min=1)]
Workers = Annotated[int | None, Option(help="Data-loading processes; default: chosen from the cores.", min=0)]
OnBad = Annotated[str, Option(help="Items that cannot be read: skip and list them, or fail.")]


def need_model(path: str | Path, what: str = "model") -> None:
    """Torch takes seconds to load: a path that does not exist is said before."""
    check(
        Path(path).exists(),
        f"{path}: no such {what}",
        error=CheckpointError,
        fix="give a run directory, or a checkpoint file with --format",
    )


def reader_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """`--option` KEY=VALUE, values as in TOML."""
    from avssl.recipe import apply_override

    options: dict[str, Any] = {}
    for text in texts or ():
        apply_override(options, text, "--option")
    return options


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
