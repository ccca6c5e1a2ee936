"""From run directories to one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avssl.data.clip import Row
from avssl.errors import DataError, UsageError, check
from avssl.files import write_text
from avssl.report import classes, curves, plane, retrieval
from avssl.report.previews import previews
from avssl.report.runs import RunFiles, choose_rows, evenly, read_run
from avssl.words import counted, none_of

CLIPS = 500
RECONSTRUCTED = 6  # clips that are shown masked and reconstructed, and with maps of sound over picture


@dataclass
class Subject:
    """One run of the page, and what its model makes of the page's clips."""

    run: RunFiles
    directions: list[retrieval.Direction] = field(default_factory=list)
    matrices: list[dict[str, Any]] = field(default_factory=list)
    planes: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[str, Any] | None = None
    reconstructions: list[dict[str, Any]] = field(default_factory=list)
    soundings: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, float]:
        """Full metric names, as `avssl evaluate` spells them."""
        out = {f"retrieval.{d.name}.{k}": v for d in self.directions for k, v in d.metrics.items()}
        if self.classes:
            out |= {f"classes.{k}": v for k, v in self.classes["metrics"].items()}
        return out


@dataclass(frozen=True)
class Summary:
    """What was written."""

    path: Path
    bytes: int
    clips: int
    seconds: float
    runs: dict[str, dict[str, float]]  # name -> numbers over the page's clips
    notes: list[str] = field(default_factory=list)  # what is missing on the page, and why


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    compare: Sequence[str | Path] = (),
    data: str | Path | None = None,
    clips: int = CLIPS,
    device: str = "cpu",
    workers: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Write the page about a run (default: RUN/report.html), beside others in `compare`.

    data: clips to look at; default: those of the run's own manifest that it did not train on, else its training clips.
    clips: at most so many, evenly over the classes; 0 = none: curves and tables only. A run that is not finished, or
    whose data have moved, still gives a page that says so. Raises CheckpointError for a directory that is no run.
    """
    from avssl.report.page import render

    began = time.monotonic()
    check(clips >= 0, f"--clips {clips}", fix="give 0 or more")
    runs = [read_run(Path(p)) for p in (run, *compare)]
    target = Path(out) if out is not None else runs[0].path / "report.html"
    check(
        target.parent.is_dir() and not target.is_dir(),
        f"--out {target}: not a file in an existing folder",
        fix="make the folder first, and name a file in it",
    )
    subjects = [Subject(r) for r in unique_names(runs)]
    for subject in subjects:
        if not subject.run.finished and not any(r.get("kind") == "train" for r in subject.run.records):
            subject.notes.append(f"{subject.run.name} has logged no update yet: it has no curves.")
    rows, what = _rows(runs[0], data, clips)
    progress(f"{counted(len(rows), 'clip')}: {what}")
    shown: list[dict[str, Any]] = []
    if rows:
        rows, looks = _look(subjects, rows, device, workers, progress)
        progress("pictures and sounds")
        shown = previews(rows)
        for subject, look in zip(subjects, looks, strict=True):
            if look is not None:
                _fill(subject, look, rows, device, progress)
    if not shown and clips and not any(s.notes for s in subjects):
        subjects[0].notes.append("There are no clips to look at: give some with --data.")
    try:
        write_text(target, render(subjects, shown, what))
    except OSError as error:
        raise UsageError(f"--out {target}: {error.strerror}", fix="choose a place that can be written") from None
    return Summary(
        target,
        target.stat().st_size,
        len(shown),
        time.monotonic() - began,
        {s.run.name: s.numbers() for s in subjects},
        [note for s in subjects for note in s.notes],
    )


def unique_names(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """The runs with names that tell them apart: as much of their paths as is needed."""
    from dataclasses import replace

    names = [r.name for r in runs]
    if len(set(names)) < len(names):
        names = ["/".join(r.path.resolve().parts[-2:]) for r in runs]
    if len(set(names)) < len(names):
        names = [str(r.path.resolve()) for r in runs]
    check(len(set(names)) == len(names), f"{runs[0].path} is given twice", fix="compare different runs")
    return [replace(r, name=n) for r, n in zip(runs, names, strict=True)]


def _rows(run: RunFiles, data: str | Path | None, clips: int) -> tuple[list[Row], str]:
    if clips == 0:
        return [], "none"
    if data is None:
        return choose_rows(run.rows, clips)
    from avssl.data.manifest import read_rows

    rows = read_rows(data)
    chosen = evenly(rows, clips)
    return chosen, f"{len(chosen)} of {len(rows)} in {Path(data).name}" if len(chosen) < len(rows) else Path(data).name


def _look(
    subjects: Sequence[Subject], rows: Sequence[Row], device: str, workers: int | None, progress: Callable[[str], None]
) -> tuple[list[Row], list[Any]]:
    """Each model's look at the rows, and the rows that at least one of them could read."""
    from avssl.model import open_model
    from avssl.report.look import look

    looks: list[Any] = []
    for subject in subjects:
        if not subject.run.finished:
            subject.notes.append(f"{subject.run.name} has no weights yet: its clips are shown when it is finished.")
            looks.append(None)
            continue
        progress(f"{subject.run.name}: embedding")
        model = open_model(subject.run.path, device=device)
        found = look(model, rows, workers=workers)
        subject.unreadable = list(found.bad.items.values())
        looks.append((model, found))
    readable = np.zeros(len(rows), bool)
    for pair in looks:
        for present in pair[1].present.values() if pair else ():
            readable |= present
    if any(looks) and not readable.any():
        first = next((b for s in subjects for b in s.unreadable), None)
        why = f" ({first.line})" if first else ""
        subjects[0].notes.append(f"{none_of(len(rows), 'clip').capitalize()} could be read{why}.")
    if any(looks):
        kept = np.flatnonzero(readable)
        for pair in looks:
            if pair:
                pair[1].keep(kept)
        rows = [rows[i] for i in kept.tolist()]
    return list(rows), looks


