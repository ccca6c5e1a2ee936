"""The contract that every backbone, loss and modality passes, ours and third parties' (`avssl plugins check NAME`).

Each check is a plain function that raises AssertionError; `check_backbone` and `check_loss` are for use in a plugin's own
tests, `check_plugin` runs everything that a plugin registers and reports. What the checks ask of a plugin:

modality  `ModalityEntry.sample` writes a small file; `decode` takes the keywords that the entry's docstring lists.
frontend  A `Frontend` with `plan` and `item` at least. `avssl.batch.item(id, seed, target, audio=...)` makes the batch of
          one that `item` returns; `batch` (the device half) and `views` have defaults.
backbone  A `Backbone` with `modalities`, `forward` and `grid`; its config has `dim`, or the class says `dim` (and
          `widths()` where streams differ). `BackboneEntry.supports` names what `forward` does with hide, keep and layers;
          each of them is then checked. `BackboneEntry.example` gives a size that builds in a moment.
loss      A `Loss` with `compute` (or `local` and `joint`); all randomness in `sample`, from `avssl.batch.generators`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.backbone import Backbone
from avssl.batch import Batch, Stream
from avssl.data.clip import Limits
from avssl.data.items import decode_clip, made_by
from avssl.data.samples import sample_rows
from avssl.entries import BackboneEntry, Entry, LossEntry, ModalityEntry, resolve, unfit
from avssl.errors import AvsslError, UsageError, nearest
from avssl.frontend import Frontend
from avssl.loss import Loss, to_device
from avssl.model import build_backbone, build_frontend, build_loss
from avssl.recipe import load_recipe
from avssl.registry import check_fit, load, registry
from avssl.training.step import seed_everything

ITEMS = 4
BATCH_TOLERANCE = 2e-4  # relative to the largest value: padding and neighbours may change float32 sums, nothing more


@dataclass
class Subject:
    """A backbone and its frontend at example size, with a few items of real files."""

    entry: BackboneEntry
    tables: dict[str, Any]
    backbone: Backbone
    frontend: Frontend
    items: list[Batch]

    def batch(self, rows: slice | None = None, training: bool = False) -> Batch:
        """The items (or some of them), padded together, as the backbone reads them."""
        self.frontend.train(training)
        return self.frontend(Batch.cat(self.items[rows or slice(None)], self.frontend.pad_values))


def subject(entry: BackboneEntry, folder: Path, extra: Mapping[str, Any] | None = None) -> Subject:
    """Build a backbone at its example size, and items from the sample files of its modalities."""
    example = resolve(entry.example)(folder) if entry.example else {}
    tables: dict[str, Any] = {
        "backbone": {"name": entry.name, **example.get("backbone", {})},
        "frontend": dict(example.get("frontend", {})),
        **(extra or {}),
    }
    seed_everything(1)
    backbone, frontend = build_backbone(tables), build_frontend(tables, folder)
    items = []
    for number, row in enumerate(sample_rows(frontend.modalities or entry.modalities, folder, ITEMS)):
        clips = [decode_clip(row, frontend.plan(row, np.random.default_rng(number)), Limits())]
        items.append(made_by(frontend, clips, np.random.default_rng(number), 1000 + number))
    return Subject(entry, tables, backbone.eval(), frontend.eval(), items)


# -- modalities -----------------------------------------------------------------------------------------------------
def modality_decodes(entry: ModalityEntry, folder: Path) -> None:
    """Its sample is found by the entry's suffixes and decodes twice to the same part."""
    source = load("modality", entry.name, "sample")(folder, 0)
    if isinstance(source, str) and not entry.inline:
        assert source.lower().endswith(entry.suffixes), f"the sample {source} has none of the suffixes {entry.suffixes}"
    decode = load("modality", entry.name, "decode")
    parts = [decode(source, None, start=None, end=None, limits=Limits()) for _ in range(2)]
    assert parts[0] is not None, "decode() of the sample gives None"
    assert _equal(*parts), "decode() of one file gives two different parts"


# -- backbones ------------------------------------------------------------------------------------------------------
def backbone_entry(s: Subject) -> None:
    """The class reads what its entry says."""
    ours, said = sorted(s.backbone.modalities), sorted(s.entry.modalities)
    assert ours == said, f"the class reads {', '.join(ours)}, its entry says {', '.join(said)}"


