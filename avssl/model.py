"""A model directory is the model: what pretraining, fine-tuning and importing write, and every other command takes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avssl import __version__
from avssl.backbone import Backbone
from avssl.batch import Batch
from avssl.data.targets import Codec
from avssl.errors import CheckpointError, check
from avssl.files import replacing, sha256, write_json, write_text
from avssl.frontend import Frontend
from avssl.imports import Imported, build, import_checkpoint, load_strictly
from avssl.loss import Loss
from avssl.registry import load, registry
from avssl.safeload import load_safetensors
from avssl.schema import structure, unstructure
from avssl.words import counted

RECIPE, WEIGHTS, TRAINING, CHECKSUMS = "recipe.toml", "weights.safetensors", "training.safetensors", "checksums.json"
TARGETS = "assets/targets.json"


@dataclasses.dataclass(eq=False, repr=False)
class Model:
    """What is deployed: frontend -> backbone [-> head], in evaluation mode."""

    backbone: Backbone
    frontend: Frontend
    head: nn.Module | None
    codec: Codec | None
    recipe: Mapping[str, Any]  # the plain recipe: tables backbone, loss, frontend and, for a run, everything else
    path: Path
    licence: str = ""
    source: str = ""
    reader: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # format and options of a published checkpoint

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.backbone.parameters())
        head = ""
        if self.head is not None and self.codec is not None:
            head = f", {counted(len(self.codec.classes), 'class', 'classes')}"
        return f"<avssl model {self.path}: {self.recipe['backbone']['name']}, {parameters:,} parameters{head}>"

    @property
    def device(self) -> torch.device:
        """Where the backbone's weights are."""
        return next(self.backbone.parameters()).device

    def to(self, device: torch.device | str) -> Model:
        """Move all parts, in place; the model itself, as of torch's modules."""
        for part in (self.backbone, self.frontend, self.head):
            if part is not None:
                part.to(device)
        return self

    @cached_property
    def digest(self) -> str:
        """sha256 over weights, architecture and frontend with its files: equal digests give equal embeddings."""
        import hashlib

        out = hashlib.sha256()
        for key in ("backbone", "frontend"):
            out.update(json.dumps(unstructure(self.recipe[key]), sort_keys=True).encode())
        for asset in filter(_is_asset, self.recipe["frontend"].values()):
            out.update(sha256(self.path / asset).encode())
        for name, tensor in sorted(self.backbone.state_dict().items()):
            out.update(name.encode())
            out.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return out.hexdigest()

    def autocast(self, precision: str = "fp32") -> AbstractContextManager[Any]:
        """Where the backbone computes in "fp32", "bf16", "fp16" or "auto" (bf16 on CUDA). The frontend stays in fp32.

        Raises UsageError for one that the device does not have."""
        from avssl.training.setup import autocast_dtype

        dtype = autocast_dtype(precision, self.device)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    @torch.inference_mode()
    def logits(self, batch: Batch, precision: str = "fp32") -> Tensor:
        """(B, C) of a batch that a loader made (before `frontend.batch`). Raises CheckpointError without a head."""
        check(
            self.head is not None,
            f"{self.path} has no classification head",
            fix="fine-tune it first",
            error=CheckpointError,
        )
        assert self.head is not None
        batch = self.frontend(batch.to(self.device))
        with self.autocast(precision):
            return self.head(self.backbone(batch, only=getattr(self.head, "streams", None)))

    def embed(self, inputs: Any, **options: Any) -> Any:
        """Embeddings of paths, rows or arrays; see `avssl.embedding.encode.embed_inputs`."""
        from avssl.embedding.encode import embed_inputs

        return embed_inputs(self, inputs, **options)


