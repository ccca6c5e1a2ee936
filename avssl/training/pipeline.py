"""Runs of several runs: the stages of a pipeline recipe, and the folds of a k-fold protocol.

The outer directory holds ordinary run directories in `stages/NAME` (or `fold-N`) and `pipeline.json`, which says what
each was made from; `--resume` goes on at the first unfinished one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avssl.data.clip import Row
from avssl.errors import AvsslError, check
from avssl.evaluation.kfold import summary
from avssl.files import sha256, write_json
from avssl.model import WEIGHTS, Initial, read_initial
from avssl.recipe import Pipeline, Recipe, load_run
from avssl.training.directory import check_directory
from avssl.training.distributed import member_of_world
from avssl.training.run import finetune, pretrain, rows_for
from avssl.training.setup import Machine, pick_device, plan_data
from avssl.training.signals import StopRequest

STATE = "pipeline.json"


def run_pipeline(
    pipeline: Pipeline,
    data: str | Path | Sequence[Row],
    out: str | Path,
    *,
    resume: bool = False,
    machine: Machine | None = None,
    init: str | Path | Initial | None = None,
    init_format: str = "",
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the stages in order. A stage's `inputs` map "init", "from" or a dotted recipe key to an earlier stage.

    init: model that the first stage with no "init" of its own starts from. Raises what the stages raise; a finished stage
    is kept.
    """
    out = Path(out).resolve()  # stages name each other by path: another spelling is no other recipe
    check_directory(out, resume)
    recipes = _recipes(pipeline, data, out)
    machine = machine or Machine()
    reports: dict[str, Any] = {}
    with StopRequest() as stop, member_of_world(pick_device(machine.device)) as world:
        out.mkdir(parents=True, exist_ok=True)
        for stage in pipeline.stages:
            stop.check(f"before stage {stage.name}")
            folder = out / "stages" / stage.name
            inputs = {key: out / "stages" / source for key, source in stage.inputs.items()}
            print(f"== stage {stage.name} ({stage.recipe})", file=sys.stderr)
            start = inputs.get("init") or inputs.get("from")
            outside = init if start is None and not reports else None
            recipe = recipes[stage.name]
            given, own = start or outside, "" if start else init_format
            if recipe.stage == "finetune":
                report = finetune(
                    recipe, given, data, folder, source_format=own, resume=resume, machine=machine, trackers=trackers
                )
            else:
                report = pretrain(
                    recipe, data, folder, init=given, init_format=own, resume=resume, machine=machine, trackers=trackers
                )
            reports[stage.name] = {
                "recipe": stage.recipe,
                "report": report,
                "inputs": {k: {"stage": p.name, "sha256": sha256(p / WEIGHTS)} for k, p in inputs.items()},
            }
            if world.first:
                write_json(out / STATE, {"recipe": pipeline.name, "stages": reports})
    return {
        "kind": "pipeline",
        "recipe": pipeline.name,
        "stages": reports,
        "seconds": sum(r["report"].get("seconds", 0) for r in reports.values()),
    }


def _recipes(pipeline: Pipeline, data: str | Path | Sequence[Row], out: Path) -> dict[str, Recipe]:
    """The recipe of every stage. All are read before the first runs: a mistake in the last one, or labels that it would
    miss, shall not show after days."""
    names = {s.name for s in pipeline.stages}
    check(len(names) == len(pipeline.stages), f"{pipeline.name}: two stages have one name", fix="rename one")
    recipes: dict[str, Recipe] = {}
    for stage in pipeline.stages:
        overrides = [f"{k}={_toml(v)}" for k, v in stage.overrides.items()]
        for key, source in stage.inputs.items():
            check(
                source in recipes,
                f"stage {stage.name}: input {key} names {source!r}, which is no earlier stage",
                fix=f"one of {', '.join(recipes) or 'none: it is the first'}",
            )
            if key not in ("init", "from"):
                overrides.append(f"{key}={_toml(str(out / 'stages' / source))}")
        base = recipes[stage.inputs["from"]].plain() if "from" in stage.inputs else None
        try:
            recipe = load_run(stage.recipe, overrides, base)
            if recipe.data.target != "none":
                plan_data(recipe, rows_for(data, recipe))
        except AvsslError as error:
            error.message = f"stage {stage.name}: {error.message}"
            raise
        recipes[stage.name] = recipe
    return recipes


def run_folds(
    recipe: str,
    source: str | Path | Initial | None,
    data: str | Path | Sequence[Row],
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    source_format: str = "",
    resume: bool = False,
    machine: Machine | None = None,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Fine-tune once for each fold, validating on it; metrics with mean and standard deviation over the folds.

    `{fold}` in an override becomes the fold's number: what a run is given (a teacher, say) must not have seen its fold.
    """
    out = Path(out)
    check_directory(out, resume)
    initial = read_initial(source, source_format) if source is not None else None
    base = initial.tables if initial is not None else None
    machine = machine or Machine()

    def loaded_for(fold: int | str) -> Recipe:
        return load_run(recipe, [o.replace("{fold}", str(fold)) for o in overrides], base)

    loaded = loaded_for("{fold}")
    rows = rows_for(data, loaded)
    folds = sorted({r.fold for r in rows if r.fold is not None})
    check(len(folds) > 1, "--kfold: the data have no folds", fix="give a manifest with a fold column")
    reports = {}
    with StopRequest() as stop, member_of_world(pick_device(machine.device)) as world:
        for fold in folds:
            stop.check(f"before fold {fold}")
            if world.first:
                print(f"== fold {fold} of {len(folds)}", file=sys.stderr)
            reports[fold] = finetune(
                loaded_for(fold),
                initial,
                data,
                out / f"fold-{fold}",
                resume=resume,
                fold=fold,
                machine=machine,
                trackers=trackers,
            )
    numbers = {
        str(f): {k: math.nan if v is None else v for k, v in r["validation"].items()} for f, r in reports.items()
    }
    folded = {k: v for k, v in summary(numbers).items() if ".fold." not in k}  # each fold's are in per_fold
    report = {
        "kind": "kfold",
        "recipe": loaded.name,
        "folds": folded,
        "validation": {},
        "per_fold": {str(f): r["validation"] for f, r in reports.items()},
        "seconds": sum(r["seconds"] for r in reports.values()),
    }
    if world.first:
        write_json(out / "report.json", report)
    return report


def _toml(value: Any) -> str:
    """A value as `apply_override` reads it."""
    return json.dumps(value)
