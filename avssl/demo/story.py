"""Generate clips, pretrain, evaluate against the untrained model, report: `avssl demo`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.errors import PluginError, UsageError, check
from avssl.files import write_json

if TYPE_CHECKING:
    from avssl.data.clip import Row
    from avssl.model import Model
    from avssl.recipe import Recipe

TAG = "demo"  # of the recipe that a plugin offers for this
TRAIN, TEST = 100, 25  # clips of each class
UPDATES = 450  # about two minutes on two cores
LEVELS = ("chance", "untrained", "trained")


def run_demo(
    out: Path,
    *,
    overrides: Sequence[str] = (),
    train: int = TRAIN,
    test: int = TEST,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything below `out`: clips/, run/ (a model with report.html) and demo.json, whose content is returned.

    train, test: generated clips of each class. "metrics": name -> {"chance", "untrained", "trained"}.
    """
    from avssl.data.manifest import read_rows
    from avssl.data.workers import default_workers
    from avssl.demo.clips import CLASSES, make_clips
    from avssl.model import open_model
    from avssl.report import write_report
    from avssl.training.run import pretrain
    from avssl.training.setup import Machine, pick_device

    _check_folder(out)
    began = time.monotonic()
    recipe = demo_recipe([f"train.seed={seed}", f"train.updates={UPDATES}", *overrides])
    where = pick_device(device)
    say(f"making {(train + test) * len(CLASSES)} clips of things that one can see and hear: {', '.join(CLASSES)}")
    make_clips(out / "clips", train, test, seed)
    rows = read_rows(out / "clips")
    made = time.monotonic()
    say(f"pretraining {recipe.name} without any label")
    workers = default_workers() if workers is None else workers
    with cores_left_by(workers):
        pretrain(recipe, rows, out / "run", machine=Machine(device=device, workers=workers))
    trained = time.monotonic()
    say("evaluating it beside the same model before training")
    model = open_model(out / "run", device=where)
    results = {
        "untrained": evaluate(untrained(recipe, out / "run").to(where), rows, workers),
        "trained": evaluate(model, rows, workers, out / "run" / "evaluations"),
    }
    evaluated = time.monotonic()
    page = write_report(out / "run", device=str(where), workers=workers)
    chance = results["trained"]["chance"]
    metrics = {
        name: {"chance": chance.get(name), "untrained": results["untrained"]["metrics"].get(name), "trained": value}
        for name, value in results["trained"]["metrics"].items()
        if name in shown_metrics(model)
    }
    summary = {
        "recipe": recipe.name,
        "classes": list(CLASSES),
        "clips": {"train": train * len(CLASSES), "test": test * len(CLASSES)},
        "metrics": metrics,
        "seconds": {
            "clips": round(made - began, 1),
            "pretraining": round(trained - made, 1),
            "evaluation": round(evaluated - trained, 1),
            "report": round(page.seconds, 1),
            "all": round(time.monotonic() - began, 1),
        },
        "run": str(out / "run"),
        "report": str(page.path),
    }
    write_json(out / "demo.json", summary)
    return summary


def _check_folder(out: Path) -> None:
    check(
        not out.exists() or (out.is_dir() and not any(out.iterdir())),
        f"--out {out} exists already",
        fix="remove it, or choose another folder with --out",
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}", fix="choose a folder that can be written") from None


def demo_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The registered recipe that carries the tag "demo"; several: the first by name."""
    from avssl.recipe import load_run
    from avssl.registry import registry

    found = [r.name for r in registry().all("recipe") if TAG in r.tags]
    if not found:
        broken = [f"{p.name}: {p.error}" for p in registry().plugins if p.error]
        raise PluginError(
            f"no registered recipe has the tag {TAG!r}{'; ' + '; '.join(broken) if broken else ''}",
            fix="install or switch on a plugin that brings one; see `avssl plugins`",
        )
    return load_run(found[0], overrides)


def untrained(recipe: Recipe, folder: Path) -> Model:
    """The model of a recipe before its first update: the weights that the run began with."""
    from avssl.model import Model, build_backbone, build_frontend
    from avssl.training.step import seed_everything

    tables = recipe.plain()
    seed_everything(recipe.train.seed, 0x1717)
    frontend = build_frontend(tables, folder)
    return Model(build_backbone(tables).eval(), frontend.eval(), None, None, tables, folder)


@contextmanager
def cores_left_by(workers: int) -> Iterator[None]:
    """Compute on the cores that the decoders leave: a network this small loses more by waiting for a thread whose core
    is busy than it gains by sharing the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate(model: Model, rows: Sequence[Row], workers: int, folder: Path | None = None) -> dict[str, Any]:
    """{"metrics", "chance"} of retrieval and a linear probe by the registered protocols; reports go to `folder`."""
    from avssl.evaluation.labels import splits_of
    from avssl.registry import load

    splits = splits_of(rows)
    out: dict[str, Any] = {"metrics": {}, "chance": {}}
    for task in ("retrieval", "probe"):
        config = load("evaluation", task, "config")(workers=workers)
        report = load("evaluation", task)(model, splits, config)
        out["metrics"] |= report.metrics
        out["chance"] |= report.chance
        if folder is not None:
            folder.mkdir(exist_ok=True)
            report.write(folder / f"{task}.json")
    return out


def shown_metrics(model: Model) -> list[str]:
    """The numbers that tell the story: does sound find its picture, and what can be read off the vectors."""
    from itertools import permutations

    found = [
        f"retrieval.{a}->{b}.{metric}"
        for metric in ("class.r@1", "instance.r@10")
        for a, b in permutations(sorted(model.backbone.modalities), 2)
    ]
    return found + [f"probe.{stream}.accuracy" for stream in model.backbone.widths()]
