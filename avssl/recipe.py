"""One frozen tree = one run. Science lives here; machines live in options."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from avssl.errors import UsageError, check, nearest
from avssl.schema import config, keys, structure, unstructure

TABLES = ("backbone", "loss", "frontend", "data", "optim", "schedule", "train", "monitor", "expected")


def _at_least(least: float, table: str, settings: Any, *names: str) -> None:
    """Refuse numbers of a section that are smaller, infinite or not numbers; None stands for a default."""
    for name in names:
        value = getattr(settings, name)
        check(value is None or least <= value < math.inf, f"{table}.{name} is {value}", fix=f"give at least {least}")


@config
class DataConfig:
    """What is read, and how a batch is made."""

    batch_size: int = 32  # items per optimiser update, over all processes and micro-batches
    split: str = ""  # rows of this split only; "" = "train" when the data have such a split, else all
    target: Literal["none", "index", "multi_hot", "float", "characters"] = "none"  # how labels become targets
    balance: bool = False  # draw items with replacement, weight = sum over labels of 1000 / (count + 0.01)
    epoch_items: int | None = None  # length of an epoch in items; None = the data set
    # an unreadable item: stop; replace it; replace it, never try it again
    on_bad: Literal["fail", "skip", "quarantine"] = "skip"
    max_bad: float = 0.1  # share of the items that may be bad before the run stops
    max_seconds: float = 600.0  # limits of one decoded part, checked before memory is taken
    max_pixels: int = 64_000_000
    limit: int | None = None  # only the first rows, for a trial
    per_class: int | None = None  # only this many labelled items of each class, chosen by train.seed

    def __post_init__(self) -> None:
        _at_least(1, "data", self, "batch_size", "epoch_items", "limit", "per_class", "max_pixels")
        check(0 <= self.max_bad <= 1, f"data.max_bad is {self.max_bad}", fix="give a share between 0 and 1")
        check(self.max_seconds > 0, f"data.max_seconds is {self.max_seconds}", fix="give a positive number")


@config
class OptimConfig:
    """Rates are absolute, per optimiser step: nothing is rescaled by batch size behind your back."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"  # adam couples weight decay into the gradient (L2)
    lr: float  # peak; no default, there is no honest one
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_all: bool = False  # True: biases, norms, embeddings and 1-D parameters decay too
    decay: tuple[str, ...] = ()  # glob patterns of parameter names that decay whatever their dimensions
    no_decay: tuple[str, ...] = ()  # glob patterns of parameter names that never decay
    momentum: float = 0.9  # sgd
    grad_clip: float = math.inf  # global L2 norm
    layer_decay: float = 1.0  # rate of depth d times layer_decay^(top - d)
    head_lr_ratio: float = 1.0  # rate of `loss.head_parameters()` over the others
    freeze: Literal["none", "backbone"] = "none"  # "backbone": train heads only (a linear probe inside fine-tuning)
    freeze_updates: int = 0  # the backbone stays still for the first updates
    frozen: tuple[str, ...] = ()  # glob patterns of parameter names that never train

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, f"optim.lr is {self.lr}", fix="give a positive number, e.g. --set optim.lr=1e-4")
        check(self.grad_clip > 0, f"optim.grad_clip is {self.grad_clip}", fix="give a positive norm, or inf")
        check(all(0 <= b < 1 for b in self.betas), f"optim.betas is {self.betas}", fix="two numbers from 0 to below 1")
        check(0 < self.layer_decay <= 1, f"optim.layer_decay is {self.layer_decay}", fix="a factor of at most 1")
        _at_least(0, "optim", self, "eps", "weight_decay", "momentum", "head_lr_ratio", "freeze_updates")


