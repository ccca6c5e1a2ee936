"""A folder to a file of embeddings, in pieces: killed at any instant, the same command goes on; started several times,
the processes share the work.

Rows are divided into blocks. A block's part is named by a hash of all that decides it (model, options, rows, sizes and
times of their files), written atomically, and equal whoever computes it; a lease tells the others that somebody does.
When all parts are there one process joins them. So no row can be lost or doubled, and the result is the same for any
number of processes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl import __version__
from avssl.data.bad import HEADER, BadFiles, BadItem
from avssl.data.clip import Row
from avssl.embedding.encode import ROWS, EmbedOptions, Encoder, encode_rows
from avssl.embedding.files import Part, bad_of, check_suffix, media_of, merge, read_meta, write_part
from avssl.embedding.lease import STALE, Lease, claim
from avssl.errors import DataError, Stopped, check
from avssl.files import replacing
from avssl.progress import Step, beyond, steps
from avssl.schema import unstructure
from avssl.words import none_of

if TYPE_CHECKING:
    from avssl.data.clip import Limits
    from avssl.model import Model

POLL = 0.2  # seconds between looks at what other processes do


@dataclass(frozen=True)
class Done:
    """What an embedding job made."""

    out: Path
    rows: int  # embedded
    failed: int
    streams: dict[str, int]  # stream -> width
    computed: int  # blocks that this process computed; the others were there, or came from other processes
    bad_files: Path


def embed(
    model: Model,
    rows: Sequence[Row],
    out: str | Path,
    options: EmbedOptions | None = None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    on_bad: str = "skip",
    max_bad: float = 1.0,
    overwrite: bool = False,
    block: int = ROWS,
    stale: float = STALE,
    limits: Limits | None = None,
) -> Done:
    """Embed rows into `out` (.parquet, .npz or .safetensors), with `bad_files.csv` beside it.

    Repeating the call goes on where a killed one stopped; running it in several processes shares the work. An output
    of another model, options or rows is refused unless `overwrite`. max_bad: share of the rows that may fail; it and
    on_bad="fail" hold for a finished output, too. Raises DataError when nothing could be embedded, Stopped after a signal:
    finished blocks are kept.
    """
    from avssl.training.signals import StopRequest

    out = Path(out).absolute()
    check_suffix(out)
    check(out.parent.is_dir(), f"{out.parent}: no such folder", fix="make it first, or choose another --out")
    check(bool(rows), "nothing to embed", fix="the folder or manifest has no usable files", error=DataError)
    _unique(rows)
    check(
        options is None or options.views != "each",
        "a file holds one vector per clip, not one for each view",
        fix="--views all (their mean) or one; --sequence for tokens",
    )
    job = Job(Encoder(model, options or EmbedOptions()), rows, block)
    if out.exists() and job.finished(out) is None:
        check(overwrite, f"{out} exists and holds something else", fix="choose another name, or --overwrite")
    folder = out.with_name(f".{out.name}.parts")
    with StopRequest() as request:
        request.busy = True  # what is done is kept: `stop` looks between two batches

        def stop() -> None:
            if request.name:
                raise Stopped(f"{request.name} arrived while embedding to {out}", fix="the same command goes on")

        job.encoder.between = stop
        with steps("embedding", len(rows)) as step:
            return _work(job, folder, out, batch_size, workers, on_bad, max_bad, stale, limits, step)


def _work(
    job: Job,
    folder: Path,
    out: Path,
    batch_size: int,
    workers: int,
    on_bad: str,
    max_bad: float,
    stale: float,
    limits: Limits | None,
    step: Step,
) -> Done:
    """Claim and compute blocks until this or another process has joined them."""
    computed = 0
    while (there := job.finished(out)) is None:
        job.encoder.between()
        folder.mkdir(exist_ok=True)
        waiting = [n for n, name in enumerate(job.names) if not (folder / name).exists()]
        done_rows = job.items - sum(len(job.blocks[n]) for n in waiting)
        step(done_rows)
        try:
            if not waiting:
                if (lease := claim(folder / f"{job.key}.lease", stale)) is not None:
                    with lease:
                        return _finish(job, folder, out, on_bad, max_bad, computed)
            elif (claimed := _next(job, folder, waiting, stale)) is not None:
                number, lease = claimed
                with lease:
                    if not (folder / job.names[number]).exists():  # else: finished by its holder a moment ago
                        _compute(job, number, folder, batch_size, workers, on_bad, limits, beyond(step, done_rows))
                        computed += 1
                continue
        except FileNotFoundError:  # joined and cleared away by another process: the next round sees its output
            if folder.exists():
                raise
            continue
        time.sleep(POLL)
    _tolerated(job, there, on_bad, max_bad, out)
    return Done(out, there["rows"], there["failed"], dict(job.encoder.widths), computed, _bad_files(out))


class Job:
    """The blocks of a job, and the names that their content gives them."""

    def __init__(self, encoder: Encoder, rows: Sequence[Row], block: int) -> None:
        self.encoder = encoder
        self.blocks = [rows[i : i + block] for i in range(0, len(rows), block)]
        self.items = len(rows)
        model = encoder.model
        self.meta = {
            "digest": model.digest,
            "options": unstructure(encoder.options),
            "streams": dict(encoder.widths),
            "avssl": __version__,
        }
        facts = json.dumps(self.meta, sort_keys=True)
        hashes = [
            _sha(facts, *(x for row in some for x in (row.id, media_of(row), *row.labels, *_stamps(row))))
            for some in self.blocks
        ]
        self.names = [f"{number:06d}-{h[:20]}.parquet" for number, h in enumerate(hashes)]
        self.key = _sha(*hashes)[:20]
        self.meta |= {
            "job": self.key,
            "model": str(Path(model.path).absolute()),
            "reader": dict(model.reader),
            "backbone": str(model.recipe["backbone"]["name"]),
            "modalities": sorted(model.backbone.modalities),
        }

    def finished(self, out: Path) -> dict[str, Any] | None:
        """What `out` says about itself when it is this job's output, else None."""
        if not out.exists():
            return None
        try:
            there = read_meta(out)
        except DataError:
            return None
        return there if there.get("job") == self.key else None


