"""avssl data: scan, check, split, show, stats, prepare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from avssl.cli.output import print_json, print_table, say
from avssl.errors import Exit, UsageError, check

app = typer.Typer(help="Look at data, check them, split them, prepare them.", no_args_is_help=True)
Data = Annotated[str, Argument(metavar="PATH", help="A folder of media, a manifest, or a known layout.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
Workers = Annotated[int | None, Option(help="Processes; default: chosen from the cores.")]
Out = Annotated[Path | None, Option(help="Write this manifest (.parquet, .csv or .jsonl).")]


@app.command()
def scan(
    data: Data,
    out: Out = None,
    depth: Annotated[str, Option(help="headers, sample (all sound, three frames), or full (every frame).")] = "sample",
    bad: Annotated[Path | None, Option(help="List of unusable files; default: bad_files.csv beside --out.")] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Look at every file: what it carries, how long it is, what cannot be used and why."""
    from avssl.data.bad import BadFiles
    from avssl.data.manifest import read_rows, write_rows
    from avssl.data.scan import DEPTHS
    from avssl.data.scan import scan as run
    from avssl.errors import DataError, nearest

    check(depth in DEPTHS, f"--depth {depth}: no such depth", fix=nearest(depth, DEPTHS))
    _fresh(out)
    rows = read_rows(data)
    with _progress("scanning", len(rows)) as step:
        found = run(rows, depth=depth, workers=_workers(workers, len(rows)), progress=step)
    listing = bad or (out.parent / "bad_files.csv" if out is not None else None)
    if listing is not None:
        listing.unlink(missing_ok=True)
        BadFiles(listing).add(found.bad)
    if out is not None and found.rows:
        write_rows(found.rows, out)
    summary = found.summary()
    if as_json:
        print_json({**summary, "out": str(out) if out else None, "bad_files": [b._asdict() for b in found.bad]})
    else:
        _print_summary(summary)
        if found.bad:
            print_table(
                ("what", "file", "reason"),
                [(b.what, _short(b.path), _reason(b)) for b in found.bad],
                title=f"{len(found.bad)} problems",
            )
    if not found.rows:
        raise DataError(f"{data}: none of its {len(rows)} items can be used", fix="see the reasons above")


