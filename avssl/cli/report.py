"""report: one page to look at and listen to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say


def report(
    run: Annotated[Path, Argument(help="A run directory.")],
    out: Annotated[Path | None, Option(help="HTML file to write; default: RUN/report.html.")] = None,
    compare: Annotated[
        list[Path] | None, Option(help="Another run to show beside it; may be given several times.")
    ] = None,
    data: Annotated[
        str | None,
        Option(help="Clips to look at; default: the run's own validation and test clips, else its training clips."),
    ] = None,
    clips: Annotated[
        int, Option(help="At most so many clips, evenly over the classes; 0: curves and tables only.")
    ] = 500,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    workers: Annotated[int | None, Option(help="Data-loading processes; default: chosen from the cores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: curves, retrieval to see and hear, a map, reconstructions, the recipe."""
    from avssl.report import write_report
    from avssl.training.setup import pick_device

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
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "bytes": made.bytes,
                "clips": made.clips,
                "seconds": round(made.seconds, 2),
                "runs": made.runs,
            }
        )
    else:
        print_table(
            ("metric", *made.runs),
            [
                (name, *(f"{n[name]:.4g}" if name in n else "" for n in made.runs.values()))
                for name in dict.fromkeys(k for n in made.runs.values() for k in n)
            ],
        )
    say(f"{made.path} ({made.bytes / 1e6:.1f} MB, {made.clips} clips, {made.seconds:.1f} s); open it in a browser")
