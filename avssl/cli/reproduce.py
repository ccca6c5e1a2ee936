"""reproduce: a recipe's stated numbers against ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from avssl.cli.inputs import Workers, need_model
from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table
from avssl.cli.train import Data, Device, Out, Precision, RecipeName, Resume
from avssl.errors import GateError


def reproduce(
    recipe: RecipeName,
    data: Data,
    out: Out,
    source: Annotated[str | None, Option("--from", help="The pretrained model of a fine-tuning recipe.")] = None,
    margin: Annotated[float, Option(help="Relative shortfall that still counts as reproduced.")] = 0.05,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe, evaluate it, and print expected against got; exit code 5 when a number falls short."""
    from avssl.data.manifest import check_exists
    from avssl.recipe import read_recipe

    read_recipe(recipe)
    check_exists(data)
    if source is not None:
        need_model(source)
    from avssl.reproduce import reproduce as run
    from avssl.training.setup import Machine

    machine = Machine(device=device, precision=precision, workers=workers)
    result = run(recipe, data, Path(out), source=source, resume=resume, machine=machine, margin=margin)
    if as_json:
        print_json(result)
    else:
        print_table(
            ("metric", "expected", "got", ""),
            [
                (
                    k,
                    v["expected"],
                    f"{v['got']:.4f}" if v["got"] is not None else "not measured",
                    "ok" if v["ok"] else "BELOW",
                )
                for k, v in result["metrics"].items()
            ],
        )
    short = [k for k, v in result["metrics"].items() if not v["ok"]]
    if short:
        raise GateError(
            f"{', '.join(short)} below what {recipe} states", fix=f"compare {out}/report.json with the recipe's source"
        )
