"""avssl data: scan, check, split, show, stats, prepare, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from avssl.cli.inputs import Workers, worker_count
from avssl.cli.output import print_json, print_table, say
from avssl.errors import Exit, UsageError, check
from avssl.progress import shown, steps
from avssl.words import counted

app = typer.Typer(help="Look at data, check them, split them, prepare them.", no_args_is_help=True)
Data = Annotated[str, Argument(metavar="PATH", help="A folder of media, a manifest, or a known layout.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
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
    with shown(), steps("scanning", len(rows)) as step:
        found = run(rows, depth=depth, workers=worker_count(workers, len(rows)), progress=step)
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
                title=f"{counted(len(found.bad), 'problem')} in {len(rows)} items",
            )
    if not found.rows:
        raise DataError(f"{data}: none of its items can be used", fix="see the reasons above")


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
    processes = worker_count(workers, len(rows))
    problems = []
    prints = None
    if content:
        with shown(), steps("reading", len(rows)) as step:
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
            title=f"{counted(len(rows), 'item')}, {counted(grave, 'grave problem')}, "
            f"{counted(len(problems) - grave, 'other')}",
        )
    if grave:
        raise typer.Exit(int(Exit.DATA))


@app.command()
def split(
    data: Data,
    out: Annotated[Path, Option(help="Manifest to write (.parquet, .csv or .jsonl).")],
    shares: Annotated[list[str] | None, Option("--share", metavar="NAME=SHARE", help="e.g. --share train=0.8")] = None,
    folds: Annotated[int | None, Option(help="Number folds 1..N instead of naming splits.", min=2)] = None,
    seed: Annotated[int, Option(help="Another seed, another split.")] = 0,
    content: Annotated[bool, Option(help="Keep copies in one split; decodes everything.")] = True,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Divide a data set: groups, files and copies stay together, every class keeps its share."""
    from collections import Counter

    from avssl.data.fingerprint import fingerprints
    from avssl.data.manifest import read_rows, write_rows
    from avssl.data.split import bundle, fold_rows, split_rows

    check(not (shares and folds), "--share and --folds exclude each other", fix="give one of the two")
    _fresh(out)
    rows = read_rows(data)
    prints = fingerprints(rows, worker_count(workers, len(rows))) if content else None
    wanted = _shares(shares) if shares else {"train": 0.8, "val": 0.1, "test": 0.1}
    apart = bundle(rows, prints)
    if folds:
        divided = fold_rows(rows, folds, seed=seed, prints=prints)
    else:
        divided = split_rows(rows, wanted, seed=seed, prints=prints)
    write_rows(divided, out)
    place = [str(r.fold) if folds else r.split for r in divided]
    items, groups = Counter(place), Counter(place[members[0]] for members in apart)
    if as_json:
        print_json({"out": str(out), "items": dict(sorted(items.items())), "groups": dict(sorted(groups.items())),
                    "seed": seed})  # fmt: skip
        return
    several = len(apart) < len(rows)
    columns = ("fold" if folds else "split", "items", "share", *(["groups"] if several else []))
    lines = [(p, n, f"{n / len(rows):.3f}", *([groups[p]] if several else [])) for p, n in sorted(items.items())]
    print_table(columns, lines)
    if several:
        have = f"{counted(len(rows), 'item')} in {counted(len(apart), 'group')}"
        say(f"{have}: what shares a group, a file or its content stays together")  # fmt: skip


@app.command()
def show(
    data: Data,
    count: Annotated[int, Option("-n", "--count", help="Rows to show.", min=0)] = 5,
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
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A recipe; its frontend is what is measured.")],
    data: Annotated[str, Option(help="A folder of media, a manifest, or a known layout.")],
    stream: Annotated[str, Option(help="Which stream.")] = "audio",
    overrides: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change the recipe.")] = None,
    limit: Annotated[int | None, Option(help="Only so many items, spread over the data.", min=1)] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Mean and standard deviation for the frontend's normalisation, ready to paste."""
    from avssl.data.manifest import read_rows
    from avssl.recipe import load_run

    loaded = load_run(recipe, overrides or [])
    rows = read_rows(data, modalities=[stream])
    from avssl.data.stats import frontend_stats

    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    with shown(), steps("measuring", len(rows)) as step:
        found = frontend_stats(
            loaded.plain(), rows, stream=stream, workers=worker_count(workers, len(rows)), progress=step
        )
    if as_json:
        print_json(found)
    else:
        for key in ("mean", "std"):
            value = found[key]
            number = f"{value:.4f}" if isinstance(value, float) else "[" + ", ".join(f"{v:.4f}" for v in value) + "]"
            print(f"--set 'frontend.{found[key + '_key']}={number}'")
        say(f"{stream}: {counted(found['items'], 'item')}, {counted(found['values'], 'value')}")


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
    check(out.resolve() != Path(data).resolve(), f"--out {out} is the data folder itself", fix="choose another folder")
    rows = read_rows(data)
    with shown(), steps("preparing", len(rows)) as step:
        made, problems = run(rows, out, plan, workers=worker_count(workers, len(rows)), progress=step)
    if as_json:
        print_json({"out": str(out / MANIFEST), "items": len(made), "bad_files": [b._asdict() for b in problems]})
    else:
        print(out / MANIFEST)
        listed = f": see {out / 'bad_files.csv'}" if problems else ""
        say(f"{counted(len(made), 'item')} prepared, {counted(len(problems), 'problem')}{listed}")


@app.command()
def tokenizer(
    data: Data,
    out: Annotated[Path, Option(help="The tokenizer.json to write.")],
    size: Annotated[int, Option(help="Tokens, with the 4 special ones and the mask.")] = 8000,
    as_json: AsJson = False,
) -> None:
    """Learn tokens from texts, a byte-level BPE, for a text encoder that is trained from scratch."""
    from avssl.data.manifest import read_rows
    from avssl.data.tokenizer import texts, train_bpe

    check(not out.exists(), f"{out} exists already", fix="choose another name")
    check(out.parent.is_dir(), f"{out}: the folder {out.parent} does not exist", fix=f"mkdir -p {out.parent}")
    rows = read_rows(data, modalities=["text"])
    with shown(), steps("reading", len(rows)) as step:
        found = train_bpe(texts(rows, step), size, out)
    if as_json:
        print_json({"out": str(out), "tokens": found, "texts": len(rows)})
        return
    print(f"--set 'frontend.tokenizer={out}' --set backbone.vocabulary={found} --set backbone.mask={found - 1}")
    say(f"{counted(found, 'token')} of {counted(len(rows), 'text')}")


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


def _print_summary(summary: dict[str, Any]) -> None:
    def joined(counts: dict[str, int]) -> str:
        shown = sorted(counts.items(), key=lambda kv: -kv[1])
        return ", ".join(f"{k}: {n}" for k, n in shown[:12]) + (f" ... ({len(shown)})" if len(shown) > 12 else "")

    seconds = summary["seconds"]
    left_out, damaged = summary["left_out"], summary["partly_usable"]
    whole = f"{summary['items']:,} usable, {left_out:,} left out, {summary['looked_at']:,} looked at"
    lines = [
        ("items", whole if left_out else f"{summary['items']:,}"),
        ("partly usable", f"{damaged:,}: a part of each is damaged and left out" if damaged else ""),
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
