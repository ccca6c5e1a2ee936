"""embed: clips to vectors in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from avssl.cli.output import print_json, say
from avssl.errors import check
from avssl.words import counted


def embed(
    paths: Annotated[list[str], Argument(metavar="PATH...", help="Folders of media, manifests, or files.")],
    model: ModelPath,
    out: Annotated[Path, Option(help="The file to write: .parquet, .npz or .safetensors.")],
    format: Format = "",
    option: ReaderOptions = None,
    stream: Annotated[list[str] | None, Option(help="A stream to keep, e.g. audio or joint; default: all.")] = None,
    layer: Annotated[int | None, Option(help="Features of this block (0 first, -1 last); needs --pooling.")] = None,
    pooling: Annotated[str, Option(help="model, mean, cls or max: how tokens become one vector.")] = "model",
    sequence: Annotated[bool, Option("--sequence", help="Keep the tokens, not one vector per clip.")] = False,
    normalize: Annotated[bool, Option("--normalize", help="Vectors of length one.")] = False,
    views: Annotated[
        str,
        Option(
            help="all: the mean of the frontend's views (frames, windows of a long recording); "
            "one: its single evaluation view."
        ),
    ] = "all",
    window: Annotated[float | None, Option(help="Cut recordings into windows of these seconds; their mean.")] = None,
    hop: Annotated[float | None, Option(help="Seconds from window to window; default: side by side.")] = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    on_bad: OnBad = "skip",
    max_bad: Annotated[float, Option(help="Share of the items that may be unreadable.", min=0, max=1)] = 1.0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an output of other options or data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed clips: one vector per clip and stream, with ids. Killed, the same command goes on; started several times,
    the processes share the work. What could not be read is listed in bad_files.csv beside the output."""
    from avssl.embedding.encode import EmbedOptions
    from avssl.embedding.files import check_suffix
    from avssl.progress import shown
    from avssl.schema import structure

    check(on_bad in ("skip", "fail"), f"--on-bad {on_bad}", fix="skip or fail")
    check(views in ("all", "one"), f"--views {views}", fix="all or one")
    check_suffix(out)
    given = {
        "streams": stream or [],
        "layer": layer,
        "pooling": pooling,
        "sequence": sequence,
        "normalize": normalize,
        "views": views,
        "precision": settled(precision, device),
        "window": window,
        "hop": hop,
    }
    options = structure(EmbedOptions, {k: v for k, v in given.items() if v is not None})
    need_model(model)
    rows = rows_of(paths)
    from avssl.embedding.job import embed as run
    from avssl.search.index import prepare

    with shown():
        done = run(
            opened(model, format, device, reader_options(option)),
            rows,
            out,
            options,
            batch_size=batch_size,
            workers=worker_count(workers, len(rows)),
            on_bad=on_bad,
            max_bad=max_bad,
            overwrite=overwrite,
        )
    prepare(done.out)
    if as_json:
        print_json(
            {
                "out": str(done.out),
                "rows": done.rows,
                "failed": done.failed,
                "streams": done.streams,
                "bad_files": str(done.bad_files),
            }
        )
    shapes = ", ".join(f"{name} {width}-dimensional" for name, width in done.streams.items())
    say(f"{counted(done.rows, 'clip')} in {done.out} ({shapes})")
    if done.failed:
        say(f"{counted(done.failed, 'clip')} could not be embedded: {done.bad_files}")
    say(f"next: `avssl search {done.out} QUERY` with an id, a file or a text")