@config
class ScheduleConfig:
    """Multiplier of the learning rate over updates (or epochs, for "step")."""

    name: Literal["constant", "cosine", "linear", "step", "tri_stage", "exponential"] = "cosine"
    warmup: float = 0.0  # updates; a number below 1 is a share of the run
    warmup_start: float = 0.0  # multiplier at update 0 of the warm-up
    floor: float = 0.0  # multiplier at the end (cosine, linear, tri_stage, exponential)
    hold: float = 0.0  # tri_stage: share of the run at the peak after the warm-up
    milestones_start: int = 1  # step: epochs at the peak rate
    milestones_every: int = 1  # step: epochs between two drops
    gamma: float = 0.5  # step: factor of a drop

    def __post_init__(self) -> None:
        _at_least(0, "schedule", self, "warmup", "warmup_start", "floor", "milestones_start", "gamma")
        _at_least(1, "schedule", self, "milestones_every")
        check(0 <= self.hold <= 1, f"schedule.hold is {self.hold}", fix="give a share between 0 and 1")


@config
class TrainConfig:
    """The run itself. Give `epochs` or `updates`."""

    epochs: float | None = None
    updates: int | None = None
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 on CUDA, fp32 on CPU
    micro_batch: int | None = None  # items that go through the network at once; None = batch_size / processes
    negatives: str | int = "global"  # contrastive losses: "global", "rank", or a number of items per group
    compile: bool = False
    checkpoint_activations: bool = False
    shard: bool = False  # FSDP2 instead of DDP
    save_every: int | None = None  # updates; None = each epoch, at most every 1000
    keep_last: int = 2
    log_every: int = 10
    weight_average: tuple[int, int] | None = None  # (first, last) epochs whose weights are averaged into the model
    ema: float | None = None  # decay of an average of the deployed weights; None = none
    # what to take of the model that the run starts from: its weights, or the slow average of them that its loss kept
    init: Literal["weights", "average"] = "weights"
    on_nonfinite: str = "stop"  # or "skip-N": skip up to N steps in the run
    best: str = ""  # metric of the validation split that selects checkpoints/best; "" = keep none
    validate_every: float = 1.0  # epochs, when the data have a validation split

    def __post_init__(self) -> None:
        check(
            (self.epochs is None) != (self.updates is None),
            "give train.epochs or train.updates, one of the two",
            fix="--set train.epochs=10",
        )
        for name in ("epochs", "validate_every"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, f"train.{name} is {value}", fix="give a positive number")
        _at_least(1, "train", self, "updates", "micro_batch", "save_every", "keep_last", "log_every")
        check(0 <= self.seed < 1 << 32, f"train.seed is {self.seed}", fix="give a number from 0 to 2^32 - 1")
        check(
            self.ema is None or 0 < self.ema < 1, f"train.ema is {self.ema}", fix="a decay between 0 and 1, e.g. 0.999"
        )
        first, last = self.weight_average or (1, 1)
        check(1 <= first <= last, f"train.weight_average is {self.weight_average}", fix="the first and the last epoch")
        check(
            self.ema is None or self.weight_average is None,
            "train.ema and train.weight_average both replace the weights",
            fix="choose one of the two",
        )
        check(
            re.fullmatch("global|rank|[1-9][0-9]*", str(self.negatives)) is not None,
            f"train.negatives = {self.negatives!r}",
            fix='"global", "rank" or a number of items',
        )
        check(
            re.fullmatch("stop|skip-[0-9]+", self.on_nonfinite) is not None,
            f"train.on_nonfinite = {self.on_nonfinite!r}",
            fix='"stop" or "skip-10"',
        )


@config
class MonitorConfig:
    """Collapse: representations that stop differing between items."""

    every: int = 50  # updates between looks; 0 = never
    min_std: float = 1e-4  # stop below this mean standard deviation of the L2-normalised features ...
    min_rank: float = 1.05  # ... or below this effective rank (exp of the spectrum's entropy)
    patience: int = 3  # looks in a row
    knn_every: int = 0  # epochs between k-NN looks at a labelled validation split; 0 = never

    def __post_init__(self) -> None:
        _at_least(0, "monitor", self, "every", "min_std", "min_rank", "knn_every")
        _at_least(1, "monitor", self, "patience")


@config
class Stage:
    """One run of a pipeline. `inputs` maps a dotted recipe key (or "init") to an earlier stage's name."""

    name: str
    recipe: str
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


@config
class Component:
    """A registered thing and its config: in TOML one table, `name` beside the config's keys."""

    name: str
    config: Any


