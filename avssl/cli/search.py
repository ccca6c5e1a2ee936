"""search: nearest clips of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from avssl.cli.inputs import ReaderOptions, reader_options
from avssl.cli.listing import AsJson
from avssl.cli.output import print_json, print_table, say
from avssl.errors import check


def search(
    index: Annotated[Path, Argument(metavar="INDEX", help="A file that `avssl embed` made.")],
    query: Annotated[
        str, Argument(metavar="QUERY", help="An id of the index, a file (sound, picture, video), or a text.")
    ],
    source: Annotated[str, Option("--from", help="Stream of the query; default: joint, else the first it has.")] = "",
    to: Annotated[list[str] | None, Option(help="A stream of the index, e.g. vision; default: the query's.")] = None,
    top: Annotated[int, Option(help="Number of hits.", min=1)] = 10,
    model: Annotated[str, Option(help="The model, if it is not where it was when the index was made.")] = "",
    format: Annotated[str, Option(help="Format of a published checkpoint given as the model.")] = "",
    option: ReaderOptions = None,
    device: Annotated[str, Option(help="cpu, cuda, cuda:1, mps or auto, for a query that must be embedded.")] = "cpu",
    engine: Annotated[str, Option(help="exact, or faiss or usearch (approximate, for millions).")] = "exact",
    html: Annotated[Path | None, Option(help="Also write a page with pictures and sound, in one file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the nearest clips, within a modality or across. The index knows its model: a file or text needs no flag."""
    from avssl.search.index import search as run

    check(engine in ("exact", "faiss", "usearch"), f"--engine {engine}", fix="exact, faiss or usearch")
    if device == "auto":
        from avssl.training.setup import pick_device

        device = str(pick_device(device))
    answers = run(
        index,
        query,
        source=source,
        among=to or (),
        top=top,
        model=model,
        format=format,
        options=reader_options(option),
        device=device,
        engine=engine,  # type: ignore[arg-type]
    )
    if html is not None:
        from avssl.search.gallery import write_gallery

        write_gallery(answers, html)
        say(f"open {html}")
    if as_json:
        print_json([answer.plain() for answer in answers])
        return
    for answer in answers:
        rows = [(h.rank, h.id, f"{h.similarity:.4f}", ", ".join(h.labels), _where(h.media)) for h in answer.hits]
        print_table(("rank", "id", "cosine", "labels", "media"), rows, title=f"{answer.stream} -> {answer.among}")


def _where(media: dict) -> str:
    """The file (or text) of a hit, and its window."""
    first = next((v for k, v in media.items() if k not in ("start", "end")), "")
    text = str(first[0] if isinstance(first, list) else first)
    window = f" [{media.get('start', 0):g}-{media['end']:g} s]" if "end" in media else ""
    return text + window
