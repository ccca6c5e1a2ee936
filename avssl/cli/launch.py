"""launch: several processes of one command on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option


def launch(
    command: Annotated[list[str], Argument(metavar="-- COMMAND...", help="An avssl command with its options.")],
    processes: Annotated[
        int, Option("-n", "--processes", help="Processes on this machine, usually one for each GPU.")
    ] = 1,
    torchrun: Annotated[
        list[str] | None, Option("--torchrun", metavar="FLAG", help="A further flag of torchrun, e.g. --nnodes=2.")
    ] = None,
    grace: Annotated[int, Option(help="Seconds to finish a step and save after a signal.")] = 600,
) -> None:
    """Run a command in several processes; signals reach all of them, and its exit code comes back."""
    from avssl.launch import launch as run

    raise typer.Exit(run(command, processes, torchrun or (), grace))
