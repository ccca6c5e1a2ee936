"""predict: labels of clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

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
from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say
from avssl.errors import UsageError, check
from avssl.words import counted


def predict(
    paths: Annotated[list[str], Argument(metavar="PATH...", help="Folders of media, manifests, or files.")],
    model: ModelPath,
    out: Annotated[Path | None, Option(help="Also write .json or .csv.")] = None,
    format: Format = "",
    option: ReaderOptions = None,
    threshold: Annotated[
        float | None,
        Option(help="Score that a label has to exceed; default: 0.5 where a clip may have several labels, else 0."),
    ] = None,
    top: Annotated[int, Option(help="Labels shown per clip.", min=1)] = 5,
    views: Annotated[str, Option(help="all: average over the frontend's views; one: a single view.")] = "all",
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    on_bad: OnBad = "skip",
    as_json: AsJson = False,
) -> None:
    """Predict labels with scores, by a fine-tuned model. Scores are probabilities, averaged over the views."""
    from avssl.data.bad import BadFiles
    from avssl.progress import shown

    check(on_bad in ("skip", "fail"), f"--on-bad {on_bad}", fix="skip or fail")
    check(views in ("all", "one"), f"--views {views}", fix="all or one")
    check(threshold is None or 0 <= threshold <= 1, f"--threshold {threshold}", fix="give a score from 0 to 1")
    if out is not None and out.suffix not in (".json", ".csv"):
        raise UsageError(
            f"{out}: what format is {out.suffix or 'a name without an ending'}?", fix="end it with .json or .csv"
        )
    need_model(model)
    rows = rows_of(paths)
    precision = settled(precision, device)
    from avssl.prediction import predict_rows

    bad = BadFiles()
    with shown():
        found = predict_rows(
            opened(model, format, device, reader_options(option)),
            rows,
            views=views,
            batch_size=batch_size,
            workers=worker_count(workers, len(rows)),
            on_bad=on_bad,
            bad=bad,
            precision=precision,
        )
    records = found.plain(threshold, top)
    failed = [item._asdict() for item in bad.items.values()]
    document = {
        "model": model,
        "classes": list(found.classes),
        "threshold": found.bar(threshold),
        "views": views,
        "precision": precision,
        "predictions": records,
        "failed": failed,
    }
    if out is not None:
        _write(out, document)
        say(f"{counted(len(records), 'clip')} in {out}")
    if as_json:
        print_json(document)
    elif found.kind == "float":
        print_table(("id", "value"), [(r["id"], f"{r['value']:.4f}") for r in records])
    else:
        scores = [", ".join(f"{x['label']} {x['score']:.3f}" for x in r["labels"]) for r in records]
        print_table(
            ("id", "label", "scores"), [(r["id"], r["label"] or "-", s) for r, s in zip(records, scores, strict=True)]
        )
    for item in bad.items.values():
        say(f"not predicted: {item.line}")


def _write(out: Path, document: dict[str, Any]) -> None:
    """JSON with everything, or CSV with the labels alone."""
    from avssl.files import replacing, write_json

    if out.suffix == ".json":
        write_json(out, document)
        return
    import csv

    with (
        replacing(out) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("id", "rank", "label", "score"))
        for record in document["predictions"]:
            if "value" in record:
                writer.writerow((record["id"], 1, "", f"{record['value']:.6g}"))
            for rank, one in enumerate(record.get("labels", ()), 1):
                writer.writerow((record["id"], rank, one["label"], f"{one['score']:.6f}"))
