"""What would spoil an experiment: the same thing in two splits, a group torn apart, classes that are never learnt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from avssl.data.clip import Row


@dataclass(frozen=True)
class Problem:
    """kind: "group leak", "duplicate", "shared file", "label". ids: the rows concerned. grave: spoils results."""

    kind: str
    message: str
    ids: tuple[str, ...]
    grave: bool = True


def check_rows(rows: Sequence[Row], prints: Sequence[Mapping[str, str]] | None = None) -> list[Problem]:
    """Problems of a data set. prints: what `fingerprints(rows)` gave, to find copies; None = do not look for them."""
    problems = [*_groups(rows), *_files(rows), *_labels(rows)]
    if prints is not None:
        problems.extend(_duplicates(rows, prints))
    return problems


def _place(row: Row) -> str:
    """Where a row counts: its split and fold."""
    return row.split + ("" if row.fold is None else f" fold {row.fold}")


def _torn(rows: Sequence[Row], keys: Iterable[tuple[str, Row]]) -> list[tuple[str, list[Row]]]:
    together: dict[str, list[Row]] = defaultdict(list)
    for key, row in keys:
        together[key].append(row)
    return [(k, found) for k, found in together.items() if len({_place(r) for r in found}) > 1]


def _groups(rows: Sequence[Row]) -> list[Problem]:
    return [
        Problem(
            "group leak",
            f"group {key!r} is in {', '.join(sorted({_place(r) for r in found}))}",
            tuple(r.id for r in found),
        )
        for key, found in _torn(rows, ((r.group, r) for r in rows if r.group))
    ]


def _files(rows: Sequence[Row]) -> list[Problem]:
    """One file (whole or in overlapping windows) in several splits."""
    keys = ((s, r) for r in rows for s in {str(p) for m, p in r.parts.items() if m != "text"})
    problems = []
    for key, found in _torn(rows, keys):
        overlap = any(_overlaps(a, b) for i, a in enumerate(found) for b in found[i + 1 :] if _place(a) != _place(b))
        problems.append(
            Problem(
                "shared file",
                f"{key} is in {', '.join(sorted({_place(r) for r in found}))}"
                + ("" if overlap else ", in windows that do not overlap"),
                tuple(r.id for r in found),
            )
        )
    return problems


def _overlaps(a: Row, b: Row) -> bool:
    end_a, end_b = (float("inf") if r.end is None else r.end for r in (a, b))
    return (a.start or 0.0) < end_b and (b.start or 0.0) < end_a


def _labels(rows: Sequence[Row]) -> list[Problem]:
    problems = []
    labelled = [r for r in rows if r.labels]
    if labelled and len(labelled) < len(rows):
        without = tuple(r.id for r in rows if not r.labels)
        problems.append(Problem("label", f"{len(without)} of {len(rows)} items have no label", without, grave=False))
    train = {label for r in rows if r.split == "train" for label in r.labels}
    if train:
        for label in sorted({label for r in rows if r.split not in ("", "train") for label in r.labels} - train):
            ids = tuple(r.id for r in rows if label in r.labels)
            problems.append(Problem("label", f"label {label!r} is tested but never trained", ids, grave=False))
    return problems


def _duplicates(rows: Sequence[Row], prints: Sequence[Mapping[str, str]]) -> list[Problem]:
    """Rows of equal content, for each modality apart (one picture may go with two sounds); grave across splits."""
    problems = []
    for modality in sorted({m for p in prints for m in p}):
        together: dict[str, list[int]] = defaultdict(list)
        for i, found in enumerate(prints):
            if modality in found:
                together[found[modality]].append(i)
        for same in together.values():
            members = [rows[i] for i in same]
            if len({str(r.parts[modality]) for r in members}) < 2:
                continue  # one file in several rows: `shared file` reports that
            places = sorted({_place(r) for r in members})
            where = f"across {', '.join(places)}" if len(places) > 1 else f"within {places[0] or 'the data'}"
            problems.append(
                Problem(
                    "duplicate",
                    f"the same {modality} {len(members)} times {where}: "
                    + ", ".join(r.id for r in members[:4])
                    + (" ..." if len(members) > 4 else ""),
                    tuple(r.id for r in members),
                    grave=len(places) > 1,
                )
            )
    return problems
