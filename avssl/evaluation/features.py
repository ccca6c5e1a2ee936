"""Frozen features of splits, embedded once per row however many streams and folds look at them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.data.bad import BadFiles
from avssl.data.clip import Row
from avssl.data.split import few_rows
from avssl.embedding.encode import EmbedOptions, Vectors, embed_rows
from avssl.errors import DataError, UsageError, check, nearest
from avssl.evaluation.configs import EvaluationConfig, FeatureConfig, RetrievalConfig
from avssl.evaluation.labels import Splits, encode, evaluation_split, label_codec, labelled, named_split
from avssl.evaluation.report import Report
from avssl.evaluation.scoring import score
from avssl.registry import registry
from avssl.words import counted, none_of

if TYPE_CHECKING:
    from avssl.model import Model


def embed_split(
    model: Model, rows: Sequence[Row], streams: Sequence[str], config: EvaluationConfig, report: Report
) -> tuple[list[Row], Vectors]:
    """(the rows that could be read, their vectors); what could not is noted in the report."""
    bad = BadFiles()
    options = EmbedOptions(streams=tuple(streams), views=config.views, precision=config.precision)
    if isinstance(config, FeatureConfig):
        options = replace(options, layer=config.layer, pooling=config.pooling)
    if isinstance(config, RetrievalConfig):
        options = replace(
            options, pooling=config.pooling, views=options.views if config.compare == "vector" else "each"
        )
    vectors = embed_rows(
        model, rows, options, batch_size=config.batch_size, workers=config.workers, on_bad=config.on_bad, bad=bad
    )
    note_bad(report, bad)
    check(
        len(vectors) > 0,
        f"{none_of(len(rows), 'item')} could be read",
        fix=f"the first: {next(iter(bad.items.values())).reason}" if bad.items else "check the data",
        error=DataError,
    )
    return [rows[i] for i in vectors.indices], vectors


def note_bad(report: Report, bad: BadFiles) -> None:
    report.bad += [item._asdict() for item in bad.items.values()]


def probe_streams(model: Model, config: FeatureConfig) -> tuple[list[str], list[str]]:
    """(streams or joined streams to evaluate, single streams to embed)."""
    widths = model.backbone.widths()
    wanted = list(config.streams) or list(widths)
    single = list(dict.fromkeys(part for name in wanted for part in name.split("+")))
    for name in single:
        if name not in widths:
            raise UsageError(f"streams: the model gives no {name!r}", fix=nearest(name, set(widths)))
    return wanted, single


def matrix(vectors: Vectors, name: str) -> tuple[np.ndarray, np.ndarray]:
    """((N, D) features of a stream, or of several joined by "+", (N,) bool: which items have them all)."""
    parts = [vectors[part] for part in name.split("+")]
    present = np.logical_and.reduce([vectors.present[part] for part in name.split("+")])
    return np.concatenate(parts, axis=1), present


def protocol(config: EvaluationConfig, **facts: Any) -> dict[str, Any]:
    """The options of a protocol and what was made of them, for the report."""
    from avssl.schema import unstructure

    out = unstructure(config)
    for machine in ("batch_size", "workers"):  # they change nothing that is reported
        out.pop(machine, None)
    return {**out, **facts}


def on_features(task: str, model: Model, splits: Splits, config: FeatureConfig, fit: Any) -> Report:
    """Embed two splits, fit on one, score the other, stream by stream.

    fit: `(train features, labels, test features, config, groups) -> (scores, facts)`.
    """
    split, test = evaluation_split(splits, config.split, config.limit)
    check(
        split != config.train_split,
        f"the {split!r} split is both trained and evaluated on",
        fix="give a manifest with a split column (`avssl data split`), or --task kfold",
        error=DataError,
    )
    if not splits.get(config.train_split):
        raise DataError(
            f"{task} needs a {config.train_split!r} split to fit on",
            fix="give a manifest with a split column (`avssl data split`), --train DATA, or --task kfold",
        )
    train = named_split(splits, config.train_split, config.limit)
    train, test = labelled(train), labelled(test)
    if config.per_class is not None:
        train = few_rows(train, config.per_class, seed=config.seed)
    names, single = probe_streams(model, config)
    codec = label_codec(train)
    _apart(train, test)
    report = Report(task, protocol=protocol(config, split=split, streams=names, target=codec.kind))
    encode(test, codec)  # a label that training does not know is an error before anything is computed
    train, known = embed_split(model, train, single, config, report)
    test, asked = embed_split(model, test, single, config, report)
    report.n |= {"train": len(train), "test": len(test)}
    chosen = {}
    for name in names:
        (x, has), (z, there) = matrix(known, name), matrix(asked, name)
        if not has.any() or not there.any():
            continue
        rows, asked_rows = _where(train, has), _where(test, there)
        scores, facts = fit(x[has], encode(rows, codec), z[there], config, [r.group for r in rows])
        score(report, f"{task}.{name}", scores, encode(asked_rows, codec), config)
        chosen[name] = facts
        if there.sum() < len(test):
            report.n[f"{task}.{name}.test"] = int(there.sum())
    report.protocol["fitted"] = chosen
    return report


def _apart(train: Sequence[Row], test: Sequence[Row]) -> None:
    """Raises DataError where a clip is both. Files tell, not ids: two folders may each have their "dog/1.wav"; and not
    texts, which people write more than once."""
    inline = {e.name for e in registry().all("modality") if e.inline}
    known = {_clip(row, inline) for row in train} - {None}
    twice = [row.id for row in test if _clip(row, inline) in known]
    check(
        not twice,
        f"{counted(len(twice), 'clip')} of {len(test)} would be both trained and evaluated on, the first: {(*twice, '')[0]!r}",
        fix="evaluate on a split of other clips (--split), or --task kfold",
        error=DataError,
    )


def _clip(row: Row, inline: Collection[str]) -> tuple | None:
    """What makes two rows the same piece of the same files; None for a row without files."""
    files = {m: [s] if isinstance(s, str) else s for m, s in sorted(row.parts.items()) if m not in inline}
    return (*[(m, *map(os.path.abspath, paths)) for m, paths in files.items()], row.start, row.end) if files else None


def _where(rows: Sequence[Any], mask: np.ndarray) -> list[Any]:
    return [row for row, kept in zip(rows, mask, strict=True) if kept]
