"""pretrain, finetune."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from avssl.cli.inputs import ReaderOptions, Workers, need_model, reader_options
from avssl.cli.listing import AsJson, complete
from avssl.cli.output import print_json, say
from avssl.errors import UsageError, check
from avssl.words import counted

if TYPE_CHECKING:
    from avssl.data.clip import Row
    from avssl.model import Initial

RecipeName = Annotated[
    str,
    Argument(
        metavar="RECIPE",
        help="A name from `avssl recipes`, or a .toml file.",
        autocompletion=lambda: complete("recipe"),
    ),
]
Data = Annotated[str, Option(help="A folder of media, a manifest, or a known layout.")]
Out = Annotated[Path, Option(help="Run directory; must not exist, unless --resume.")]
OutUnlessDry = Annotated[
    Path | None, Option(help="Run directory; must not exist, unless --resume. A --dry-run needs none.")
]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. optim.lr=1e-4.")
]
Resume = Annotated[bool, Option("--resume", help="Go on with the run in --out (or start it).")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str, Option(help="auto, fp32, bf16 or fp16; default: the recipe's.")]
Deterministic = Annotated[
    bool,
    Option("--deterministic", help="Only algorithms that give the same bits again: for exact resume on CUDA."),
]
DryRun = Annotated[
    bool, Option("--dry-run", help="Build everything, run one step, print shapes, memory and time, stop.")
]
TrackerNames = Annotated[list[str] | None, Option("--tracker", help="Also log to wandb or mlflow.")]


def pretrain(
    recipe: RecipeName,
    data: Data,
    out: OutUnlessDry = None,
    overrides: Overrides = None,
    init: Annotated[
        str | None, Option(help="Start from this model: a run, an imported model, or a checkpoint file.")
    ] = None,
    format: Annotated[str, Option(help="Format of a published checkpoint given to --init.")] = "",
    option: ReaderOptions = None,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "",
    workers: Workers = None,
    deterministic: Deterministic = False,
    dry_run: DryRun = False,
    tracker: TrackerNames = None,
    as_json: AsJson = False,
) -> None:
    """Pretrain a backbone with a self-supervised loss."""
    from avssl.recipe import Pipeline, load_recipe, load_run
    from avssl.training.trackers import check_trackers

    check_trackers(tracker or ())
    loaded = (load_run if dry_run else load_recipe)(recipe, overrides or [])
    _check_verb(recipe, loaded)
    _check_places(data, out, resume, init, dry_run)
    from avssl.training.setup import Machine

    machine = Machine(device=device, precision=precision, workers=workers, deterministic=deterministic)
    initial = _initial(init, format, option)
    if dry_run or out is None:
        return _dry_run(loaded, data, initial, machine, as_json)
    if isinstance(loaded, Pipeline):
        from avssl.training.pipeline import run_pipeline

        report = run_pipeline(loaded, data, out, resume=resume, machine=machine, init=initial, trackers=tracker or ())
    else:
        from avssl.training.run import pretrain as run

        report = run(loaded, data, out, resume=resume, init=initial, machine=machine, trackers=tracker or ())
    _summary(report, out, as_json)


def finetune(
    recipe: RecipeName,
    data: Data,
    out: OutUnlessDry = None,
    source: Annotated[
        str | None, Option("--from", help="The pretrained model; without it, training starts from scratch.")
    ] = None,
    format: Annotated[str, Option(help="Format of a published checkpoint given to --from.")] = "",
    option: ReaderOptions = None,
    overrides: Overrides = None,
    fold: Annotated[int | None, Option(help="Validate on this fold of the data, train on the others.")] = None,
    kfold: Annotated[
        bool,
        Option(
            "--kfold",
            help="One run for each fold, and their mean and standard deviation; {fold} in --set is its number.",
        ),
    ] = False,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "",
    workers: Workers = None,
    deterministic: Deterministic = False,
    dry_run: DryRun = False,
    tracker: TrackerNames = None,
    as_json: AsJson = False,
) -> None:
    """Train a pretrained model on labels: end to end, or a probe with optim.freeze=backbone."""
    from avssl.recipe import load_run, read_recipe
    from avssl.training.trackers import check_trackers

    check(not kfold or fold is None, "--kfold makes a run for every fold, --fold one", fix="give one of them")
    check_trackers(tracker or ())
    read_recipe(recipe)  # its open keys are the model's, which torch must read; that it exists can be said before
    _check_places(data, out, resume, source, dry_run)
    from avssl.training.setup import Machine

    machine = Machine(device=device, precision=precision, workers=workers, deterministic=deterministic)
    initial = _initial(source, format, option)
    if dry_run or out is None:
        from avssl.training.run import rows_of_fold

        check(not kfold, "--kfold is a run for each fold", fix="try one of them dry: --fold 1")
        loaded = load_run(recipe, overrides or [], initial.tables if initial is not None else None)
        rows = data if fold is None else rows_of_fold(data, loaded, fold)
        return _dry_run(loaded, rows, initial, machine, as_json)
    shared: dict[str, Any] = {
        "overrides": overrides or [],
        "resume": resume,
        "machine": machine,
        "trackers": tracker or (),
    }
    if kfold:
        from avssl.training.pipeline import run_folds

        report = run_folds(recipe, initial, data, out, **shared)
    else:
        from avssl.training.run import finetune as run

        report = run(recipe, initial, data, out, fold=fold, **shared)
    _summary(report, out, as_json)


def _check_places(data: str, out: Path | None, resume: bool, model: str | None, dry: bool) -> None:
    """What a typing mistake breaks, before torch is loaded. A dry run needs no place, and leaves one that is named alone."""
    from avssl.data.manifest import check_exists
    from avssl.training.directory import check_directory

    check(dry or out is not None, "--out is missing", fix="name a directory for the run, or use --dry-run")
    if out is not None and not dry:
        check_directory(out, resume)
    check_exists(data)
    if model is not None:
        need_model(model)


def _initial(model: str | None, format: str, option: list[str] | None) -> Initial | None:
    """The opened model of --init or --from."""
    from avssl.model import read_initial

    check(
        model is not None or not (format or option),
        "--format and --option describe a model, and none is given",
        fix="leave them out",
    )
    return read_initial(model, format, **reader_options(option)) if model is not None else None


def _summary(report: dict[str, Any], out: Path, as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first one speaks
        return
    if as_json:
        print_json(report)
    from avssl.progress import clock

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
        say(f"{counted(last['bad_items'], 'item')} could not be used: {model / 'bad_files.csv'}")
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


def _dry_run(recipe: Any, data: str | list[Row], init: Initial | None, machine: Any, as_json: bool) -> None:
    from avssl.cli.output import print_table
    from avssl.training.dryrun import dry_run

    report = dry_run(recipe, data, init, machine)
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


def _check_verb(name: str, recipe: Any) -> None:
    """A recipe that trains on labels is no pretraining."""
    from avssl.recipe import Recipe
    from avssl.registry import registry

    if isinstance(recipe, Recipe) and registry().get("loss", recipe.loss.name).supervised:
        loss = recipe.loss.name
        raise UsageError(f"{name} trains on labels: its loss is {loss!r}", fix=f"use `avssl finetune {name}`")
