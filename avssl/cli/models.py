"""import: published checkpoints to model directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say
from avssl.errors import check


def import_(
    checkpoint: Annotated[Path | None, Argument(help="A published checkpoint: a file or folder.")] = None,
    out: Annotated[Path | None, Option(help="Model directory to write; must not exist.")] = None,
    format: Annotated[str, Option(help="A format from --list; default: recognised from the file.")] = "",
    option: Annotated[
        list[str] | None, Option("--option", metavar="KEY=VALUE", help="What the file does not say, e.g. heads=12.")
    ] = None,
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
    from avssl.imports import import_checkpoint
    from avssl.model_import import write_imported
    from avssl.recipe import apply_override

    options: dict = {}
    for text in option or []:
        apply_override(options, text)
    imported = import_checkpoint(checkpoint, format, **options)
    report = write_imported(imported, out)
    if as_json:
        print_json(report)
    else:
        print_table(("what", "value"), list(report.items()))
    say(f"the model is {out}")