def open_model(path: str | Path, format: str = "", device: str | torch.device = "cpu", **options: Any) -> Model:
    """A run directory, an imported model directory, a step of a run, or a published checkpoint file (with `format`).

    options go to the format's reader. Raises CheckpointError naming the file when something is missing or damaged.
    """
    path = Path(path)
    check(
        path.exists(),
        f"{path}: no such model",
        fix="give a run directory, or a checkpoint file with --format",
        error=CheckpointError,
    )
    if format or not (path / RECIPE).is_file():
        if not format:
            _refuse_several(path)
        model = from_imported(import_checkpoint(path, format, **options), path).to(device)
        model.reader = {"format": format, **options}
        return model
    tables = read_tables(path)
    check(
        (path / WEIGHTS).is_file(),
        f"{path} has no {WEIGHTS}: the run is not finished",
        fix=f"resume it: avssl pretrain ... --out {path} --resume",
        error=CheckpointError,
    )
    verify(path, WEIGHTS)
    tensors = load_safetensors(path / WEIGHTS)
    backbone, frontend = build_backbone(tables), build_frontend(tables, path)
    head, exclusive = None, False
    if any(name.startswith("head.") for name in tensors):
        loss = build_loss(tables, backbone)
        head, exclusive = loss.exports()["head"], loss.exclusive
        load_strictly(head, {k[5:]: v for k, v in tensors.items() if k.startswith("head.")}, f"{path}/{WEIGHTS}")
    load_strictly(backbone, {k[9:]: v for k, v in tensors.items() if k.startswith("backbone.")}, f"{path}/{WEIGHTS}")
    codec = None
    if (path / TARGETS).is_file():
        codec = Codec.load(json.loads((path / TARGETS).read_text(encoding="utf-8")), exclusive)
    return _deployed(backbone, frontend, head, codec, tables, path).to(device)


def _refuse_several(path: Path) -> None:
    """The outer folder of a pipeline or of folds is no model: say which runs it holds."""
    check(
        not (path / "stages").is_dir(),
        f"{path} is a pipeline",
        fix="give one of the runs in its stages/ folder",
        error=CheckpointError,
    )
    check(
        not (path / "fold-1").is_dir(),
        f"{path} holds one run for each fold",
        fix=f"give one of them, e.g. {path / 'fold-1'}",
        error=CheckpointError,
    )


def from_imported(imported: Imported, path: Path) -> Model:
    """A Model straight from what a format's reader gave."""
    tables = imported_tables(imported)
    loss = build(imported)
    codec = Codec.load(imported.assets["targets"], loss.exclusive) if "targets" in imported.assets else None
    return _deployed(loss.backbone, build_frontend(tables, path), loss.exports().get("head"), codec, tables, path)


def _deployed(
    backbone: Backbone,
    frontend: Frontend,
    head: nn.Module | None,
    codec: Codec | None,
    tables: Mapping[str, Any],
    path: Path,
) -> Model:
    for part in (backbone, frontend, head):
        if part is not None:
            part.eval()
    licence, source = (str(tables.get(key, "")) for key in ("licence", "source"))
    return Model(backbone, frontend, head, codec, tables, path, licence, source)


def imported_tables(imported: Imported) -> dict[str, Any]:
    """The recipe tables of an imported checkpoint, resolved."""
    tables: dict[str, Any] = {"name": f"imported/{imported.backbone['name']}"}
    for kind in ("backbone", "loss"):
        table = dict(getattr(imported, kind))
        name = table.pop("name")
        tables[kind] = {"name": name, **unstructure(structure(load(kind, name, "config"), table, kind))}
    config = _frontend_entry(tables)[1]
    tables["frontend"] = unstructure(structure(config, imported.frontend, "frontend"))
    tables["licence"], tables["source"] = imported.licence, imported.source
    return tables


