"""Whether a written file says what the model is: the format's own reader must give the same configurations back."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import reprlib
import sys
from collections.abc import Mapping
from typing import Any

from avssl.errors import CheckpointError
from avssl.imports import Imported
from avssl.registry import load
from avssl.schema import structure
from avssl_data2vec.config import (
    AlibiConfig,
    Audio2Config,
    AudioConfig,
    BlockConfig,
    Data2Vec2Config,
    Data2VecConfig,
    Mask2Config,
    Multi2Config,
    SpanConfig,
    TargetConfig,
    TokenConfig,
    Vision2Config,
)

_FRONTEND = {"audio": ("rate", "normalise"), "vision": ("mean", "std"), "text": ()}  # what gives the network its input
_NO_NUMBERS = (  # they change neither what the network computes nor what it learns
    "loss.classes",  # the head's shape says it
    "loss.initial_scale",  # of a head that has been trained since
    "loss.teacher.average_head",  # nothing reads that average
)
_STATISTICS = {"batch", "instance", "item", "frame", "across_items"}  # norms over several tokens


def check_written(
    model: Any, read: Imported, name: str, *, training_only: tuple[str, ...] = (), objective: bool = True
) -> None:
    """Compare what `read` (the format's reader, given what is about to be written) says with the opened model.

    training_only: globs of keys that the format has no place for and that only further training would miss: they are
    named on stderr. Any other difference is a CheckpointError: the file would be another network, or train on towards
    another objective. objective: whether the format has it; a backbone under a loss that it lacks goes out alone.
    """
    loss = model.recipe["loss"]["name"]
    objective = objective and read.loss["name"] == loss
    c = model.backbone.config
    theirs = _facts(
        model, _structured(type(c), read.backbone, "backbone"), read.frontend, read.loss if objective else {}
    )
    ours = _facts(model, c, model.frontend.config, model.recipe["loss"] if objective else {})
    lost = [] if objective else [f"the loss {loss}, its head and its teacher"]
    for key in sorted(ours.keys() | theirs.keys()):
        own, said = ours.get(key), theirs.get(key)
        if _same(own, said) or key in _NO_NUMBERS:
            continue
        if any(fnmatch.fnmatchcase(key, glob) for glob in training_only):
            lost.append(f"{key} = {_short(own)}")
            continue
        raise CheckpointError(
            f"{name} has no place for {key} = {_short(own)}: the file would say {_short(said)}",
            fix=f"export to another format, or, where that is as good, set it so in a copy of {model.path}/recipe.toml",
        )
    if lost:
        print(f"note: {name} has no place for {', '.join(lost)}", file=sys.stderr)


def _structured(cls: type, table: Mapping[str, Any], where: str) -> Any:
    return structure(cls, {k: v for k, v in table.items() if k != "name"}, where)


def _facts(model: Any, backbone: Any, frontend: Any, loss: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and comparable values. frontend: a configuration, or the table that a reader gave; loss: a table, or
    {} to leave it out."""
    (modality,) = model.backbone.modalities
    if isinstance(frontend, Mapping):
        kind = load("backbone", model.recipe["backbone"]["name"], "frontend_config")
        frontend = _structured(kind, frontend, "frontend")
    seen = {f"frontend.{k}": getattr(frontend, k) for k in _FRONTEND[modality] if hasattr(model.frontend.config, k)}
    out = _flat("backbone", _backbone(backbone)) | seen
    if not loss:
        return out
    objective = _structured(load("loss", loss["name"], "config"), loss, "loss")
    if getattr(objective, "class_token", False):  # no pooled patches are deployed
        out.pop("backbone.pooled_norm", None)
    return out | _flat("loss", _loss(objective, model, backbone))


def _flat(where: str, value: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value):
        return {where: value}
    out: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        out |= _flat(f"{where}.{f.name}", getattr(value, f.name))
    return out


def _short(value: Any) -> str:
    """A value as an error shows it."""
    short = reprlib.Repr()
    short.maxtuple = 3
    return short.repr(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9)
    return a == b


# -- one way to say what can be said in several ------------------------------------------------------------------------
def _backbone(c: Any) -> Any:
    """The same network, with what does not matter in it set to one value."""
    if isinstance(c, (AudioConfig, Audio2Config)) and c.positions_depth > 0:
        kernel = max(3, c.positions_width // c.positions_depth)
        c = dataclasses.replace(c, positions_width=kernel * c.positions_depth)
    if isinstance(c, Multi2Config):
        alibi = c.alibi if c.alibi.use else AlibiConfig()
        if not isinstance(c, Vision2Config):
            alibi = dataclasses.replace(alibi, distance="manhattan")
        c = dataclasses.replace(c, alibi=alibi, mend_norm_first=c.mend_norm_first and c.norm_first)
    if isinstance(c, Vision2Config) and c.patch_dim == c.dim:
        c = dataclasses.replace(c, patch_dim=None)
    return c


def _loss(o: Any, model: Any, c: Any) -> Any:
    """The same objective, with what does not matter for this modality set to one value."""
    (modality,) = model.backbone.modalities
    padded = modality != "vision" and model.recipe.get("frontend", {}).get("crop") != "shortest"
    if isinstance(o, (Data2VecConfig, Data2Vec2Config)):
        own = c.dim**-0.5 if o.scale is None else o.scale
        o = dataclasses.replace(
            o, targets=_targets(o.targets, c.depth, padded), teacher=_teacher(o.teacher, model), scale=own
        )
    if isinstance(o, Data2VecConfig):
        o = _first(o, modality, c)
    elif isinstance(o, Data2Vec2Config):
        o = dataclasses.replace(o, mask=_mask(o.mask, padded))
    elif hasattr(o, "spans"):
        spans = _spans(o.spans) if o.spans.probability > 0 else SpanConfig(probability=0.0)
        channels = _channels(o.channels)
        o = dataclasses.replace(
            o, spans=spans, channels=channels, channels_first=o.channels_first and channels.probability > 0
        )
    return o


def _first(o: Data2VecConfig, modality: str, c: Any) -> Data2VecConfig:
    assert o.scale is not None
    mean = o.scale if o.reduction == "mean" else o.scale * c.dim
    channels = _channels(o.channels)
    return dataclasses.replace(
        o,
        modalities=() if o.modalities == (modality,) else o.modalities,
        scale=mean,
        reduction="mean",
        absolute=o.absolute and o.beta == 0,
        variance_weight=o.variance_weight * o.scale / mean if o.variance_weight else 0.0,
        variance_margin=o.variance_margin if o.variance_weight else 0.5,
        spans=_spans(o.spans) if modality == "audio" else SpanConfig(),
        blocks=_blocks(o.blocks, (c.image_size // c.patch) ** 2) if modality == "vision" else BlockConfig(),
        tokens=o.tokens if modality == "text" else TokenConfig(),
        channels=channels,
        channels_first=o.channels_first and channels.probability > 0,
    )


def _targets(t: TargetConfig, depth: int, padded: bool) -> TargetConfig:
    indices = t.indices or tuple(range(max(0, depth - t.top_k), depth))
    counted = t.count_padding or not padded or not _STATISTICS & {*t.per_layer, *t.mean}
    return dataclasses.replace(t, indices=tuple(sorted(indices)), top_k=0, count_padding=counted)


def _teacher(t: Any, model: Any) -> Any:
    """Globs become the parameters that they name, of those that such a teacher has."""
    local = () if t.own_local else getattr(model.backbone, "local_parts", ("extractor", "feature_norm", "project"))
    names = [n for n, _ in model.backbone.named_parameters() if n.split(".")[0] not in local]
    copied = tuple(n for n in names if any(fnmatch.fnmatchcase(n, glob) for glob in t.copied))
    return dataclasses.replace(t, copied=copied, start=t.start if t.anneal else t.end)


def _spans(s: SpanConfig) -> SpanConfig:
    return dataclasses.replace(
        s,
        other=0.0 if s.selection in ("static", "poisson") else s.other,
        add=s.add and s.same_count,
        min_space=1 if s.overlap else s.min_space,
    )


def _channels(s: SpanConfig) -> SpanConfig:
    return _spans(s) if s.probability > 0 else SpanConfig(probability=0.0)


def _blocks(b: BlockConfig, patches: int) -> BlockConfig:
    count = round(b.count * patches) if b.count < 1 else int(b.count)
    return dataclasses.replace(b, count=count, max_patches=count if b.max_patches is None else b.max_patches)


def _mask(m: Mask2Config, padded: bool) -> Mask2Config:
    random = m.kind == "random" or (m.kind == "blocks" and m.length <= 1)
    m = dataclasses.replace(m, over_padding=m.over_padding or not padded)
    return dataclasses.replace(m, kind="random", length=1) if random else m
