"""evaluate: a model on labelled data or pairs, as a table, as JSON, and as a gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    reader_options,
)
from avssl.cli.listing import AsJson, complete
from avssl.cli.output import print_json, print_table, say
from avssl.data.bad import BadItem
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
    fail_over: Annotated[
        list[str] | None,
        Option(metavar="NAME=VALUE", help="The same of metrics that are better when lower, such as speech.wer: above."),
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
    from avssl.evaluation.run import run
    from avssl.progress import shown

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
            under=fail_under or [],
            over=fail_over or [],
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
    if checked := report.hold(fail_under or [], fail_over or []):
        say(f"gates passed: {', '.join(checked)}")


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
