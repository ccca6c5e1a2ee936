"""export: a model as ONNX, C, ExecuTorch or LiteRT, or in a published format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from avssl.cli.inputs import ReaderOptions, need_model, reader_options
from avssl.cli.inputs import opened as open_model
from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, say
from avssl.errors import DataError, check, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from avssl.batch import Batch
    from avssl.data.clip import Row
    from avssl.model import Model


MOST = 2000  # clips to compare on unless asked for: they are held in memory, and each runs alone in each format
MADE_UP = (
    "compared on one made-up clip of faint noise, which says little: add --data CLIPS (and --fold N, to compare on that "
    "fold and calibrate on the others) to measure agreement and, with labels, accuracy"
)


def export(
    model: Annotated[Path, Argument(metavar="MODEL", help="A run or model directory.")],
    out: Annotated[Path, Option(help="Folder to write; must not exist.")],
    to: Annotated[
        list[str] | None,
        Option(help="onnx, onnx-int8, onnx-int8-dynamic, c, executorch, litert, or a format of `avssl import --list`."),
    ] = None,
    data: Annotated[
        str | None, Option(help="Clips to calibrate int8 and to compare on; with labels, accuracy too.")
    ] = None,
    fold: Annotated[int | None, Option(help="Compare on this fold of the data, calibrate on the others.")] = None,
    frontend: Annotated[
        bool, Option("--frontend/--no-frontend", help="Put the front end inside the ONNX graph.")
    ] = True,
    dynamic: Annotated[bool, Option("--dynamic", help="Leave the length (dimension 1) free in ONNX.")] = False,
    stream: Annotated[str, Option(help="Which embedding of a model without a head, e.g. audio.")] = "",
    calibrate: Annotated[int, Option(help="Calibration clips.")] = 128,
    test: Annotated[
        int | None, Option(help="Clips to compare on. [default: all of the fold or test split, at most 2000]")
    ] = None,
    format: Annotated[str, Option(help="Format of MODEL when it is a published checkpoint file.")] = "",
    option: ReaderOptions = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for other programs and devices, and say what each file costs and how it agrees with PyTorch."""
    from avssl.registry import load, registry

    need_model(model)
    check(
        not out.exists() or (out.is_dir() and not any(out.iterdir())),
        f"--out {out} exists already",
        fix="choose another directory",
    )
    from avssl.export.exporter import TARGETS, export_model, table
    from avssl.files import completing

    check(
        format not in TARGETS,
        f"--format is the format of MODEL, and {format!r} is something to export to",
        fix=f"--to {format}",
    )
    targets = to or ["onnx"]
    formats = registry().entries["format"]
    for name in targets:
        known = (*TARGETS, *formats)
        check(name in known, f"unknown target {name!r}", fix=nearest(name, known))
    writers = {n: load("format", n, "write") for n in targets if n not in TARGETS}
    targets = [t for t in targets if t in TARGETS]
    opened = open_model(model, format, options=reader_options(option))
    files: list[str] = []
    report: dict[str, Any] = {"files": []}
    with completing(out) as folder:
        for write in writers.values():
            files += [str(out / Path(p).relative_to(folder)) for p in write(opened, folder)]
        if targets:
            if frontend:
                opened = dataclasses.replace(opened, frontend=opened.frontend.portable())
            check(
                not folder.is_file(),
                f"--to {' --to '.join(writers)} writes one file, and other targets need a folder",
                fix="export it by itself",
            )
            calibration, held, note = _clips(opened, data, fold, calibrate, test)
            example = calibration if calibration is not None else _made_up(opened)
            report = export_model(
                opened,
                folder,
                targets,
                example=example,
                frontend=frontend,
                calibration=calibration,
                test=held if data is not None else example,
                note=note,
                stream=stream,
                dynamic=dynamic,
                name=str(opened.recipe.get("name", model.name)),
            )
    if as_json:
        print_json({**report, "published": files})
        return
    if targets:
        print(table(report))
        macs = f", {report['macs']:,} multiply-accumulates per clip" if "macs" in report else ""
        say(f"{report['parameters']:,} parameters{macs}; everything else is in {out / 'report.json'}")
    for file in files:
        print(file)


