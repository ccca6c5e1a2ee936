"""A protocol by its name, on a model and data by their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avssl.errors import check
from avssl.evaluation.gates import check_names, parsed
from avssl.evaluation.labels import splits_of
from avssl.evaluation.report import Report
from avssl.inputs import need_model, opened, rows_of, settled, worker_count
from avssl.recipe import apply_override
from avssl.registry import load, registry
from avssl.schema import keys, structure


def run(
    model: str | Path,
    data: Sequence[str | Path],
    task: str,
    *,
    train: Sequence[str | Path] | None = None,
    format: str = "",
    options: Mapping[str, Any] | None = None,
    split: str = "",
    overrides: Sequence[str] = (),
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    on_bad: str = "skip",
    under: Sequence[str] = (),
    over: Sequence[str] = (),
) -> Report:
    """The report of a registered protocol, from the words of the command line. under, over: gates that are refused here,
    before the work, when they name a metric that the protocol cannot give."""
    parsed(under, over)
    config_class = load("evaluation", task, "config")  # an unknown task is an error before data are read
    table: dict[str, Any] = {}
    for override in overrides:
        apply_override(table, override)
    need_model(model)
    rows = rows_of(data)
    half = settled(precision, device)
    check(
        half == "fp32" or "precision" in keys(config_class),
        f"--precision {precision}: {task} computes in fp32",
        fix="leave it out",
    )
    machine = {"batch_size": batch_size, "workers": worker_count(workers, len(rows)), "on_bad": on_bad}
    given = machine | ({"split": split} if split else {}) | ({"precision": half} if precision != "fp32" else {})
    table = {k: v for k, v in given.items() if k in keys(config_class)} | table
    config = structure(config_class, table, "--set")
    splits = splits_of(rows)
    if train:
        name = getattr(config, "train_split", "train")
        evaluated = {k: v for k, v in splits.items() if k != name} or {"test": splits[name]}
        splits = {**({"test": evaluated[""]} if set(evaluated) == {""} else evaluated), name: rows_of(train)}
    check(bool(rows), "no data", fix="give a folder or a manifest")
    opened_model = opened(model, format, device, options)
    if (under or over) and registry().get("evaluation", task).names:
        check_names(list(load("evaluation", task, "names")(opened_model, config)), under, over)
    return load("evaluation", task)(opened_model, splits, config)