@config
class Settings:
    """A recipe without its components: what can be checked knowing no plugin."""

    name: str
    summary: str = ""
    stage: Literal["pretrain", "finetune"] = "pretrain"
    tags: tuple[str, ...] = ()
    source: str = ""
    data: DataConfig = DataConfig()
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    monitor: MonitorConfig = MonitorConfig()
    expected: dict[str, float] = dataclasses.field(default_factory=dict)  # metric -> value, for `avssl reproduce`


@config
class Recipe(Settings):
    """A run. `str(recipe)` is the TOML that is stored with it."""

    backbone: Component
    loss: Component
    frontend: Any  # config dataclass of the frontend that the backbone's (or the loss's) entry names

    def __repr__(self) -> str:
        return f"<Recipe {self.name}: {self.backbone.name} trained with {self.loss.name}>"

    def __str__(self) -> str:
        return show(self)

    def plain(self) -> dict[str, Any]:
        """The fully resolved recipe as plain data; `recipe_from(plain)` gives it back."""
        out = unstructure({f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})
        for kind, part in (("backbone", self.backbone), ("loss", self.loss)):
            out[kind] = {"name": part.name, **unstructure(part.config)}
        out["frontend"] = unstructure(self.frontend)
        return out


@config
class Pipeline:
    """A recipe of stages: an outer directory of ordinary run directories."""

    name: str
    summary: str = ""
    stage: Literal["pipeline"] = "pipeline"
    tags: tuple[str, ...] = ()
    source: str = ""
    stages: tuple[Stage, ...]


