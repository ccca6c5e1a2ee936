"""evaluate: a model on labelled data or pairs, as a table, as JSON, and as a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from avssl.cli.inputs import (
    BatchSize,
    Device,
    Format,
    ModelPath,
    OnBad,
    Precision,
    ReaderOptions,
    Workers,
    need_model,
    opened,
    reader_options,
    rows_of,
    settled,
    worker_count,
)
from avssl.cli.listing import AsJson, complete
from avssl.cli.output import print_json, print_table, say
from avssl.data.bad import BadItem
from avssl.errors import Exit, GateError, check
from avssl.words import counted

if TYPE_CHECKING:
    from avssl.evaluation.report import Report


def evaluate(
    model: ModelPath,
    data: Annotated[list[str], Option(help="A folder of media, a manifest, or a known layout; repeat to join.")],
    task: Annotated[
        str,
        Option(
            help="retrieval, probe, knn, kfold, classification, or a plugin's protocol.",
            autocompletion=lambda: complete("evaluation"),
        ),
    ],
    train: Annotated[list[str] | None, Option(help="Training data, when --data has no train split.")] = None,
    format: Format = "",
    option: ReaderOptions = None,
    split: Annotated[
        str, Option(help="Split to evaluate on, or all; default: test, else eval, else val, valid, validation or dev.")
    ] = "",
    overrides: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change the protocol.")] = None,
    fail_under: Annotated[
        list[str] | None,
        Option(metavar="NAME=VALUE", help="Exit with code 5 when this metric, or any whose name begins so, is below."),
    ] = None,
    explain: Annotated[bool, Option("--explain", help="Say what each metric means and how it was computed.")] = False,
    out: Annotated[Path | None, Option(help="Where to write the report; default: MODEL/evaluations/TASK.json.")] = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    on_bad: OnBad = "skip",
    as_json: AsJson = False,
) -> None:
    """Evaluate a model: retrieval, linear probe, nearest neighbours, k-fold, or its own classification head."""
    from avssl.evaluation.gates import check_gates, parse
    from avssl.progress import shown

    for gate in fail_under or []:
        parse(gate)  # a mistake is an error before the work, not after it
    with shown():
        report = run(
            model,
            data,
            task,
            train=train,
            format=format,
            options=reader_options(option),
            split=split,
            overrides=overrides or [],
            batch_size=batch_size,
            workers=workers,
            device=device,
            precision=precision,
            on_bad=on_bad,
            gates=fail_under or [],
        )
    written = _write(report, out, Path(model), task)
    if as_json:
        print_json(report.plain())
    else:
        print_table(("metric", "value", "interval", "chance"), report.table())
    if explain:
        from avssl.evaluation.explain import explain as lines

        for line in lines(report):
            say(line) if as_json else print(line)
    if report.bad:
        say(f"{counted(len(report.bad), 'item')} could not be used; the first: {BadItem(**report.bad[0]).line}")
    if written:
        say(f"the report is {written}")
    try:
        checked = check_gates(report.metrics, fail_under or [])
    except GateError as error:
        assert error.code == Exit.GATE
        raise
    if checked:
        say(f"gates passed: {', '.join(checked)}")


def run(
    model: str,
    data: list[str],
    task: str,
    *,
    train: list[str] | None = None,
    format: str = "",
    options: Mapping[str, Any] | None = None,
    split: str = "",
    overrides: list[str] | tuple[str, ...] = (),
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    on_bad: str = "skip",
    gates: Sequence[str] = (),
) -> Report:
    """The report of a registered protocol, from the same words as the command line. gates: refused when they name a
    metric that the protocol cannot give."""
    from avssl.evaluation.gates import check_names
    from avssl.recipe import apply_override
    from avssl.registry import load, registry
    from avssl.schema import keys, structure

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
    from avssl.evaluation.labels import splits_of

    splits = splits_of(rows)
    if train:
        name = getattr(config, "train_split", "train")
        evaluated = {k: v for k, v in splits.items() if k != name} or {"test": splits[name]}
        splits = {**({"test": evaluated[""]} if set(evaluated) == {""} else evaluated), name: rows_of(train)}
    check(bool(rows), "no data", fix="give a folder or a manifest")
    opened_model = opened(model, format, device, options)
    if gates and registry().get("evaluation", task).names:
        check_names(list(load("evaluation", task, "names")(opened_model, config)), gates)
    return load("evaluation", task)(opened_model, splits, config)


def _write(report: Report, out: Path | None, model: Path, task: str) -> Path | None:
    """The report as JSON: where asked, else in the model directory when it can be written to."""
    import os

    if out is None:
        if not (model / "recipe.toml").is_file() or not os.access(model, os.W_OK):
            return None
        (model / "evaluations").mkdir(exist_ok=True)
        out = model / "evaluations" / f"{task.replace('/', '-')}.json"
    report.write(out)
    return out
