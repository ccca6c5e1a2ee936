"""The verbs: pretrain and fine-tune, from a recipe and data to a finished run directory."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from avssl.card import write_card
from avssl.data.bad import BadFiles, BadItem
from avssl.data.clip import Row
from avssl.data.manifest import read_rows, write_rows
from avssl.data.workers import default_workers
from avssl.errors import AvsslError, CheckpointError, DataError, check
from avssl.files import write_json
from avssl.model import CHECKSUMS, RECIPE, Initial, read_initial, read_tables, save_model
from avssl.recipe import Recipe, load_run, recipe_from, show
from avssl.registry import registry
from avssl.training import checkpoint
from avssl.training.determinism import determinism
from avssl.training.directory import make_directory
from avssl.training.distributed import LOST, PeerLost, World, member_of_world
from avssl.training.lock import RunLock
from avssl.training.loop import Run, memory
from avssl.training.meter import read_journal
from avssl.training.setup import (
    DataPlan,
    Machine,
    autocast_dtype,
    build_run,
    check_best,
    environment,
    needed_modalities,
    pick_device,
    plan_data,
    write_run_head,
)
from avssl.training.signals import StopRequest
from avssl.training.validation import validator
from avssl.training.weights import Averages, full_state
from avssl.words import none_of

MANIFEST, DATA = "manifest.parquet", "data.json"
MANY = 10_000  # files: looking at them takes minutes
CLASSES = {"index", "multi_hot"}  # targets whose outputs are classes
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def pretrain(
    recipe: str | Path | Recipe,
    data: str | Path | Sequence[Row],
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    init: str | Path | Initial | None = None,
    init_format: str = "",
    machine: Machine | None = None,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a recipe on data into the run directory `out`; the run's report.

    recipe: a name, a .toml file or a Recipe. data: whatever `avssl.data.manifest.read_rows` reads, or rows. init: a model
    to start from. Raises Stopped when a signal ended it (resume with resume=True), AvsslError otherwise.
    """
    loaded = load_run(recipe, overrides)
    initial = read_initial(init, init_format) if init is not None else None
    origin = _origin(data, None, initial)
    return _execute(loaded, data, Path(out), resume, initial, origin, machine or Machine(), trackers)


