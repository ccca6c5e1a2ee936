"""What the commands share: the options of a model and of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from typer import Option

from avssl.inputs import need_model, opened, rows_of, settled, worker_count

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


def reader_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """`--option` KEY=VALUE, values as in TOML."""
    from avssl.recipe import apply_override

    options: dict[str, Any] = {}
    for text in texts or ():
        apply_override(options, text, "--option")
    return options


__all__ = [
    "BatchSize",
    "Device",
    "Format",
    "ModelPath",
    "OnBad",
    "Precision",
    "ReaderOptions",
    "Workers",
    "need_model",
    "opened",
    "reader_options",
    "rows_of",
    "settled",
    "worker_count",
]