def backbone_shapes(s: Subject) -> None:
    """Tokens (B, N, D), pooled (B, width), grid with N tokens, everything finite, for every modality."""
    batch = s.batch()
    with torch.no_grad():
        out = s.backbone(batch)
    grid = s.backbone.grid(batch)
    widths = s.backbone.widths()
    assert set(out.pooled) <= set(widths), f"pooled has {sorted(out.pooled)}, widths() names {sorted(widths)}"
    for stream, x in out.pooled.items():
        assert x.shape == (ITEMS, widths[stream]), (
            f"pooled[{stream!r}] is {tuple(x.shape)}, not {(ITEMS, widths[stream])}"
        )
        assert bool(x.isfinite().all()), f"pooled[{stream!r}] is not finite"
    for modality in s.entry.modalities:
        x = out.tokens[modality]
        assert x.ndim == 3 and x.shape[0] == ITEMS, f"tokens[{modality!r}] is {tuple(x.shape)}, not (B, N, D)"
        assert modality in grid, f"grid() does not place the {modality} tokens"
        assert grid[modality].tokens == x.shape[1], (
            f"grid()[{modality!r}] has {grid[modality].tokens} tokens, forward {x.shape[1]}"
        )


def backbone_determinism(s: Subject) -> None:
    """Twice the same in evaluation mode, to the bit."""
    batch = s.batch()
    with torch.no_grad():
        a, b = s.backbone(batch).pooled, s.backbone(batch).pooled
    assert all(torch.equal(a[k], b[k]) for k in a), "two evaluations of one batch differ"


def backbone_batch_invariance(s: Subject) -> None:
    """An item alone gives what it gives among others of its length."""
    with torch.no_grad():
        together = s.backbone(s.batch()).pooled
        alone = s.backbone(s.batch(slice(0, 1))).pooled
    for stream, x in together.items():
        worst = float((x[:1] - alone[stream]).abs().max() / x.abs().max().clamp_min(1e-6))
        assert worst < BATCH_TOLERANCE, (
            f"{stream}: an item alone differs from itself in a batch by {worst:.1e} of the largest value"
        )


def backbone_gradients(s: Subject) -> None:
    """A loss on the pooled features reaches parameters, with finite gradients."""
    s.backbone.zero_grad()
    torch.stack([x.float().square().sum() for x in s.backbone(s.batch()).pooled.values()]).sum().backward()
    grads = [p.grad for p in s.backbone.parameters() if p.grad is not None]
    assert grads, "no parameter got a gradient"
    assert all(bool(g.isfinite().all()) for g in grads), "a gradient is not finite"
    s.backbone.zero_grad()


def backbone_save_and_load(s: Subject) -> None:
    """The state dict, through safetensors into a fresh one, gives the same features."""
    from safetensors import torch as safetensors

    seed_everything(2)
    fresh = build_backbone(s.tables).eval()
    fresh.load_state_dict(
        safetensors.load(safetensors.save({k: v.contiguous().clone() for k, v in s.backbone.state_dict().items()}))
    )
    batch = s.batch()
    with torch.no_grad():
        a, b = s.backbone(batch).pooled, fresh(batch).pooled
    assert all(torch.equal(a[k], b[k]) for k in a), "a saved and loaded backbone gives other features"


