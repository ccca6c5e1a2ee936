"""debug: look into what a run kept when it went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say

debug_app = typer.Typer(help="Look into what a run kept when it went wrong.", no_args_is_help=True)


@debug_app.callback()
def debug() -> None:
    """Look into what a run kept when it went wrong."""


@debug_app.command("replay")
def replay(
    folder: Annotated[
        Path,
        Argument(
            metavar="FOLDER", help="RUN/debug/update-N, which a run writes when a loss or gradient is not finite."
        ),
    ],
    rank: Annotated[int, Option(help="The batch of this process, when there were several.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a failing update again on the CPU: its terms, and which parameters and clips are not finite."""
    from avssl.training.replay import replay as run

    result = run(folder, rank)
    if as_json:
        print_json(result)
        return
    rows = [(f"term {k}", v) for k, v in result["terms"].items()]
    rows += [
        ("clips", ", ".join(result["clips"])),
        ("clips not finite alone", ", ".join(result["clips_not_finite_alone"]) or "none"),
        ("gradients not finite", ", ".join(result["gradients_not_finite"]) or "none"),
    ]
    print_table(("what", "value"), rows, title=f"update {result['update']}")
    say("it is reproduced" if result["reproduced"] else "it is not reproduced: every number is finite here")