def finetune(
    recipe: str | Path | Recipe,
    source: str | Path | Initial | None,
    data: str | Path | Sequence[Row],
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    source_format: str = "",
    resume: bool = False,
    fold: int | None = None,
    machine: Machine | None = None,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Supervised training of a pretrained model (`source`; None: from scratch) into `out`; the run's report.

    Backbone and frontend keys that the recipe leaves open are the source's. fold: the items of that fold validate, the
    others train.
    """
    initial = read_initial(source, source_format) if source is not None else None
    loaded = load_run(recipe, overrides, initial.tables if initial is not None else None)
    origin = _origin(data, fold, initial)
    if fold is not None:
        data = rows_of_fold(data, loaded, fold)
    return _execute(loaded, data, Path(out), resume, initial, origin, machine or Machine(), trackers)


def rows_of_fold(data: str | Path | Sequence[Row], recipe: Recipe, fold: int) -> list[Row]:
    """The rows with split "val" for one fold and "train" for the others. Raises UsageError without such a fold."""
    rows = rows_for(data, recipe)
    folds = sorted({r.fold for r in rows if r.fold is not None})
    check(fold in folds, f"--fold {fold}: the data have the folds {folds}", fix="give a manifest with a fold column")
    return [dataclasses.replace(r, split="val" if r.fold == fold else "train") for r in rows if r.fold is not None]


def rows_for(data: str | Path | Sequence[Row], recipe: Recipe) -> list[Row]:
    """The rows of what --data names, with the modalities that a recipe needs."""
    if isinstance(data, (str, Path)):
        return read_rows(str(data), modalities=needed_modalities(recipe))
    return list(data)


def _execute(
    recipe: Recipe,
    data: str | Path | Sequence[Row],
    out: Path,
    resume: bool,
    init: Initial | None,
    origin: Mapping[str, Any],
    machine: Machine,
    trackers: Sequence[str],
) -> dict[str, Any]:
    device = pick_device(machine.device)
    autocast_dtype(machine.precision or recipe.train.precision, device)  # what cannot be is said before data are read
    with StopRequest() as stop, member_of_world(device) as world:
        with world.first_works():
            if world.first:
                make_directory(out, resume)
        if resume and (out / CHECKSUMS).is_file():  # the last file of a finished run
            return _finished(recipe, out, world, origin)
        try:
            with RunLock(out) if world.first else nullcontext(), determinism(machine.deterministic):
                return _train(recipe, data, out, resume, init, origin, machine, device, world, trackers, stop)
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise CheckpointError(
                f"cannot write to {out}: {error.strerror}", fix="free some space, then resume with --resume"
            ) from None


def _finished(recipe: Recipe, out: Path, world: World, origin: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_changes(recipe, out)
    _refuse_other_origin(origin, out)
    if world.first:
        print(f"{out} is finished already", file=sys.stderr)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def _train(
    recipe: Recipe,
    data: str | Path | Sequence[Row],
    out: Path,
    resume: bool,
    init: Initial | None,
    origin: Mapping[str, Any],
    machine: Machine,
    device: Any,
    world: World,
    trackers: Sequence[str],
    stop: StopRequest,
) -> dict[str, Any]:
    plan = _plan(recipe, data, out, resume, machine, world, init, origin)
    check_best(recipe, plan)
    if init is not None and init.targets and plan.codec and list(plan.codec.classes) != list(init.targets["classes"]):
        init = init.without_head()
        if world.first:
            print(f"note: {init.path} was fine-tuned on other classes: the head starts afresh", file=sys.stderr)
    run = build_run(recipe, plan, out, world, device, machine, init, validator(plan.validation))
    if world.first:
        from avssl.training.trackers import open_trackers

        _same_recipe(run, out)
        run.trackers = open_trackers(trackers, run)
    saved = _newest(out / "checkpoints", world) if resume else None
    if saved is not None:
        run.load(saved)
    began = time.monotonic()
    run.train(stop)
    return _finish(run, plan, time.monotonic() - began)


def _newest(folder: Path, world: World) -> checkpoint.Saved | None:
    """The checkpoint to go on from. The first process chooses: all must read the same one."""
    saved, notes = None, list[str]()
    with world.first_works():  # it reads and verifies files that may be large
        if world.first:
            saved, notes = checkpoint.newest(folder)
    for note in notes:
        print(
            f"note: {note}; using {'an older checkpoint' if saved else 'none: the run starts again'}", file=sys.stderr
        )
    name = world.broadcast(checkpoint.name_of(saved.updates) if saved else "")
    return checkpoint.read(folder / name) if name and not world.first else saved


def _plan(
    recipe: Recipe,
    data: str | Path | Sequence[Row],
    out: Path,
    resume: bool,
    machine: Machine,
    world: World,
    init: Initial | None,
    origin: Mapping[str, Any],
) -> DataPlan:
    """The rows of the run, frozen in its manifest when it first starts: a resumed run sees what the first one saw."""
    manifest = out / MANIFEST
    with world.first_works():  # looking at every file of a large folder takes its time
        if world.first and resume and manifest.is_file():
            _refuse_other_origin(origin, out)
        elif world.first:
            _freeze(recipe, data, out, machine, init)
            write_json(out / DATA, origin)
    if not world.first and not manifest.is_file():  # what was wrong with the data is the first one's to say
        raise PeerLost(f"process {world.rank} of {world.ranks} lost process 0: it froze no data", fix=LOST)
    rows = read_rows(str(manifest), modalities=None)
    plan, lacking = plan_data(recipe, rows, _classes_of(init, recipe, rows))
    if world.first and lacking:
        BadFiles(out / "bad_files.csv").add(lacking)
        print(
            f"note: {len(lacking)} of {len(rows)} items lack a modality or a label and are left out; see {out / 'bad_files.csv'}",
            file=sys.stderr,
        )
    return plan


def _freeze(
    recipe: Recipe, data: str | Path | Sequence[Row], out: Path, machine: Machine, init: Initial | None
) -> None:
    """Look at the data and write the manifest of a new run."""
    given = rows_for(data, recipe)
    rows, unusable = look(given, machine)
    (out / "bad_files.csv").unlink(missing_ok=True)  # of an attempt that never began
    rejected = [b for b in unusable if b.what != "missing"]
    if rejected and recipe.data.on_bad == "fail":
        raise DataError(rejected[0].line, fix="data.on_bad=skip goes on without it")
    BadFiles(out / "bad_files.csv", recipe.data.max_bad, len(given)).add(unusable)
    check(
        bool(rows),
        f"{none_of(len(unusable), 'item')} can be used",
        fix=f"see {out / 'bad_files.csv'}",
        error=DataError,
    )
    plan_data(recipe, rows, _classes_of(init, recipe, rows))  # what is wrong with them is said before they are frozen
    write_rows(rows, out / MANIFEST)


def _origin(data: str | Path | Sequence[Row], fold: int | None, init: Initial | None) -> dict[str, Any]:
    """What a run begins with: its data, and the model that it starts from."""
    if isinstance(data, (str, Path)):
        name = os.path.abspath(data)
    else:
        told = [(r.id, sorted(r.parts.items()), r.labels, r.start, r.end, r.split, r.fold) for r in data]
        name = f"{len(data)} rows ({hashlib.sha256(repr(told).encode('utf-8', 'surrogatepass')).hexdigest()[:12]})"
    start = None if init is None else {"path": os.path.abspath(init.path), "sha256": init.digest()}
    return {"data": name if fold is None else f"{name}, fold {fold}", "init": start}


def _refuse_other_origin(now: Mapping[str, Any], out: Path) -> None:
    """A run goes on with the rows and from the model that it began with: others are a mistake, not a change."""
    if not (out / DATA).is_file():
        return
    began = json.loads((out / DATA).read_text(encoding="utf-8"))
    check(
        began["data"] == now["data"]
        or re.fullmatch(r"\d+ rows", began["data"]) is not None,  # all that 0.1 said of rows
        f"{out} was started on {began['data']}, --data is {now['data']}",
        fix="resume with the same data, or start a new run with --init",
    )
    old, new = began.get("init", now["init"]), now["init"]  # 0.1 did not write it down
    names = [model["path"] if model else "scratch" for model in (old, new)]
    check(
        (old and old["sha256"]) == (new and new["sha256"]),
        f"{out} was started from {names[0]}, "
        + ("which has changed since" if names[0] == names[1] else f"not from {names[1]}"),
        fix="resume with the same model, or start a new run",
    )


def look(rows: list[Row], machine: Machine) -> tuple[list[Row], list[BadItem]]:
    """What the headers of files that no scan has seen yet say: what they carry, how long they are, what is unreadable."""
    from avssl.data.scan import scan

    inline = {e.name for e in registry().all("modality") if e.inline}

    def unseen(row: Row) -> bool:
        files = [s for m, s in row.parts.items() if m not in inline]
        shared = len({str(f) for f in files}) < len(files)  # one container: does it really carry both?
        return bool(files) and (row.duration is None or shared) and "codec" not in row.extra

    fresh = [r for r in rows if unseen(r)]
    if not fresh:
        return rows, []
    if len(fresh) > MANY:
        print(
            f"note: looking at {len(fresh)} files; `avssl data scan` writes a manifest that saves this", file=sys.stderr
        )
    workers = default_workers() if machine.workers is None else machine.workers
    seen = scan(fresh, depth="headers", workers=workers, timeout=machine.timeout)
    usable = {r.id: r for r in seen.rows}
    names = {r.id for r in fresh}
    return [usable.get(r.id, r) for r in rows if r.id not in names or r.id in usable], seen.bad


def _classes_of(init: Initial | None, recipe: Recipe, rows: Sequence[Row]) -> list[str] | None:
    """The class list of a fine-tuned model to start from, where it covers the data: its head keeps its order."""
    if init is None or init.targets is None or not any(k.startswith("head.") for k in init.tensors):
        return None
    kinds, classes = {init.targets["kind"], recipe.data.target}, list(init.targets["classes"])
    if kinds <= CLASSES:
        return classes if {label for row in rows for label in row.labels} <= set(classes) else None
    return classes if len(kinds) == 1 else None


def _same_recipe(run: Run, out: Path) -> None:
    """Store the recipe; on resume, refuse another one (it would make a run that no recipe describes)."""
    if not (out / RECIPE).is_file():
        write_run_head(run)
        return
    _refuse_changes(run.recipe, out)


def _refuse_changes(recipe: Recipe, out: Path) -> None:
    import tomllib

    old, new = read_tables(out), tomllib.loads(show(recipe))
    if not new["loss"].get("classes"):  # open in a recipe, filled in from the labels
        new["loss"]["classes"] = old["loss"].get("classes")
    old.pop("avssl_version", None)  # the model files may be written already: they add this, and move files into assets/
    old = _filled(old)
    moved = {k for k, v in old.get("frontend", {}).items() if isinstance(v, str) and v.startswith("assets/")}
    for tables in (old, new):
        tables["frontend"] = {k: v for k, v in tables.get("frontend", {}).items() if k not in moved}
    changed = sorted(_differences("", old, new))
    check(
        not changed,
        f"{out} was started with another recipe: {', '.join(changed[:4])}",
        fix="resume with the same recipe and --set options, or start a new run with --init",
    )


def _filled(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables of a run with the keys that the release which began it did not have, at their defaults."""
    import tomllib

    try:
        recipe = recipe_from(tables)
    except AvsslError:  # it had keys that are gone: compared as they are
        return tables
    assert isinstance(recipe, Recipe)
    return tomllib.loads(show(recipe))


def _differences(prefix: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d for k in a.keys() | b.keys() for d in _differences(f"{prefix}.{k}" if prefix else k, a.get(k), b.get(k))
        ]
    return [] if a == b else [f"{prefix} {a!r} -> {b!r}"]


def _finish(run: Run, plan: DataPlan, seconds: float) -> dict[str, Any]:
    """The model files and the report."""
    state = run.averages.result(full_state(run.loss, run.world))
    report: dict[str, Any] = {}
    with run.world.first_works():
        if run.world.first:
            report = _write_model(run, plan, state, seconds)
    return run.world.broadcast(report)


def _write_model(run: Run, plan: DataPlan, state: dict[str, Any], seconds: float) -> dict[str, Any]:
    best, deployed = checkpoint.best_name(run.folder / "checkpoints"), run.done
    if run.recipe.train.best and best:
        chosen = checkpoint.read(run.folder / "checkpoints" / best)
        averages = Averages(run.averages.epochs, run.averages.decay)
        averages.load(chosen.tensors, chosen.meta["averages"])
        state, deployed = averages.result(chosen.tensors["loss"]), chosen.updates
    bad = BadFiles(run.folder / "bad_files.csv")
    for other in sorted(run.folder.glob("bad_files-*.csv")):  # of the other processes
        bad.add(BadFiles(other).items.values())
        other.unlink()
    records = read_journal(run.folder)
    train = [r for r in records if r["kind"] == "train"]
    validation = [r for r in records if r["kind"] == "validation" and r["update"] <= deployed]
    report = {
        "kind": run.recipe.stage,
        "recipe": run.recipe.name,
        "backbone": run.recipe.backbone.name,
        "loss": run.recipe.loss.name,
        "updates": run.done,
        "skipped_updates": run.skipped,
        "items": len(plan.train),
        "validation_items": len(plan.validation),
        "parameters": sum(p.numel() for p in run.loss.backbone.parameters()),
        "final": {k: train[-1][k] for k in ("loss", "terms", "metrics")} if train else {},
        "validation": validation[-1]["validation"] if validation else {},
        "best": {run.recipe.train.best: run.best} if run.best is not None else {},
        "bad_items": len(bad),
        "seconds": round(seconds, 1),
        "memory_gib": round(memory(run.device), 2),
        "environment": environment(run.device),
    }
    write_json(run.folder / "report.json", report)
    save_model(run.folder, run.loss, run.frontend, run.recipe.plain(), run.loader.items.codec, state)
    write_card(run.folder)
    return report