def _clips(
    model: Model, data: str | None, fold: int | None, calibrate: int, test: int | None
) -> tuple[Batch | None, Batch | None, str]:
    """Calibration clips, clips to compare on, and what they are: by fold, else by split, else all rows for both."""
    if data is None:
        return None, None, MADE_UP
    from avssl.data.manifest import read_rows
    from avssl.data.split import HELD_OUT

    rows = read_rows(data, modalities=model.frontend.modalities)
    if fold is not None:
        held, source = [r for r in rows if r.fold == fold], f"fold {fold}"
        train, other = [r for r in rows if r.fold != fold], "the other folds"
        check(
            bool(train and held),
            f"--fold {fold}: the data have no such fold",
            fix="give a manifest with a fold column",
            error=DataError,
        )
    else:
        split = next((s for s in HELD_OUT if any(r.split == s for r in rows)), None)
        held, source = [r for r in rows if split in (None, r.split)], f"split {split}" if split else "all the data"
        train, other = [r for r in rows if r.split == "train"], "split train"
        if not train:
            train, other = rows, "all the data"
    some, few = spread(train, calibrate), spread(held, MOST if test is None else test)
    first, second = _batch(model, some), _batch(model, few)
    note = f"compared on {_share(second, held)} of {source}; int8 is calibrated on {_share(first, train)} of {other}"
    if {r.id for r in some} & {r.id for r in few}:
        note += (
            ": the same clips, perhaps those that the model was trained on, so agreement and accuracy are flattered "
            "(give --fold N, or data with a test split)"
        )
    return first, second, note


def _share(batch: Batch, rows: Sequence[Row]) -> str:
    return f"all {len(rows)} clips" if len(batch) == len(rows) else f"{len(batch)} of {len(rows)} clips"


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows, the first and the last among them, at even distances: data sorted by class lose no class."""
    import numpy as np

    check(count > 0, f"{count} clips are asked for", fix="give at least 1 to --test and --calibrate")
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def _batch(model: Model, chosen: Sequence[Row]) -> Batch:
    """The rows in one batch of equal shapes; labels only where all are known to the model."""
    from avssl.batch import Batch
    from avssl.data.loader import evaluation_batches

    known = model.codec is not None and all(r.labels and set(r.labels) <= set(model.codec.classes) for r in chosen)
    batches = [
        b
        for _, _, b in evaluation_batches(
            chosen, model.frontend, batch_size=32, views=False, codec=model.codec if known else None
        )
    ]
    check(bool(batches), "none of the clips could be read", fix="see `avssl data check`", error=DataError)
    shapes = {tuple(s.x.shape[1:] for s in b.streams.values()) for b in batches}
    if len(shapes) > 1:  # an exported graph has one shape: the most frequent length
        widest = max(
            shapes, key=lambda s: sum(len(b) for b in batches if tuple(x.x.shape[1:] for x in b.streams.values()) == s)
        )
        batches = [b for b in batches if tuple(s.x.shape[1:] for s in b.streams.values()) == widest]
    return Batch.cat(batches)


def _made_up(model: Model) -> Batch:
    """An item to fix the shapes and to compare on when there are no data: faint noise as long as a clip, a grey picture, a word."""
    import numpy as np

    from avssl.data.clip import Clip, Frames, Waveform

    seconds = model.frontend.seconds or 5.0
    noise = np.random.default_rng(0).normal(0, 1e-3, (1, round(16000 * seconds))).astype(np.float32)
    made = {
        "audio": Waveform(noise, 16000),
        "vision": Frames(np.full((1, 224, 224, 3), 128, np.uint8)),
        "text": "sound",
    }
    wanted = sorted(model.frontend.modalities)
    check(
        set(wanted) <= set(made),
        f"no example of {', '.join(set(wanted) - set(made))} can be made up",
        fix="give --data",
        error=DataError,
    )
    return model.frontend.item([Clip("example", {m: made[m] for m in wanted})], None)