def backbone_half_precision(s: Subject) -> None:
    """Finite features under bf16 autocast."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = s.backbone(s.batch())
    assert all(bool(x.isfinite().all()) for x in out.pooled.values()), "bf16 features are not finite"


def backbone_only(s: Subject) -> None:
    """`only` computes just those streams, with the same values."""
    batch = s.batch()
    with torch.no_grad():
        whole = s.backbone(batch).pooled
        for stream in whole:
            part = s.backbone(batch, only={stream}).pooled
            assert stream in part, f"only={{{stream!r}}} does not give it"
            assert torch.allclose(part[stream], whole[stream], atol=1e-5, rtol=1e-4), (
                f"only={{{stream!r}}} gives other values"
            )


def backbone_hide(s: Subject) -> None:
    """Hidden tokens change the features; the shape stays."""
    batch = s.batch()
    grid = s.backbone.grid(batch)
    hide = {}
    for modality in s.entry.modalities:
        mask = torch.zeros(ITEMS, grid[modality].places, dtype=torch.bool)
        mask[:, ::2] = True
        hide[modality] = mask
    with torch.no_grad():
        clean, hidden = s.backbone(batch), s.backbone(batch, hide=hide)
    for modality in s.entry.modalities:
        assert hidden.tokens[modality].shape == clean.tokens[modality].shape, (
            f"hide changes the number of {modality} tokens"
        )
        assert not torch.allclose(hidden.tokens[modality], clean.tokens[modality]), f"hide does nothing to {modality}"


def backbone_keep(s: Subject) -> None:
    """Kept tokens: as many as asked for."""
    batch = s.batch()
    grid = s.backbone.grid(batch)
    keep = {modality: torch.arange(0, g.places, 2).expand(ITEMS, -1) for modality, g in grid.items()}
    with torch.no_grad():
        out = s.backbone(batch, keep=keep)
    for modality, ids in keep.items():
        wanted, got = ids.shape[1] + grid[modality].prefix, out.tokens[modality].shape[1]
        assert got == wanted, f"keep of {ids.shape[1]} {modality} places gives {got} tokens, not {wanted}"


def backbone_layers(s: Subject, kind: str) -> None:
    """Inner states: several, of the shape of the tokens."""
    batch = s.batch()
    with torch.no_grad():
        out = s.backbone(batch, layers=kind)
    for modality in s.entry.modalities:
        states = out.layers.get(modality, ())
        assert len(states) > 0, f"layers={kind!r} gives no {modality} states"
        assert all(x.shape[:2] == out.tokens[modality].shape[:2] for x in states), (
            f"{modality} states have other shapes than the tokens"
        )


BACKBONE_CHECKS: dict[str, Callable[[Subject], None]] = {
    "entry": backbone_entry,
    "shapes": backbone_shapes,
    "determinism": backbone_determinism,
    "batch invariance": backbone_batch_invariance,
    "gradients": backbone_gradients,
    "save and load": backbone_save_and_load,
    "bf16": backbone_half_precision,
    "only": backbone_only,
}


def backbone_checks(entry: BackboneEntry) -> dict[str, Callable[[Subject], None]]:
    """The checks that apply to an entry: the general ones, and one for each capability that it claims."""
    checks = dict(BACKBONE_CHECKS)
    if "hide" in entry.supports:
        checks["hide"] = backbone_hide
    if "keep" in entry.supports:
        checks["keep"] = backbone_keep
    for kind in ("blocks", "ffn"):
        if f"layers:{kind}" in entry.supports:
            checks[f"layers {kind}"] = partial(backbone_layers, kind=kind)
    return checks


# -- losses ---------------------------------------------------------------------------------------------------------
def loss_subject(entry: LossEntry, folder: Path) -> tuple[Loss, Subject, Batch]:
    """A loss at its example size on the first backbone that fits, and a batch for it."""
    reg = registry()
    fitting = [b for b in reg.all("backbone") if not unfit(b, entry)]
    assert fitting, "no registered backbone fits this loss"
    example = resolve(entry.example)(folder) if entry.example else {}
    wanted = example.get("backbone", {}).get("name", fitting[0].name)
    extra: dict[str, Any] = {"loss": {"name": entry.name, **example.get("loss", {})}}
    if "frontend" in example or entry.frontend:
        extra["frontend"] = example.get("frontend", {})
    s = subject(reg.get("backbone", wanted), folder, extra)
    if entry.supervised and "classes" in resolve(entry.config).__dataclass_fields__:
        s.tables["loss"].setdefault("classes", 2)
    loss = build_loss(s.tables, s.backbone)
    batch = s.batch(training=True)
    if entry.supervised and batch.targets is None:
        batch = dataclasses.replace(batch, targets=Stream(torch.arange(ITEMS) % 2))
    return loss.train(), s, batch


def loss_draws(loss: Loss, s: Subject, batch: Batch) -> None:
    """Draws depend on the items' seeds alone: the same twice, whatever the global generators hold."""
    seed_everything(3)
    a = loss.sample(batch)
    seed_everything(4)
    b = loss.sample(batch)
    assert _equal(a, b), "two draws from the same seeds differ: use batch.seeds (avssl.batch.generators) alone"


def loss_step(loss: Loss, s: Subject, batch: Batch) -> None:
    """Finite terms and gradients, equal for one draw; an optimiser step and after_step change the weights."""
    with torch.no_grad():
        loss.prepare(batch)
    draw = to_device(loss.sample(batch), "cpu")
    loss.before_step(1, 10)
    totals = []
    for _ in range(2):
        seed_everything(5)
        totals.append(loss(batch, draw).total())
    assert bool(totals[0].isfinite()), "the total is not finite"
    assert torch.equal(totals[0].detach(), totals[1].detach()), "compute() with one draw gives two totals"
    loss.zero_grad()
    totals[1].backward()
    grads = [p.grad for p in loss.parameters() if p.grad is not None]
    assert grads and all(bool(g.isfinite().all()) for g in grads), "gradients are missing or not finite"
    before = [p.detach().clone() for p in loss.parameters()]
    torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.1).step()
    loss.after_step(1)
    assert any(not torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True)), "a step changes nothing"


