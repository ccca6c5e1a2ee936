"""pretrain, finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from avssl.cli.listing import AsJson, complete
from avssl.cli.output import print_json, say
from avssl.errors import UsageError, check

RecipeName = Annotated[
    str, Argument(help="A name from `avssl recipes`, or a .toml file.", autocompletion=lambda: complete("recipe"))
]
Data = Annotated[str, Option(help="A folder of media, a manifest, or a known layout.")]
Out = Annotated[Path, Option(help="Run directory; must not exist, unless --resume.")]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. optim.lr=1e-4.")
]
Resume = Annotated[bool, Option("--resume", help="Go on with the run in --out (or start it).")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str, Option(help="auto, fp32, bf16 or fp16; default: the recipe's.")]
Workers = Annotated[int | None, Option(help="Data-loading processes; default: chosen from the cores.")]
DryRun = Annotated[
    bool, Option("--dry-run", help="Build everything, run one step, print shapes, memory and time, stop.")
]
TrackerNames = Annotated[list[str] | None, Option("--tracker", help="Also log to wandb or mlflow.")]


def pretrain(
    recipe: RecipeName,
    data: Data,
    out: Out,
    overrides: Overrides = None,
    init: Annotated[
        str | None, Option(help="Start from this model: a run, an imported model, or a checkpoint file.")
    ] = None,
    format: Annotated[str, Option(help="Format of a published checkpoint given to --init.")] = "",
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "",
    workers: Workers = None,
    dry_run: DryRun = False,
    tracker: TrackerNames = None,
    as_json: AsJson = False,
) -> None:
    """Pretrain a backbone with a self-supervised loss."""
    from avssl.recipe import Pipeline, load_recipe
    from avssl.training.setup import Machine

    machine = Machine(device=device, precision=precision, workers=workers)
    loaded = load_recipe(recipe, overrides or [])
    _check_verb(recipe, loaded, supervised=False)
    if dry_run:
        check(not isinstance(loaded, Pipeline), f"{recipe} is a pipeline", fix="dry-run its stages one by one")
        return _dry_run(loaded, data, init, format, machine, as_json)
    if isinstance(loaded, Pipeline):
        from avssl.training.pipeline import run_pipeline

        report = run_pipeline(loaded, data, out, resume=resume, machine=machine, init=init, init_format=format)
    else:
        from avssl.training.run import pretrain as run

        report = run(
            loaded, data, out, resume=resume, init=init, init_format=format, machine=machine, trackers=tracker or ()
        )
    _summary(report, out, as_json)


def finetune(
    recipe: RecipeName,
    data: Data,
    out: Out,
    source: Annotated[
        str | None, Option("--from", help="The pretrained model; without it, training starts from scratch.")
    ] = None,
    format: Annotated[str, Option(help="Format of a published checkpoint given to --from.")] = "",
    overrides: Overrides = None,
    fold: Annotated[int | None, Option(help="Validate on this fold of the data, train on the others.")] = None,
    kfold: Annotated[
        bool, Option("--kfold", help="One run for each fold, and their mean and standard deviation; {fold} in --set is its number.")
    ] = False,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "",
    workers: Workers = None,
    tracker: TrackerNames = None,
    as_json: AsJson = False,
) -> None:
    """Train a pretrained model on labels: end to end, or a probe with optim.freeze=backbone."""
    from avssl.training.setup import Machine

    machine = Machine(device=device, precision=precision, workers=workers)
    if kfold:
        from avssl.training.pipeline import run_folds

        report = run_folds(
            recipe, source, data, out, overrides=overrides or [], source_format=format, resume=resume, machine=machine
        )
    else:
        from avssl.training.run import finetune as run

        report = run(
            recipe,
            source,
            data,
            out,
            overrides=overrides or [],
            source_format=format,
            resume=resume,
            fold=fold,
            machine=machine,
            trackers=tracker or (),
        )
    _summary(report, out, as_json)


def _summary(report: dict[str, Any], out: Path, as_json: bool) -> None:
    if not report:  # not the first process of several
        return
    if as_json:
        print_json(report)
    from avssl.training.progress import clock

    last, model, what = _result(report, out)
    final = last.get("final", {})
    numbers = {
        **final.get("terms", {}),
        **final.get("metrics", {}),
        **last.get("validation", {}),
        **last.get("folds", {}),
    }
    say(
        f"done in {clock(report.get('seconds', 0))}: "
        + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items() if v is not None)
    )
    if last.get("bad_items"):
        say(f"{last['bad_items']} items could not be used: {model / 'bad_files.csv'}")
    supervised = last.get("kind") in ("finetune", "kfold")
    use = f"`avssl {'predict' if supervised else 'embed'} FILES --model {model}`"
    say(f"{what} is {model}; next: `avssl report {model}`, `avssl evaluate --model {model} --task ...`, {use}")


def _result(report: dict[str, Any], out: Path) -> tuple[dict[str, Any], Path, str]:
    """(the report that has the numbers, a directory that is a model, what that is called): of runs of several runs, the
    last stage, or the first fold."""
    if report.get("kind") == "pipeline":
        name = list(report["stages"])[-1]
        return report["stages"][name]["report"], out / "stages" / name, "the model of the last stage"
    if report.get("kind") == "kfold":
        return report, out / f"fold-{next(iter(report['per_fold']))}", "the model of the first fold"
    return report, out, "the model"


def _dry_run(recipe: Any, data: str, init: str | None, format: str, machine: Any, as_json: bool) -> None:
    from avssl.cli.output import print_table
    from avssl.training.dryrun import dry_run

    report = dry_run(recipe, data, init, format, machine)
    if as_json:
        print_json(report)
    else:
        print_table(("what", "value"), [(k.replace("_", " "), _shown(v)) for k, v in report.items()])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _check_verb(name: str, recipe: Any, supervised: bool) -> None:
    """A pretraining recipe is no fine-tuning, and the other way round."""
    from avssl.recipe import Recipe
    from avssl.registry import registry

    if not isinstance(recipe, Recipe) or registry().get("loss", recipe.loss.name).supervised == supervised:
        return
    verb, other = ("pretrains", "pretrain") if supervised else ("trains on labels", "finetune")
    raise UsageError(f"{name} {verb}: its loss is {recipe.loss.name!r}", fix=f"use `avssl {other} {name}`")
