"""bench: what a recipe costs here."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from avssl.cli.inputs import Workers
from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say
from avssl.cli.train import Device, Overrides, Precision, RecipeName


def bench(
    recipe: RecipeName,
    data: Annotated[str | None, Option(help="Real data; default: generated files.")] = None,
    overrides: Overrides = None,
    against: Annotated[str | None, Option(help="Another recipe, timed in alternation.")] = None,
    steps: Annotated[int, Option(help="Timed updates; medians are shown.", min=1)] = 5,
    device: Device = "auto",
    precision: Precision = "",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Time a recipe on this machine: update, forward, frontend, loading; memory, FLOPs and MFU."""
    from avssl.data.manifest import check_exists
    from avssl.recipe import load_run

    loaded = [load_run(name, overrides or []) for name in (recipe, against) if name]
    if data is not None:
        check_exists(data)
    from avssl.bench import bench as measure
    from avssl.training.setup import Machine

    machine = Machine(device=device, precision=precision, workers=workers)
    report = measure(loaded[0], data, machine, steps=steps, against=loaded[1] if against else None)
    if as_json:
        print_json(report)
        return
    columns = [k for k in ("recipe", "against") if k in report]
    rows = [(k, *[report[c][k] for c in columns]) for k in report["recipe"] if k != "loading"]
    rows += [(f"loading {k}", *[report[c]["loading"][k] for c in columns]) for k in report["recipe"]["loading"]]
    print_table(("what", *columns), rows)
    say(
        f"{report['device']}, {report['threads']} threads, matrix products reach {report['matmul_gflops']} GFLOP/s here"
    )
    if "ratio" in report:
        say("against / recipe: " + ", ".join(f"{k} {v}" for k, v in report["ratio"].items()))