def loss_save_and_load(loss: Loss, s: Subject, batch: Batch) -> None:
    """The state dict, through safetensors into a fresh loss, gives the same total; an average has the backbone's names."""
    from safetensors import torch as safetensors

    seed_everything(6)
    fresh = build_loss(s.tables, build_backbone(s.tables))
    fresh.load_state_dict(
        safetensors.load(safetensors.save({k: v.contiguous().clone() for k, v in loss.state_dict().items()}))
    )
    loss.eval(), fresh.eval()
    draw = loss.sample(batch)
    with torch.no_grad():
        a, b = loss(batch, draw).total(), fresh(batch, draw).total()
    loss.train()
    assert torch.equal(a, b), f"a saved and loaded loss gives {float(b)} for {float(a)}"
    prefix = registry().get("loss", s.tables["loss"]["name"]).average
    average = {k.removeprefix(prefix) for k in loss.state_dict() if k.startswith(prefix)} if prefix else set()
    assert average or not prefix, f"its entry names an average {prefix!r}, and its state has none"
    strange = sorted(average - s.backbone.state_dict().keys())
    assert not strange, f"its average has {strange[0]}, its backbone has not"


def loss_wrong_pair(entry: LossEntry) -> None:
    """A backbone that does not fit is refused with the reason, before anything is built."""
    for other in registry().all("backbone"):
        if unfit(other, entry):
            try:
                check_fit(other.name, entry.name)
            except UsageError as error:
                assert other.name in error.message and error.fix, "the refusal names neither pair nor remedy"
                return
            raise AssertionError(f"{other.name} does not fit, and is not refused")


LOSS_CHECKS: dict[str, Callable[[Loss, Subject, Batch], None]] = {
    "draws": loss_draws,
    "training step": loss_step,
    "save and load": loss_save_and_load,
}


# -- running them ---------------------------------------------------------------------------------------------------
def check_backbone(name: str) -> None:
    """Raise AssertionError unless the registered backbone keeps the contract."""
    _raise(_backbone_results(registry().get("backbone", name)))


def check_loss(name: str) -> None:
    """Raise AssertionError unless the registered loss keeps the contract."""
    _raise(_loss_results(registry().get("loss", name)))


def check_plugin(name: str) -> list[dict[str, str]]:
    """Run every check over the entries of a plugin: [{"entry", "check", "error"}], error "" where it passed."""
    reg = registry()
    status = next((p for p in reg.plugins if p.name == name), None)
    if status is None:
        raise UsageError(f"no plugin is called {name!r}", fix=nearest(name, {p.name for p in reg.plugins}))
    if status.error:
        return [{"entry": name, "check": "loads", "error": status.error}]
    results = [{"entry": name, "check": "loads", "error": ""}]
    for kind, entry_name in status.entries:
        entry = reg.get(kind, entry_name)
        if kind == "backbone":
            results += _backbone_results(entry)
        elif kind == "loss":
            results += _loss_results(entry)
        elif kind == "recipe":
            results.append(_attempt(f"recipe {entry_name}", "resolves", load_recipe, entry_name))
        else:
            results.append(_attempt(f"{kind} {entry_name}", "imports", _import_targets, entry))
            if kind == "modality":
                with tempfile.TemporaryDirectory() as folder:
                    results.append(_attempt(f"modality {entry_name}", "decodes", modality_decodes, entry, Path(folder)))
    return results


def _import_targets(entry: Entry) -> None:
    for name in ("cls", "config", "decode", "probe", "sample", "read", "write", "detect"):
        if target := getattr(entry, name, ""):
            resolve(target)


def _backbone_results(entry: BackboneEntry) -> list[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            s = subject(entry, Path(folder))
        except Exception as error:
            return [{"entry": f"backbone {entry.name}", "check": "builds", "error": _why(error)}]
        return [
            _attempt(f"backbone {entry.name}", check, function, s) for check, function in backbone_checks(entry).items()
        ]


def _loss_results(entry: LossEntry) -> list[dict[str, str]]:
    label = f"loss {entry.name}"
    out = [_attempt(label, "wrong pair", loss_wrong_pair, entry)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            loss, s, batch = loss_subject(entry, Path(folder))
        except Exception as error:
            return [*out, {"entry": label, "check": "builds", "error": _why(error)}]
        return out + [_attempt(label, check, function, loss, s, batch) for check, function in LOSS_CHECKS.items()]


def _attempt(entry: str, check: str, function: Callable[..., Any], *arguments: Any) -> dict[str, str]:
    try:
        function(*arguments)
    except Exception as error:
        return {"entry": entry, "check": check, "error": _why(error)}
    return {"entry": entry, "check": check, "error": ""}


def _why(error: Exception) -> str:
    text = str(error) if isinstance(error, (AssertionError, AvsslError)) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300] or type(error).__name__


def _raise(results: list[dict[str, str]]) -> None:
    failed = [f"{r['entry']}: {r['check']}: {r['error']}" for r in results if r["error"]]
    if failed:
        raise AssertionError("; ".join(failed))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if dataclasses.is_dataclass(a):
        return all(_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
