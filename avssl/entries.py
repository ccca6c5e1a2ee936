"""What a plugin registers: light records that name classes by import string, so that a listing imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avssl.errors import PluginError

API_VERSION = 1  # a plugin may set `avssl_api = 1`; another number is refused by name


def resolve(target: str) -> Any:
    """The object that `"package.module:Name"` names. Raises PluginError, naming the target, when it cannot be had."""
    module_name, _, attribute = target.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
        return value
    except (ImportError, AttributeError) as error:
        missing = getattr(error, "name", None)
        fix = f"install {missing!r}" if isinstance(error, ModuleNotFoundError) and missing else "reinstall the plugin"
        raise PluginError(f"cannot load {target}: {error}", fix=fix) from error


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What every entry has. `origin` is filled in by the registry: the distribution that brought it."""

    kind = "entry"
    name: str
    summary: str = ""
    origin: str = field(default="", compare=False)


def _frozen(value: Iterable[str]) -> frozenset[str]:
    return frozenset([value] if isinstance(value, str) else value)


@dataclass(frozen=True, kw_only=True)
class BackboneEntry(Entry):
    """A network that turns a Batch into Features.

    cls: import string of a `Backbone`; config: of its config dataclass; frontend: of its `Frontend`;
    frontend_config: of that one's config dataclass; modalities: what it reads; optional: those it can do without;
    supports: capabilities that a loss may require: "hide", "keep", "layers:blocks", "layers:ffn", "joint".
    example: import string of `example(folder) -> {"backbone": {...}, "frontend": {...}}`: a small configuration for the
    conformance suite (it may write the files it names into `folder`); "" = the defaults.
    sizes: import string of `() -> list of rows` (preset, parameters, costs) for `avssl backbones --table`.
    """

    kind = "backbone"
    cls: str
    config: str
    frontend: str
    frontend_config: str
    modalities: frozenset[str]
    optional: frozenset[str] = frozenset()
    supports: frozenset[str] = frozenset()
    sizes: str = ""
    example: str = ""

    def __post_init__(self) -> None:
        for name in ("modalities", "optional", "supports"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class LossEntry(Entry):
    """An objective: an nn.Module that owns its backbone and whatever else training needs.

    backbones: names of the backbones it is written for; empty: any that fits. modalities: streams it needs;
    min_modalities: how many different ones; requires: capabilities of the backbone (`BackboneEntry.supports`).
    supervised: needs targets (a fine-tuning loss). frontend: replaces the backbone's frontend when the objective needs
    other data (composed clips, negatives). sampler: import string of a sampler class, or "". example: as for
    backbones: `example(folder) -> {"loss": {...}, "frontend": {...}}`. average: under which prefix of its state dict it
    keeps a slow average of its backbone ("teacher."), which `train.init = "average"` starts from, or "".
    """

    kind = "loss"
    cls: str
    config: str
    backbones: frozenset[str] = frozenset()
    modalities: frozenset[str] = frozenset()
    min_modalities: int = 1
    requires: frozenset[str] = frozenset()
    supervised: bool = False
    frontend: str = ""
    frontend_config: str = ""
    sampler: str = ""
    example: str = ""
    average: str = ""

    def __post_init__(self) -> None:
        for name in ("backbones", "modalities", "requires"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class EvaluationEntry(Entry):
    """A protocol: `(model, splits, config) -> Report`; modalities: what it is about, for listings. names: import string of
    `names(model, config) -> metric names` that it can give ("*" for what only the data tell); without it a misspelt
    `--fail-under` is found only after the evaluation."""

    kind = "evaluation"
    cls: str
    config: str
    modalities: frozenset[str] = frozenset()
    names: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", _frozen(self.modalities))


@dataclass(frozen=True, kw_only=True)
class ModalityEntry(Entry):
    """A kind of signal: how its files are recognised and how one becomes part of a Clip.

    suffixes: file endings, lower case, with the dot; columns: manifest columns that name it, the first is the one we
    write; decode: import string of `decode(source, request, *, start, end, limits) -> part`, where source is a path, the
    paths of several files or an inline value, request is what the frontend's `plan` asks of this modality (None = all),
    start and end are the row's window in seconds (None = open) and limits is a `Limits`; it raises DataError for a file
    that is bad, `avssl.data.clip.Absent` for one without such a signal. probe: import string of `probe(path) -> Probe`,
    or "". inline: the manifest column holds the value itself (a caption), not a path. sample: import string of
    `sample(folder, number) -> source`: writes a small example for the conformance suite and `avssl bench`.
    """

    kind = "modality"
    suffixes: tuple[str, ...] = ()
    columns: tuple[str, ...]
    decode: str
    probe: str = ""
    inline: bool = False
    sample: str = ""


@dataclass(frozen=True, kw_only=True)
class FormatEntry(Entry):
    """A foreign checkpoint format. read: import string of `read(path, **options) -> Imported`; write: of
    `write(model, path) -> list of paths`; either may be "". detect: of `detect(path) -> bool`, cheap, or ""."""

    kind = "format"
    read: str = ""
    write: str = ""
    detect: str = ""
    system: str = ""


@dataclass(frozen=True, kw_only=True)
class LayoutEntry(Entry):
    """A known arrangement of a data set on disk. detect: import string of `detect(path) -> bool`, cheap;
    read: of `read(path) -> list[Row]`. Built-in folder and table readers come last."""

    kind = "layout"
    detect: str
    read: str


@dataclass(frozen=True, kw_only=True)
class RecipeEntry(Entry):
    """A TOML file of a plugin, named `system/variant`; summary and tags are read from its head."""

    kind = "recipe"
    path: Path
    tags: frozenset[str] = frozenset()
    stage: str = "pretrain"  # or "finetune", "pipeline"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", _frozen(self.tags))


def recipes_in(package: str) -> list[RecipeEntry]:
    """One entry for each `recipes/*.toml` of a package: `avssl_cav_mae/recipes/base.toml` becomes `cav_mae/base`.

    `package` is the import name; the system is the name without a leading `avssl_`. Reads only the top-level keys
    `summary`, `tags` and `stage`.
    """
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"recipes_in({package!r}): there is no such package", fix="give the package's import name")
    system = package.removeprefix("avssl_")
    found = []
    for path in sorted((Path(spec.submodule_search_locations[0]) / "recipes").glob("*.toml")):
        head = _head(path)
        base = path.with_name(str(head.get("extends", "")).removeprefix(f"{system}/") + ".toml")
        if base.is_file():
            head = {**_head(base), **head}
        found.append(
            RecipeEntry(
                name=f"{system}/{path.stem}",
                summary=str(head.get("summary", "")),
                path=path,
                tags=frozenset(head.get("tags", ())),
                stage=str(head.get("stage", "pretrain")),
            )
        )
    return found


def _head(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise PluginError(f"{path}: {error}", fix="mend the recipe") from error


def unfit(backbone: BackboneEntry, loss: LossEntry) -> str:
    """Why this loss cannot train this backbone, in one clause; "" when it can. Imports nothing."""
    if loss.backbones and backbone.name not in loss.backbones:
        return f"it is written for {' or '.join(sorted(loss.backbones))}"
    if missing := loss.modalities - backbone.modalities:
        return f"it needs {', '.join(sorted(missing))}, which the backbone does not read"
    if len(backbone.modalities) < loss.min_modalities:
        return f"it needs {loss.min_modalities} modalities, the backbone reads {len(backbone.modalities)}"
    if missing := loss.requires - backbone.supports:
        return f"the backbone does not support {', '.join(sorted(missing))}"
    return ""
