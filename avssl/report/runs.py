"""What a run directory says about itself, read without a model."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avssl.data.bad import BadItem
from avssl.data.clip import Row
from avssl.data.split import HELD_OUT
from avssl.errors import CheckpointError, check
from avssl.words import counted

PLAIN_NAMES = ("run", "model", "out")


@dataclass(frozen=True)
class RunFiles:
    """A run directory (or an imported model's). Parts that it does not have are empty."""

    path: Path
    name: str  # of the directory: how the page calls it
    tables: Mapping[str, Any]  # the plain recipe
    records: Sequence[Mapping[str, Any]] = ()  # metrics.jsonl
    report: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    bad: Sequence[BadItem] = ()
    evaluations: Sequence[Mapping[str, Any]] = ()  # what `avssl evaluate` wrote, oldest first
    finished: bool = False

    @property
    def train_split(self) -> str:
        """The split that the run trained on; "" = rows without one."""
        named = self.tables.get("data", {}).get("split", "")
        return named or ("train" if any(r.split == "train" for r in self.rows) else "")


def read_run(path: Path) -> RunFiles:
    """Raises CheckpointError, naming what is missing, when the directory is no run."""
    from avssl.data.bad import BadFiles
    from avssl.data.manifest import read_rows
    from avssl.model import RECIPE, WEIGHTS, read_tables
    from avssl.training.meter import read_journal

    check(path.is_dir(), f"{path}: no such run", fix="give a run directory, what --out named", error=CheckpointError)
    inner = [p for p in (*path.glob("stages/*"), *path.glob("fold-*")) if (p / RECIPE).is_file()]
    if inner and not (path / RECIPE).is_file():
        first, *rest = map(str, sorted(inner))
        compare = "".join(f" --compare {p}" for p in rest)
        raise CheckpointError(f"{path} holds {counted(len(inner), 'run')}", fix=f"avssl report {first}{compare}")
    check(
        (path / RECIPE).is_file(),
        f"{path} has no {RECIPE}: it is no run",
        fix="give what --out of a run named",
        error=CheckpointError,
    )
    manifest = path / "manifest.parquet"
    bad = path / "bad_files.csv"
    evaluated = sorted((path / "evaluations").glob("*.json"), key=lambda p: (p.stat().st_mtime, p.name))
    try:
        return RunFiles(
            path=path,
            name=name_of(path),
            tables=read_tables(path),
            records=read_journal(path),
            report=_json(path / "report.json"),
            environment=_json(path / "environment.json"),
            rows=read_rows(str(manifest)) if manifest.is_file() else (),
            bad=list(BadFiles(bad).items.values()) if bad.is_file() else (),
            evaluations=[_json(p) for p in evaluated],
            finished=(path / WEIGHTS).is_file(),
        )
    except csv.Error as error:
        raise CheckpointError(f"{bad}: {error}", fix="remove it") from None


def name_of(path: Path) -> str:
    """How the page calls a run: its directory, with the one above where the name alone says nothing."""
    parts = path.resolve().parts
    return "/".join(parts[-2:]) if parts[-1] in PLAIN_NAMES else parts[-1]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}", fix="restore it from a copy, or remove it") from None


def choose_rows(rows: Sequence[Row], clips: int) -> tuple[list[Row], str]:
    """At most `clips` rows to look at, and which they are in words.

    Rows that the run did not train on where there are any. More than wanted: evenly over the classes, the same ones
    each time.
    """
    held = [r for r in rows if r.split in HELD_OUT]
    pool = held or list(rows)
    splits = sorted({r.split for r in pool if r.split})
    what = f"the {' and '.join(splits)} split" if splits else "all items"
    if len(splits) == 1 and splits[0] == "train":
        what += " (the data have no other)"
    return evenly(pool, clips), what


def evenly(rows: Sequence[Row], clips: int) -> list[Row]:
    """At most `clips` of the rows, round-robin over their first labels, spread over each class; in the given order."""
    if len(rows) <= clips:
        return list(rows)
    classes: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        classes.setdefault(row.labels[0] if row.labels else "", []).append(i)
    quotas = dict.fromkeys(classes, 0)
    left = clips
    while left:
        for name, members in classes.items():
            if left and quotas[name] < len(members):
                quotas[name] += 1
                left -= 1
    chosen = [
        members[k * len(members) // quotas[name]] for name, members in classes.items() for k in range(quotas[name])
    ]
    return [rows[i] for i in sorted(chosen)]
