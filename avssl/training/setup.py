"""From a recipe, data and a directory to a Run."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avssl import __version__
from avssl.backbone import Backbone
from avssl.data.bad import BadFiles, BadItem
from avssl.data.clip import Limits, Row
from avssl.data.items import TrainingItems, path_of, usable
from avssl.data.loader import TrainingLoader
from avssl.data.sampler import Sampler, ShuffledSampler
from avssl.data.split import HELD_OUT, VALIDATION, few_rows
from avssl.data.targets import Codec, fit_codec
from avssl.data.workers import default_workers
from avssl.entries import resolve
from avssl.errors import DataError, UsageError, check
from avssl.files import write_json, write_text
from avssl.loss import Loss
from avssl.model import RECIPE, Initial, build_frontend
from avssl.recipe import Component, Recipe, show
from avssl.registry import load, registry
from avssl.training.distributed import World
from avssl.training.loop import Run
from avssl.training.optim import build_optimizer, schedule
from avssl.training.step import Stepper, seed_everything
from avssl.training.weights import Averages, shard
from avssl.words import counted, none_of

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Machine:
    """What changes between machines and never in a recipe."""

    device: str = "auto"
    precision: str = ""  # "" = the recipe's
    workers: int | None = None  # None = chosen from the cores
    timeout: float = 120.0  # seconds that one item may take to decode
    deterministic: bool = False  # only algorithms that give the same bits again: exact resume on CUDA

    def __post_init__(self) -> None:
        check(
            self.precision in ("", *PRECISIONS),
            f"--precision {self.precision!r} is none",
            fix=f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}",
        )


@dataclass(frozen=True)
class DataPlan:
    """The rows of a run after filtering, and how their labels become targets."""

    train: list[Row]
    validation: list[Row]
    codec: Codec | None


def pick_device(name: str) -> torch.device:
    """ "auto" = CUDA where there is one. Raises UsageError for a device that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is no device", fix="cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        check(
            (device.index or 0) < count,
            f"--device {name}: this machine has {count} CUDA devices",
            fix="--device cpu; see `avssl doctor`",
        )
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, count))
        torch.cuda.set_device(device)
    elif device.type == "mps":
        check(
            torch.backends.mps.is_available(),
            "--device mps: this machine has none",
            fix="--device cpu; see `avssl doctor`",
        )
    else:
        check(device.type == "cpu", f"--device {name} is not supported", fix="cpu, cuda or mps")
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of a precision on a device; None = float32 throughout."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    check(precision != "fp16" or device.type != "cpu", "fp16 needs a GPU", fix="--precision bf16")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def plan_data(recipe: Recipe, rows: Sequence[Row], classes: Sequence[str] | None = None) -> tuple[DataPlan, list]:
    """Split, filter by what the backbone and loss need, and fit the codec; also the items that lack a modality."""
    cfg = recipe.data
    splits = {r.split for r in rows}
    name = cfg.split or ("train" if "train" in splits else "")
    if cfg.split:
        check(
            cfg.split in splits,
            f"no row has the split {cfg.split!r}",
            fix=f"the splits are {sorted(splits)}",
            error=DataError,
        )
    train = [r for r in rows if r.split == name] if name else [r for r in rows if r.split not in HELD_OUT]
    validation = [r for r in rows if r.split in VALIDATION and name not in VALIDATION]
    needed = needed_modalities(recipe)
    check(
        bool(train),
        "there is nothing to train on",
        fix="give rows of split 'train', or without a split",
        error=DataError,
    )
    train, lacking = usable(train, needed)
    if cfg.target != "none":
        unlabelled = [r for r in train if not r.labels]
        check(
            not unlabelled,
            f"{unlabelled[0].id if unlabelled else ''}: no label ({len(unlabelled)} of {len(train)} rows have none)",
            fix="label them, or leave them out of the manifest",
            error=DataError,
        )
    train = train[: cfg.limit] if cfg.limit else train
    if cfg.per_class is not None:
        train = few_rows(train, cfg.per_class, seed=recipe.train.seed)
        check(bool(train), "data.per_class chooses by label, and no item has one", fix="label them", error=DataError)
    if validation:
        validation, unusable = usable(validation, needed)
        lacking += unusable
    if validation and cfg.target != "none":
        unlabelled = [r for r in validation if not r.labels]
        lacking += [BadItem(r.id, path_of(r), "missing", "has no label to validate with") for r in unlabelled]
        validation = [r for r in validation if r.labels]
        check(bool(validation), f"{none_of(len(unlabelled), 'validation item')} has a label",
              fix="label them, or leave their split out", error=DataError)  # fmt: skip
    codec = fit_codec(train, cfg.target, classes)
    if codec is not None:
        for row in validation:  # a label that training never saw is an error now, not after an epoch
            codec.encode(row)
    return DataPlan(train, validation, codec), lacking