def read_tables(path: Path) -> dict[str, Any]:
    """The plain recipe of a model directory."""
    try:
        tables = tomllib.loads((path / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / RECIPE}: {error}", fix="restore it from a copy") from None
    for key in ("backbone", "loss"):
        named = isinstance(tables.get(key), dict) and isinstance(tables[key].get("name"), str)
        check(named, f"{path / RECIPE} names no {key}", fix="restore it from a copy", error=CheckpointError)
    check(
        isinstance(tables.get("frontend", {}), dict),
        f"{path / RECIPE}: frontend is no table",
        fix="restore it from a copy",
        error=CheckpointError,
    )
    return tables


def build_backbone(tables: Mapping[str, Any]) -> Backbone:
    """The backbone of a plain recipe, freshly initialised."""
    return load("backbone", tables["backbone"]["name"])(_backbone_config(tables))


def build_frontend(tables: Mapping[str, Any], folder: Path) -> Frontend:
    """The frontend of a plain recipe; values that begin with "assets/" are files of the model folder."""
    cls, config_cls = _frontend_entry(tables)
    frontend = cls(structure(config_cls, _located(tables.get("frontend", {}), folder), "frontend"))
    frontend.bind(_backbone_config(tables))
    return frontend


def _backbone_config(tables: Mapping[str, Any]) -> Any:
    table = dict(tables["backbone"])
    name = table.pop("name")
    return structure(load("backbone", name, "config"), table, "backbone")


def _located(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A frontend's table with the assets of a model folder as paths."""
    return {k: str(folder / v) if _is_asset(v) else v for k, v in table.items()}


def _is_asset(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("assets/")


def build_loss(tables: Mapping[str, Any], backbone: Backbone) -> Loss:
    """The loss of a plain recipe around a backbone that holds its initial weights."""
    table = dict(tables["loss"])
    name = table.pop("name")
    return load("loss", name)(backbone, structure(load("loss", name, "config"), table, "loss"))


def _frontend_entry(tables: Mapping[str, Any]) -> tuple[type[Frontend], type]:
    """Class and config class: the loss's own frontend where it brings one, else the backbone's."""
    loss = tables.get("loss", {}).get("name")
    if loss and registry().get("loss", loss).frontend:
        return load("loss", loss, "frontend"), load("loss", loss, "frontend_config")
    name = tables["backbone"]["name"]
    return load("backbone", name, "frontend"), load("backbone", name, "frontend_config")


def save_model(
    folder: Path,
    loss: Loss,
    frontend: Frontend,
    tables: Mapping[str, Any],
    codec: Codec | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model files of a directory, each complete or absent, the checksums last.

    tables: the plain recipe. state: the loss's state dict when it is not `loss.state_dict()` (averaged, gathered).
    `weights.safetensors` holds `loss.exports()`; `training.safetensors` the rest (decoder, teacher), for `--init`.
    """
    import tomli_w

    state = dict(loss.state_dict() if state is None else state)
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    tables = {**tables, "frontend": unstructure(frontend.save_assets(folder / "assets")), "avssl_version": __version__}
    modules = {id(m): name for name, m in loss.named_modules(remove_duplicate=False)}
    weights, used = {}, set()
    for export, module in loss.exports().items():
        prefix = modules[id(module)] + "."
        for name in module.state_dict():
            weights[f"{export}.{name}"] = state[prefix + name]
            used.add(prefix + name)
    rest = {k: v for k, v in state.items() if k not in used}
    save_tensors(folder / WEIGHTS, weights)
    save_tensors(folder / TRAINING, rest)
    if codec is not None:
        write_json(folder / TARGETS, codec.state())
    write_text(folder / RECIPE, tomli_w.dumps(unstructure(tables)))
    write_json(folder / CHECKSUMS, {n: sha256(folder / n) for n in (WEIGHTS, TRAINING)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, atomically; tensors that share memory are written out one by one."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            str(temporary),
            {"format": "pt", **(metadata or {})},
        )


def verify(folder: Path, name: str) -> None:
    """Compare a file with the checksum that was written after it. Raises CheckpointError when they differ."""
    try:
        wanted = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder}: {CHECKSUMS} is missing or damaged", fix="restore it from a copy") from None
    if sha256(folder / name) != wanted:
        raise CheckpointError(
            f"{folder / name} is damaged: its checksum differs from {CHECKSUMS}", fix="restore it from a copy"
        )


@dataclasses.dataclass(frozen=True)
class Initial:
    """Weights to start from: a model's tensors in the naming of a Loss state dict, and its backbone's config."""

    path: Path
    tensors: Mapping[str, Tensor]
    backbone_name: str
    backbone_config: Any
    tables: Mapping[str, Any]
    targets: Mapping[str, Any] | None = None  # state of the codec that its head was trained with

    def digest(self) -> str:
        """SHA-256 of the tensors, whatever file they came in."""
        made = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            made.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return made.hexdigest()

    def without_head(self) -> Initial:
        """The same, for other classes."""
        return dataclasses.replace(
            self, tensors={k: v for k, v in self.tensors.items() if not k.startswith("head.")}, targets=None
        )

    def averaged(self) -> Initial:
        """The same with the slow average that its loss kept in the place of the backbone's weights, where it has them.

        Raises CheckpointError where there is none, or one that is a mere copy (of a file that held none)."""
        prefix = registry().get("loss", self.tables["loss"]["name"]).average
        average = {
            f"backbone.{k.removeprefix(prefix)}": v for k, v in self.tensors.items() if prefix and k.startswith(prefix)
        }
        check(
            any(k not in self.tensors or not torch.equal(v, self.tensors[k]) for k, v in average.items()),
            f"{self.path} holds no average of its weights",
            fix="--set train.init=weights, or start from another model",
            error=CheckpointError,
        )
        return dataclasses.replace(self, tensors={**self.tensors, **average})

    def into_backbone(self, backbone: Backbone, name: str) -> None:
        """Load the backbone, strictly, after `backbone.adapt` fitted what may be fitted (position tables)."""
        check(
            name == self.backbone_name,
            f"{self.path} holds a {self.backbone_name} backbone, the recipe builds {name}",
            fix=f"--set backbone.name={self.backbone_name}, or start from another model",
            error=CheckpointError,
        )
        own = {k[9:]: v for k, v in self.tensors.items() if k.startswith("backbone.")}
        try:
            load_strictly(backbone, backbone.adapt(own, self.backbone_config), str(self.path))
        except CheckpointError as error:
            other = " ".join(f"--set backbone.{k}={json.dumps(v)}" for k, (v, _) in self.changed(backbone).items())
            raise CheckpointError(error.message, fix=other or error.fix) from None

    def changed(self, backbone: Backbone) -> dict[str, tuple[Any, Any]]:
        """Keys of the backbone's config that the recipe sets otherwise: this model's value, and the recipe's."""
        old, new = unstructure(self.backbone_config), unstructure(backbone.config)
        return {k: (old.get(k), v) for k, v in new.items() if old.get(k) != v}

    def into_rest(self, loss: Loss) -> list[str]:
        """Load what else of the loss has the same names and shapes (decoder, teacher); the names that stay fresh."""
        own = loss.state_dict()
        rest = {
            k: v
            for k, v in self.tensors.items()
            if not k.startswith("backbone.") and k in own and own[k].shape == v.shape
        }
        loss.load_state_dict(rest, strict=False)
        return sorted(k for k in own if not k.startswith("backbone.") and k not in rest)


def read_initial(path: str | Path | Initial, format: str = "", **options: Any) -> Initial:
    """Open a model directory or published checkpoint for `--init` and `--from`; one that is open passes through."""
    if isinstance(path, Initial):
        return path
    path = Path(path)
    if (path / RECIPE).is_file() and not format:
        tables = read_tables(path)
        tables["frontend"] = _located(tables.get("frontend", {}), path)
        targets = json.loads((path / TARGETS).read_text(encoding="utf-8")) if (path / TARGETS).is_file() else None
        check(
            (path / WEIGHTS).is_file(),
            f"{path} has no {WEIGHTS}: the run is not finished",
            fix="resume it first",
            error=CheckpointError,
        )
        tensors: dict[str, Tensor] = {}
        for name in (WEIGHTS, TRAINING):
            if (path / name).is_file():
                verify(path, name)
                tensors.update(load_safetensors(path / name))
    else:
        if not format:
            _refuse_several(path)
        imported = import_checkpoint(path, format, **options)
        tables, tensors = imported_tables(imported), dict(imported.tensors)
        targets = imported.assets.get("targets")
    return Initial(path, tensors, tables["backbone"]["name"], _backbone_config(tables), tables, targets)
