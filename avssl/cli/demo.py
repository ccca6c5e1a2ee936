"""demo: the whole story in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say


def demo(
    out: Annotated[Path, Option(help="Folder for the clips, the model and the report; must not exist.")] = Path(
        "avssl-demo"
    ),
    overrides: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. train.epochs=5.")
    ] = None,
    clips: Annotated[int, Option(help="Training clips of each class; a quarter as many are held back.")] = 100,
    seed: Annotated[int, Option(help="Of the clips and of the training.")] = 0,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    workers: Annotated[int | None, Option(help="Data-loading processes; default: chosen from the cores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Generate videos with sound, pretrain on them, evaluate, write the report: a few minutes on a laptop's CPU."""
    from avssl.demo import run_demo
    from avssl.report.markup import duration

    made = run_demo(
        out,
        overrides=overrides or [],
        train=clips,
        test=max(1, round(clips / 4)),
        seed=seed,
        device=device,
        workers=workers,
        say=say,
    )
    if as_json:
        print_json(made)
    else:
        rows = [
            (name, *("" if v is None else f"{v:.3f}" for v in values.values()))
            for name, values in made["metrics"].items()
        ]
        print_table(("held-back clips", "chance", "untrained", "trained"), rows)
    say("")
    say(f"done in {duration(made['seconds']['all'])}. Look and listen: open {made['report']}")
    say("")
    say("Now with your own videos:")
    say(f"  avssl pretrain {made['recipe']} --data FOLDER --out runs/mine")
    say("  avssl report runs/mine")
    say("  avssl embed FOLDER --model runs/mine --out vectors.parquet")
    say("  avssl search vectors.parquet FOLDER/ONE.mp4")
