"""report: one page to look at and listen to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from avssl.cli.inputs import Device, Workers
from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say
from avssl.errors import CheckpointError, check
from avssl.words import counted


def report(
    run: Annotated[Path, Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[Path | None, Option(help="HTML file to write; default: RUN/report.html.")] = None,
    compare: Annotated[
        list[Path] | None, Option(help="Another run to show beside it; may be given several times.")
    ] = None,
    data: Annotated[
        str | None,
        Option(help="Clips to look at; default: the run's own validation and test clips, else its training clips."),
    ] = None,
    clips: Annotated[
        int, Option(help="At most so many clips, evenly over the classes; 0: curves and tables only.", min=0)
    ] = 500,
    device: Device = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: curves, retrieval to see and hear, a map, reconstructions, the recipe."""
    for path in (run, *(compare or ())):
        check(
            path.is_dir(), f"{path}: no such run", fix="give a run directory, what --out named", error=CheckpointError
        )
    from avssl.progress import shown
    from avssl.report import write_report
    from avssl.training.setup import pick_device

    with shown():
        made = write_report(
            run,
            out,
            compare=compare or (),
            data=data,
            clips=clips,
            device=str(pick_device(device)),
            workers=workers,
            progress=lambda text: say(f"report: {text}"),
        )
    names = list(dict.fromkeys(k for n in made.runs.values() for k in n))
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "bytes": made.bytes,
                "clips": made.clips,
                "seconds": round(made.seconds, 2),
                "runs": made.runs,
                "notes": made.notes,
            }
        )
    elif names:
        numbers = made.runs.values()
        print_table(("metric", *made.runs), [(k, *(f"{n[k]:.4g}" if k in n else "" for n in numbers)) for k in names])
    for note in made.notes:
        say(f"report: {note}")
    size = f"{made.bytes / 1e6:.1f} MB, {counted(made.clips, 'clip')}, {made.seconds:.1f} s"
    say(f"{made.path} ({size}); open it in a browser")