def load_recipe(
    recipe: str | Path | Recipe | Pipeline, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> Recipe | Pipeline:
    """A registered recipe, or a .toml file, with `key=value` overrides applied; unknown keys are errors. Those of a
    pipeline are `apply_to_stages`'s. One that is loaded passes through, and takes no overrides.

    base: tables of a pretrained model, whose backbone and frontend fill what the recipe leaves open.
    """
    if isinstance(recipe, (Recipe, Pipeline)):
        check(not overrides, f"{recipe.name} is loaded already: it takes no overrides", fix="give them to load_recipe")
        return recipe
    data = read_recipe(str(recipe))
    if base is not None and "stages" not in data:
        wanted = data.get("backbone", {}).get("name", base["backbone"]["name"])
        if wanted == base["backbone"]["name"]:
            data["backbone"] = merge(base["backbone"], data.get("backbone", {}))
            data["frontend"] = merge(base.get("frontend", {}), data.get("frontend", {}))
    for override in overrides:
        (apply_to_stages if "stages" in data else apply_override)(data, override)
    return recipe_from(data)


def load_run(
    recipe: str | Path | Recipe | Pipeline, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> Recipe:
    """`load_recipe` where one run is meant. Raises UsageError for a pipeline, naming the recipes of its stages."""
    loaded = load_recipe(recipe, overrides, base)
    if isinstance(loaded, Pipeline):
        stages = ", ".join(dict.fromkeys(stage.recipe for stage in loaded.stages))
        raise UsageError(f"{loaded.name} is a pipeline", fix=f"give the recipe of one of its stages: {stages}")
    return loaded


def read_recipe(name: str) -> dict[str, Any]:
    """The plain tree of a recipe, its one level of `extends` merged."""
    data = _read(name)
    base_name = data.pop("extends", None)
    if base_name is not None:
        base = _read(base_name)
        check(
            "extends" not in base,
            f"{name} extends {base_name}, which extends {base.get('extends')}",
            fix="extend the root recipe: one level, no chains",
        )
        if {"epochs", "updates"} & data.get("train", {}).keys():  # one length replaces the other
            base["train"] = {k: v for k, v in base.get("train", {}).items() if k not in ("epochs", "updates")}
        data = merge(base, data)
    return data


def _read(name: str) -> dict[str, Any]:
    from avssl.registry import registry

    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        check(path.is_file(), f"{name}: no such recipe file", fix="give a name from `avssl recipes` or a .toml file")
    else:
        path = registry().get("recipe", name).path
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", fix="mend the TOML") from None
    for key in TABLES:
        check(isinstance(data.get(key, {}), dict), f"{path}: {key} is no table", fix=f"write [{key}]")
    extends = data.get("extends", "")
    check(isinstance(extends, str), f"{path}: extends = {extends!r} is no name", fix="name one recipe")
    data["name"] = data.get("name", path.stem if path == Path(name) else name)
    return data


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Tables key by key, `top` wins; a component of another name replaces the base's whole."""
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other = "name" in value and "name" in old and value["name"] != old["name"]
            out[key] = dict(value) if other else merge(old, value)
        else:
            out[key] = value
    return out


def apply_override(data: dict[str, Any], override: str, option: str = "--set") -> None:
    """Set a dotted key in place; the value is read as TOML, or taken as a string when it is none. option: in errors."""
    key, value = _key_and_value(override, option)
    node = data
    *parents, leaf = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
        check(isinstance(node, dict), f"--set {key}: {part} is no table", fix="see `avssl recipes show`")
    if leaf == "name" and parents in (["backbone"], ["loss"]) and node.get("name") != value:
        node.clear()  # another component: the old one's keys mean nothing to it
    if parents == ["train"] and leaf in ("epochs", "updates"):
        node.pop({"epochs": "updates", "updates": "epochs"}[leaf], None)  # one length replaces the other
    node[leaf] = value


def apply_to_stages(data: dict[str, Any], override: str) -> None:
    """The same for a pipeline: STAGE.KEY=VALUE changes one stage, KEY=VALUE all of them."""
    key, value = _key_and_value(override)
    stages = {stage["name"]: stage for stage in data["stages"]}
    first, _, rest = key.partition(".")
    shared = keys(Recipe) - keys(Pipeline) - {"expected"}
    known = f"start with a stage ({', '.join(stages)}) or with what every stage has ({', '.join(sorted(shared))})"
    check(bool(rest) and (first in stages or first in shared), f"--set {key}: a pipeline has no such key", fix=known)
    for stage in [stages[first]] if first in stages else stages.values():
        stage.setdefault("overrides", {})[rest if first in stages else key] = value


def _key_and_value(override: str, option: str = "--set") -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    example = {"--set": "optim.lr=1e-4", "--option": "heads=12"}[option]
    check(bool(equals) and bool(key.strip()), f"{option} {override!r} is no KEY=VALUE", fix=f"e.g. {option} {example}")
    try:
        return key.strip(), tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


def recipe_from(data: Mapping[str, Any]) -> Recipe | Pipeline:
    """Validate a plain tree. Raises UsageError naming the key and the nearest right one."""
    from avssl.entries import resolve
    from avssl.registry import LISTINGS, check_fit, registry

    data = dict(data)
    if "stages" in data:
        return structure(Pipeline, data)
    for key in data:
        check(key in keys(Recipe), f"unknown key {key}", fix=nearest(key, keys(Recipe)))
    entries: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for kind in ("backbone", "loss"):
        table = data.pop(kind, {})
        check(isinstance(table, Mapping), f"{kind} = {table!r} is no table", fix=f"e.g. --set {kind}.name=...")
        config = dict(table)
        name = config.pop("name", None)
        check(isinstance(name, str), f"{kind}.name is missing", fix=f"e.g. --set {kind}.name=...; {LISTINGS[kind]}")
        entries[kind] = registry().get(kind, name)
        parts[kind] = Component(name=name, config=structure(resolve(entries[kind].config), config, kind))
    check_fit(entries["backbone"].name, entries["loss"].name)
    frontend = entries["loss"].frontend_config or entries["backbone"].frontend_config
    parts["frontend"] = structure(resolve(frontend), data.pop("frontend", {}), "frontend")
    settings = structure(Settings, {"optim": {}, "train": {}, **data})
    return Recipe(**vars(settings), **parts)


def show(recipe: Recipe | Pipeline) -> str:
    """The resolved recipe as TOML."""
    import tomli_w

    return tomli_w.dumps(recipe.plain() if isinstance(recipe, Recipe) else unstructure(recipe))