@app.command("check")
def check_(
    data: Data,
    content: Annotated[bool, Option(help="Decode everything to find copies.")] = True,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Find what spoils results: copies and groups across splits, unreadable files. Exit code 3 if there is any."""
    from dataclasses import asdict

    from avssl.data.check import Problem, check_rows
    from avssl.data.fingerprint import fingerprints
    from avssl.data.manifest import read_rows
    from avssl.data.scan import scan as look

    rows = read_rows(data)
    processes = _workers(workers, len(rows))
    problems = []
    prints = None
    if content:
        with _progress("reading", len(rows)) as step:
            found = look(rows, workers=processes, progress=step)
        problems = [Problem("unreadable", b.reason, (b.id,)) for b in found.bad if b.what != "missing"]
        say("comparing")
        prints = fingerprints(rows, processes)
    problems += check_rows(rows, prints)
    grave = sum(p.grave for p in problems)
    if as_json:
        print_json({"items": len(rows), "grave": grave, "problems": [asdict(p) for p in problems]})
    else:
        print_table(
            ("", "kind", "what"),
            [("!" if p.grave else "", p.kind, p.message) for p in problems],
            title=f"{len(rows)} items, {grave} grave problems, {len(problems) - grave} others",
        )
    if grave:
        raise typer.Exit(int(Exit.DATA))


@app.command()
def split(
    data: Data,
    out: Annotated[Path, Option(help="Manifest to write (.parquet, .csv or .jsonl).")],
    shares: Annotated[list[str] | None, Option("--share", metavar="NAME=SHARE", help="e.g. --share train=0.8")] = None,
    folds: Annotated[int | None, Option(help="Number folds 1..N instead of naming splits.")] = None,
    seed: Annotated[int, Option(help="Another seed, another split.")] = 0,
    content: Annotated[bool, Option(help="Keep copies in one split; decodes everything.")] = True,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Divide a data set: groups, files and copies stay together, every class keeps its share."""
    from collections import Counter

    from avssl.data.fingerprint import fingerprints
    from avssl.data.manifest import read_rows, write_rows
    from avssl.data.split import fold_rows, split_rows

    check(not (shares and folds), "--share and --folds exclude each other", fix="give one of the two")
    _fresh(out)
    rows = read_rows(data)
    prints = fingerprints(rows, _workers(workers, len(rows))) if content else None
    wanted = _shares(shares) if shares else {"train": 0.8, "val": 0.1, "test": 0.1}
    if folds:
        divided = fold_rows(rows, folds, seed=seed, prints=prints)
    else:
        divided = split_rows(rows, wanted, seed=seed, prints=prints)
    write_rows(divided, out)
    places = Counter(str(r.fold) if folds else r.split for r in divided)
    if as_json:
        print_json({"out": str(out), "items": dict(sorted(places.items())), "seed": seed})
    else:
        print_table(
            ("fold" if folds else "split", "items", "share"),
            [(p, n, f"{n / len(divided):.3f}") for p, n in sorted(places.items())],
        )


@app.command()
def show(
    data: Data,
    count: Annotated[int, Option("-n", "--count", help="Rows to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """The first rows as avssl reads them, and counts; nothing is decoded."""
    from avssl.data.manifest import read_rows
    from avssl.data.scan import Scan
    from avssl.schema import unstructure

    rows = read_rows(data)
    summary = Scan(rows).summary()
    if as_json:
        print_json({**summary, "rows": [unstructure(r) for r in rows[:count]]})
        return
    _print_summary(summary)
    print_table(
        ("id", "labels", "split", "group", "parts"),
        [
            (
                r.id,
                "; ".join(r.labels),
                r.split,
                r.group,
                ", ".join(
                    f"{m}={_short(s if isinstance(s, str) else f'{s[0]} (+{len(s) - 1})')}" for m, s in r.parts.items()
                ),
            )
            for r in rows[:count]
        ],
    )


@app.command()
def stats(
    recipe: Annotated[str, Argument(help="A recipe; its frontend is what is measured.")],
    data: Annotated[str, Option(help="A folder of media, a manifest, or a known layout.")],
    stream: Annotated[str, Option(help="Which stream.")] = "audio",
    overrides: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change the recipe.")] = None,
    limit: Annotated[int | None, Option(help="Only so many items, spread over the data.")] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Mean and standard deviation for the frontend's normalisation, ready to paste."""
    from avssl.data.manifest import read_rows
    from avssl.data.stats import frontend_stats
    from avssl.recipe import Recipe, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if not isinstance(loaded, Recipe):
        raise UsageError(f"{recipe} is a pipeline", fix="give one of its stages' recipes")
    rows = read_rows(data, modalities=[stream])
    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    with _progress("measuring", len(rows)) as step:
        found = frontend_stats(loaded.plain(), rows, stream=stream, workers=_workers(workers, len(rows)), progress=step)
    if as_json:
        print_json(found)
    else:
        for key in ("mean", "std"):
            value = found[key]
            number = f"{value:.4f}" if isinstance(value, float) else "[" + ", ".join(f"{v:.4f}" for v in value) + "]"
            print(f"--set 'frontend.{found[key + '_key']}={number}'")
        say(f"{stream}: {found['items']} items, {found['values']} values")


@app.command()
def prepare(
    data: Data,
    out: Annotated[Path, Option(help="Folder to fill; the same command goes on where it stopped.")],
    rate: Annotated[int, Option(help="Hz of the prepared sound.")] = 16_000,
    frames: Annotated[int, Option(help="Pictures of each video.")] = 10,
    size: Annotated[int, Option(help="Their short side; never scaled up.")] = 224,
    square: Annotated[
        bool, Option("--square", help="Keep only their centred square: smaller, faster to read.")
    ] = False,
    quality: Annotated[int, Option(help="JPEG quality.")] = 90,
    format: Annotated[str, Option(help="wav, or the smaller and slower flac; both 16 bit.")] = "wav",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Decode once, train often: sound and frames cached, with a manifest that every command takes."""
    from avssl.data.manifest import read_rows
    from avssl.data.prepare import MANIFEST, Plan
    from avssl.data.prepare import prepare as run

    plan = Plan(rate=rate, frames=frames, size=size, square=square, quality=quality, format=format)
    rows = read_rows(data)
    with _progress("preparing", len(rows)) as step:
        made, problems = run(rows, out, plan, workers=_workers(workers, len(rows)), progress=step)
    if as_json:
        print_json({"out": str(out / MANIFEST), "items": len(made), "bad_files": [b._asdict() for b in problems]})
    else:
        print(out / MANIFEST)
        listed = f": see {out / 'bad_files.csv'}" if problems else ""
        say(f"{len(made)} items prepared, {len(problems)} problems{listed}")


def _workers(given: int | None, items: int) -> int:
    """Processes for a job: none for a handful of items, where starting them would take longer than the work."""
    if given is not None:
        check(given >= 0, f"--workers {given}", fix="give 0 or more")
        return given
    from avssl.data.loader import default_workers

    return 0 if items < 32 else default_workers()


def _fresh(out: Path | None) -> None:
    if out is not None:
        check(
            out.suffix.lower() in (".csv", ".jsonl", ".parquet"),
            f"{out}: manifests are .csv, .jsonl or .parquet",
            fix="change the suffix",
        )
        check(out.parent.is_dir(), f"{out}: the folder {out.parent} does not exist", fix=f"mkdir -p {out.parent}")


def _shares(texts: list[str]) -> dict[str, float]:
    shares = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            shares[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--share {text!r} is no NAME=SHARE", fix="e.g. --share train=0.8") from None
    return shares


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, nothing in a pipe."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _print_summary(summary: dict[str, Any]) -> None:
    def joined(counts: dict[str, int]) -> str:
        shown = sorted(counts.items(), key=lambda kv: -kv[1])
        return ", ".join(f"{k}: {n}" for k, n in shown[:12]) + (f" ... ({len(shown)})" if len(shown) > 12 else "")

    seconds = summary["seconds"]
    lines = [
        ("items", summary["items"]),
        ("bad", summary["bad"]),
        ("modalities", joined(summary["modalities"])),
        (
            "length",
            f"{summary['hours']:.2f} h; {seconds['min']:.2f}-{seconds['max']:.2f} s, median {seconds['median']:.2f} s"
            if seconds
            else "",
        ),
    ]
    counted = ("rates", "channels", "sizes", "codecs", "notes", "labels", "splits", "folds")
    lines += [(k, joined(summary[k])) for k in counted]
    lines += [("unlabelled", summary["unlabelled"] if summary["labels"] else ""), ("groups", summary["groups"] or "")]
    print_table(("what", "value"), [(k, v) for k, v in lines if v not in ("", None)])


def _short(path: str, width: int = 60) -> str:
    from avssl.data.source import shown

    text = shown(path)
    return text if len(text) <= width else "..." + text[-width + 3 :]


def _reason(item: Any) -> str:
    from avssl.data.source import shown

    return item.reason.removeprefix(f"{shown(item.path)}: ")