def needed_modalities(recipe: Recipe) -> frozenset[str]:
    """Streams that every training item must have: what the loss names, else what the backbone cannot do without."""
    backbone = registry().get("backbone", recipe.backbone.name)
    loss = registry().get("loss", recipe.loss.name)
    if loss.modalities:
        return loss.modalities
    streams = frozenset(getattr(recipe.loss.config, "streams", ()) or ()) & backbone.modalities
    if streams:
        return streams
    return (backbone.modalities - backbone.optional) or backbone.modalities


def build_run(
    recipe: Recipe,
    plan: DataPlan,
    folder: Path,
    world: World,
    device: torch.device,
    machine: Machine,
    init: Initial | None = None,
    validator: Callable[[Run], Callable[[int], Mapping[str, float]]] | None = None,
) -> Run:
    """Everything built and wired; nothing is trained or saved yet. The same on every process."""
    cfg = recipe.train
    recipe = with_classes(recipe, plan.codec)
    seed_everything(cfg.seed, 0x1717)
    frontend = build_frontend(recipe.plain(), folder)
    backbone: Backbone = load("backbone", recipe.backbone.name)(recipe.backbone.config)
    check(
        cfg.init == "weights" or init is not None,
        f"train.init = {cfg.init!r} needs a model to start from",
        fix="give it with --init or --from",
    )
    if init is not None:
        init = init.averaged() if cfg.init == "average" else init
        init.into_backbone(backbone, recipe.backbone.name)
        changed = [f"backbone.{k} {old!r} -> {new!r}" for k, (old, new) in init.changed(backbone).items()]
        if changed and world.first:
            print(f"note: the recipe differs from {init.path}: {', '.join(changed)}", file=sys.stderr)
    loss: Loss = load("loss", recipe.loss.name)(backbone, recipe.loss.config)
    if init is not None:
        misshapen = [k for k in init.into_rest(loss) if k in init.tensors]
        if misshapen and world.first:
            more = f" and {len(misshapen) - 3} more" if len(misshapen) > 3 else ""
            print(
                f"note: not loaded, being of other shapes in {init.path}: {', '.join(misshapen[:3])}{more}",
                file=sys.stderr,
            )
    codec = dataclasses.replace(plan.codec, exclusive=loss.exclusive) if plan.codec is not None else None
    loss.for_training(codec)
    loss.to(device)
    frontend.to(device)
    batch = fitted_batch(recipe, len(plan.train), world)
    per_rank = batch // world.ranks
    micro = min(cfg.micro_batch or per_rank, per_rank)
    sampler = build_sampler(recipe, plan.train, batch)
    limits = Limits(max_seconds=recipe.data.max_seconds, max_pixels=recipe.data.max_pixels)
    items = TrainingItems(plan.train, frontend, codec, needed_modalities(recipe), cfg.seed, limits, recipe.data.on_bad)
    bad = BadFiles(
        folder / ("bad_files.csv" if world.first else f"bad_files-{world.rank}.csv"),
        recipe.data.max_bad,
        len(plan.train) + len(plan.validation),
    )
    workers = default_workers() if machine.workers is None else machine.workers
    loader = TrainingLoader(items, sampler, bad, workers, micro, world.rank, world.ranks, machine.timeout)
    per_epoch = len(sampler)
    total = cfg.updates if cfg.updates is not None else max(1, round((cfg.epochs or 0) * per_epoch))
    first, _ = cfg.weight_average or (1, 1)
    if cfg.weight_average and first > total // per_epoch and world.first:
        ends = counted(total // per_epoch, "whole epoch")
        print(f"note: train.weight_average begins with epoch {first}, the run ends after {ends}: the last weights are "
              "deployed", file=sys.stderr)  # fmt: skip
    if cfg.checkpoint_activations:
        checkpoint_blocks(backbone)
    if cfg.shard and world.ranks > 1:
        shard(loss)
    if cfg.compile:
        for block in backbone.blocks:
            block.compile()
    precision = machine.precision or cfg.precision
    dtype = autocast_dtype(precision, device)
    factor = schedule(recipe.schedule, total, per_epoch)
    scaler = torch.amp.GradScaler(device.type) if dtype is torch.float16 else None
    stepper = Stepper(loss, frontend, device, world, cfg.seed, dtype, cfg.negatives, scaler)
    run = Run(
        recipe=recipe,
        folder=folder,
        loss=loss,
        frontend=frontend,
        loader=loader,
        optimizer=build_optimizer(loss, recipe.optim),
        rate=lambda update: recipe.optim.lr * factor(update),
        stepper=stepper,
        world=world,
        device=device,
        total=total,
        per_epoch=per_epoch,
        batch=batch,
        averages=Averages(cfg.weight_average, cfg.ema),
    )
    if validator is not None and plan.validation:
        run.validate = validator(run)
    return run


def check_best(recipe: Recipe, plan: DataPlan) -> None:
    """Raises UsageError when the recipe chooses by a validation that will not take place."""
    check(
        not recipe.train.best or bool(plan.validation),
        f"train.best = {recipe.train.best!r} chooses by validation, and no item validates",
        fix="give rows of split 'val', or --set train.best=''",
    )


def with_classes(recipe: Recipe, codec: Codec | None) -> Recipe:
    """The recipe with `loss.classes` filled in from the labels, where it is open."""
    config = recipe.loss.config
    if codec is None or not hasattr(config, "classes"):
        return recipe
    check(
        config.classes in (0, codec.size),
        f"loss.classes is {config.classes}, the labels have {codec.size} classes",
        fix="leave loss.classes at 0",
        error=DataError,
    )
    config = dataclasses.replace(config, classes=codec.size)
    return dataclasses.replace(recipe, loss=Component(name=recipe.loss.name, config=config))


def fitted_batch(recipe: Recipe, items: int, world: World) -> int:
    """Items per update: the recipe's, or what a smaller data set has (said aloud), a multiple of the processes."""
    size = recipe.data.batch_size
    check(
        items >= world.ranks,
        f"{counted(items, 'item')} cannot be shared by {world.ranks} processes",
        fix="use fewer processes",
        error=DataError,
    )
    if items < size:
        size = items - items % world.ranks
        if world.first:
            import sys

            print(
                f"note: only {counted(items, 'item')}: batches of {size} instead of {recipe.data.batch_size}",
                file=sys.stderr,
            )
    check(
        size % world.ranks == 0,
        f"data.batch_size {size} is not a multiple of the {world.ranks} processes",
        fix=f"--set data.batch_size={size // world.ranks * world.ranks or world.ranks}",
    )
    return size


def build_sampler(recipe: Recipe, rows: list[Row], batch: int) -> Sampler:
    """The loss's own sampler where its entry brings one, else shuffled or class-balanced."""
    entry = registry().get("loss", recipe.loss.name)
    if entry.sampler:
        return resolve(entry.sampler)(rows, batch, recipe.train.seed)
    return ShuffledSampler(rows, batch, recipe.train.seed, recipe.data.epoch_items, recipe.data.balance)


def checkpoint_blocks(backbone: Backbone) -> None:
    """Recompute each block in the backward pass instead of keeping its activations."""
    from torch.utils.checkpoint import checkpoint

    for block in backbone.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def write_run_head(run: Run) -> None:
    """What a run directory holds from its first second: the resolved recipe and the machine."""
    write_text(run.folder / RECIPE, show(run.recipe))
    write_json(run.folder / "environment.json", environment(run.device))


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware."""
    import importlib.metadata

    import psutil

    packages = ("torch", "torchaudio", "torchvision", "av", "soundfile", "numpy")
    return {
        "avssl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {p: importlib.metadata.version(p) for p in packages},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