def _next(job: Job, folder: Path, waiting: Sequence[int], stale: float) -> tuple[int, Lease] | None:
    """The first block that nobody else computes, claimed."""
    for number in waiting:
        lease = claim(folder / f"{job.names[number]}.lease", stale)
        if lease is not None:
            return number, lease
    return None


def _compute(
    job: Job, number: int, folder: Path, batch_size: int, workers: int, on_bad: str, limits: Limits | None, step: Step
) -> None:
    rows, bad = job.blocks[number], BadFiles()
    vectors = encode_rows(
        job.encoder, rows, batch_size=batch_size, workers=workers, on_bad=on_bad, bad=bad, limits=limits, step=step
    )
    chosen = [rows[i] for i in vectors.indices]
    part = Part(
        [_text(r.id) for r in chosen],
        [media_of(r) for r in chosen],
        [[_text(x) for x in r.labels] for r in chosen],
        vectors.values,
        vectors.present,
        [[_text(x) for x in item] for item in bad.items.values()],
    )
    write_part(folder / job.names[number], part, job.encoder.widths, job.encoder.options.sequence)


def _finish(job: Job, folder: Path, out: Path, on_bad: str, max_bad: float, computed: int) -> Done:
    parts = [folder / name for name in job.names]
    bad = [item for part in parts for item in bad_of(part)]
    failed = len({item[0] for item in bad})
    counted = len({item[0] for item in bad if item[2] != "missing"})  # lacking a modality is not damage
    _write_bad(_bad_files(out), bad)
    first = BadItem(*bad[0]).line if bad else ""
    if failed == job.items:
        shutil.rmtree(folder, ignore_errors=True)
        found = f"{none_of(failed, 'item')} could be embedded; the first: {first}"
        raise DataError(found, fix=f"see {_bad_files(out)}")
    facts = {"rows": job.items - failed, "failed": failed, "bad": counted, "first_bad": first}
    _tolerated(job, facts, on_bad, max_bad, out)
    rows = merge(parts, out, {**job.meta, **facts})
    shutil.rmtree(folder, ignore_errors=True)
    return Done(out, rows, failed, dict(job.encoder.widths), computed, _bad_files(out))


def _tolerated(job: Job, found: Mapping[str, Any], on_bad: str, max_bad: float, out: Path) -> None:
    """Hold what failed against the rules of this call, whoever found it: another process, or an earlier call with other
    rules. Raises DataError."""
    first = found.get("first_bad", f"see {_bad_files(out)}")  # 0.1 wrote neither this nor how many are bad
    bad = found.get("bad", found["failed"])
    check(
        on_bad != "fail" or not found["failed"],
        first,
        fix="on_bad=skip goes on without it",
        error=DataError,
    )
    check(
        bad <= max_bad * job.items,
        f"{bad} of {job.items} items are bad, more than --max-bad allows; the first: {first}",
        fix=f"see {_bad_files(out)}",
        error=DataError,
    )


def _bad_files(out: Path) -> Path:
    return out.with_name("bad_files.csv")


def _write_bad(path: Path, bad: Sequence[Sequence[str]]) -> None:
    """Always written: a list with a header alone says that nothing failed."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(bad)


def _stamps(row: Row) -> list[str]:
    """Size and time of each of a row's files; for an inline text nothing (its words are in the row)."""
    out = []
    for source in row.parts.values():
        for path in [source] if isinstance(source, str) else source:
            try:
                found = os.stat(path)
            except (OSError, ValueError):
                continue
            out.append(f"{found.st_size}.{found.st_mtime_ns}")
    return out


def _sha(*texts: str) -> str:
    out = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        out.update(len(raw).to_bytes(8, "little") + raw)
    return out.hexdigest()


def _text(value: str) -> str:
    """Valid Unicode: a byte of a file name that is none becomes its escape."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _unique(rows: Sequence[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        check(
            row.id not in seen,
            f"two items are called {row.id!r}",
            fix="give unique ids in the manifest",
            error=DataError,
        )
        seen.add(row.id)