def _fill(
    subject: Subject, pair: tuple[Any, Any], rows: Sequence[Row], device: str, progress: Callable[[str], None]
) -> None:
    """Everything that the model's look at the clips gives."""
    from avssl.report.reconstruct import reconstructions
    from avssl.report.sounding import soundings

    model, look = pair
    modalities = frozenset(model.backbone.modalities)
    subject.directions = retrieval.directions(look.vectors, look.present, rows, modalities)
    crossing = [d for d in subject.directions if d.crossing]
    shown = [
        d for n, d in enumerate(crossing) if (d.gallery, d.query) not in {(c.query, c.gallery) for c in crossing[:n]}
    ]
    shown += [d for d in subject.directions if not d.crossing]
    subject.matrices = [retrieval.matrix(d, look.vectors, rows) for d in shown]
    subject.planes = plane.planes(look.vectors, look.present, modalities)
    if look.logits is not None and model.codec is not None:
        subject.classes = classes.by_head(look.logits, rows, model.codec)
    if subject.classes is None and look.vectors:
        fused = [s for s in look.vectors if s not in modalities]
        subject.classes = classes.by_neighbours(look.vectors, look.present, rows, (fused or list(look.vectors))[0])
    few = evenly(rows, RECONSTRUCTED)
    progress(f"{subject.run.name}: reconstructions")
    try:
        subject.reconstructions = reconstructions(subject.run.path, dict(subject.run.tables), few, device)
    except DataError as error:
        subject.notes.append(f"{subject.run.name}: no reconstructions: {error}")
    subject.soundings = soundings(model, few)


def panels_of(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Training panels with the lines of every run: the same quantity in the same panel."""
    merged: dict[str, dict[str, Any]] = {}
    for number, subject in enumerate(subjects):
        for panel in curves.panels(subject.run.records):
            home = merged.setdefault(panel["key"], {**panel, "lines": []})
            home["lines"] += [{**line, "run": number} for line in panel["lines"]]
    return list(merged.values())
