"""doctor: is this machine ready."""

from __future__ import annotations

from dataclasses import asdict

import typer

from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say
from avssl.errors import Exit
from avssl.words import counted


def doctor(as_json: AsJson = False) -> None:
    """Look at versions, devices, decoders (each is tried), memory, disk and plugins; say how to mend what is wrong."""
    from avssl.doctor import examine

    findings = examine()
    bad = [f for f in findings if f.state == "bad"]
    if as_json:
        print_json({"ready": not bad, "findings": [asdict(f) for f in findings]})
    else:
        mark = {"ok": "ok", "missing": "-", "bad": "BAD"}
        print_table(("what", "", "found", "fix"), [(f.name, mark[f.state], f.value, f.fix) for f in findings])
    say(counted(len(bad), "problem") if bad else "ready")
    if bad:
        raise typer.Exit(Exit.GATE)
