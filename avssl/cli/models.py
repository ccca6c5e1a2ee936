"""import: published checkpoints to model directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from avssl.cli.inputs import ReaderOptions, reader_options
from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say
from avssl.errors import CheckpointError, check


def import_(
    checkpoint: Annotated[
        Path | None, Argument(metavar="FILE", help="A published checkpoint: a file or folder.")
    ] = None,
    out: Annotated[Path | None, Option(help="Model directory to write; must not exist.")] = None,
    format: Annotated[str, Option(help="A format from --list; default: recognised from the file.")] = "",
    option: ReaderOptions = None,
    list_formats: Annotated[bool, Option("--list", help="List the formats.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a published checkpoint into a model directory, strictly: every tensor is used or named with a reason."""
    from avssl.registry import listing, registry

    if list_formats:
        if as_json:
            print_json(listing("format"))
        else:
            rows = [
                (f.name, "in" * bool(f.read) + ("/" if f.read and f.write else "") + "out" * bool(f.write), f.summary)
                for f in registry().all("format")
            ]
            print_table(("format", "goes", "summary"), rows)
        return
    check(
        checkpoint is not None and out is not None,
        "import needs a checkpoint and --out",
        fix="avssl import FILE --out MODEL",
    )
    assert checkpoint is not None and out is not None
    check(not out.exists() or not any(out.iterdir()), f"--out {out} exists already", fix="choose another directory")
    check(checkpoint.exists(), f"{checkpoint}: no such file or folder", fix="give the path of a checkpoint",
          error=CheckpointError)  # fmt: skip
    options = reader_options(option)
    from avssl.imports import import_checkpoint
    from avssl.model_import import write_imported

    imported = import_checkpoint(checkpoint, format, **options)
    report = write_imported(imported, out)
    if as_json:
        print_json(report)
    else:
        print_table(("what", "value"), list(report.items()))
    say(f"the model is {out}")
