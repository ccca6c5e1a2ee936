"""The page: one file with its style, its scripts and its data, that asks nothing of a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from avssl import __version__
from avssl.files import finite
from avssl.report import figures, sections
from avssl.report.build import Subject, panels_of
from avssl.report.markup import Markup, tag

SCRIPTS = ("core.js", "charts.js", "gallery.js", "matrix.js", "map.js", "main.js")
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(subjects: Sequence[Subject], clips: Sequence[dict[str, Any]], what: str) -> str:
    """The HTML of the page. what: which clips they are, in words."""
    parts = [s for s in _sections(subjects, clips, what) if s is not None]
    names = " and ".join(s.run.name for s in subjects)
    nav = tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in parts], aria_label="Sections")
    body = tag(
        "body",
        tag("header", tag("div", tag("p", "avssl report", class_="eyebrow"), _theme_button(), class_="topline"),
            tag("h1", names), [tag("p", sections.lead(s.run), class_="lead") for s in subjects],
            [tag("p", note, class_="notice", role="note") for s in subjects for note in s.notes]),
        nav,
        tag("main", [tag("section", tag("h2", title), content, id=key) for key, title, content in parts]),
        tag("footer", f"Written by avssl {__version__}. This file holds everything it shows; it opens without a network."),
        tag("audio", id="player", preload="none"),
        tag("div", id="preview", role="tooltip", hidden=True),
        tag("noscript", tag("p", "Charts, gallery and map need JavaScript; tables and pictures do not.", class_="notice")),
        tag("script", Markup(_json(_data(subjects, clips))), type="application/json", id="data"),
        tag("script", Markup("\n".join(_asset(name) for name in SCRIPTS))),
    )
    head = tag(
        "head", tag("meta", charset="utf-8"), tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY), tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"avssl {__version__}"), tag("title", f"{names} · avssl"),
        tag("style", Markup(_asset("style.css"))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _theme_button() -> Markup:
    return tag("button", "Light / dark", type="button", id="theme", class_="quiet-button", aria_label="Switch between light and dark")


def _sections(subjects: Sequence[Subject], clips: Sequence[dict[str, Any]], what: str) -> list[tuple[str, str, Markup] | None]:
    """(anchor, title, content) in reading order; what there is nothing to say about is left out."""
    looked = f"Over {len(clips)} clips ({what}), one view of each."
    return [
        ("overview", "At a glance", _per_run(subjects, sections.tiles)),
        _when(any(s.directions for s in subjects), "retrieval", "Retrieval", lambda: _join(
            _quiet(f"{looked} A right answer is marked: the very clip, or one of its class. `Chance` is what a random order gives."),
            sections.retrieval_table(subjects), tag("div", data_widget="gallery"))),
        _when(any(s.matrices for s in subjects), "similarity", "Similarity", lambda: _join(
            _quiet("Cosines between every two clips, sorted by class. Pairs that belong together lie on the diagonal; a model that has "
                   "learned classes shows bright squares along it."), tag("div", data_widget="matrix"))),
        _when(any(s.planes for s in subjects), "map", "Map of the embedding", lambda: _join(
            _quiet("Each point is a clip. Point at one to see it, choose one to see its neighbours in the gallery."),
            tag("div", data_widget="map"))),
        _when(any(s.classes for s in subjects), "classes", "Classes", lambda: _per_run(subjects, _classes)),
        _when(any(s.reconstructions for s in subjects), "reconstructions", "Reconstructions", lambda: _join(
            _quiet("Hidden patches are filled in by the model; the visible ones are the input's own. All three pictures of a row share one scale."),
            _per_run(subjects, lambda s: figures.reconstruction_figures(s.reconstructions)))),
        _when(any(s.soundings for s in subjects), "sounding", "Sound over picture", lambda: _join(
            _quiet("Bright where a token of one modality points the same way as the pooled vector of the other (cosine, stretched to each "
                   "clip's own range). This reading is ours, not the authors'; with one sound per picture it can also show what is merely "
                   "typical of a class."), _per_run(subjects, lambda s: figures.sounding_figures(s.soundings)))),
        _when(any(s.run.records for s in subjects), "training", "Training", lambda: _join(
            tag("div", data_widget="charts"), sections.metrics_table(subjects))),
        ("recipe", "Recipe", sections.recipe_table(subjects)),
        _when(any(s.run.rows for s in subjects), "data", "Data", lambda: _per_run(_different_data(subjects), lambda s: sections.data_card(s.run.rows))),
        _when(any(s.run.bad or s.unreadable for s in subjects), "bad", "Bad files", lambda: _per_run(subjects, _bad)),
        _when(any(s.run.environment or s.run.report.get("environment") for s in subjects), "machine", "Machine", lambda: sections.machine_table(subjects)),
    ]


def _when(there: bool, key: str, title: str, content: Callable[[], Markup]) -> tuple[str, str, Markup] | None:
    return (key, title, content()) if there else None


def _join(*parts: Markup | None) -> Markup:
    return Markup("".join(p for p in parts if p))


def _quiet(text: str) -> Markup:
    return tag("p", text.replace("`", ""), class_="quiet")


def _per_run(subjects: Sequence[Subject], content: Callable[[Subject], Markup | None]) -> Markup:
    """The content of each run, side by side under its name where there are several."""
    found = [(n, s, c) for n, s in enumerate(subjects) if (c := content(s))]
    if len(subjects) == 1:
        return _join(*(c for _, _, c in found))
    return tag("div", [tag("div", tag("h3", tag("span", class_=f"dot run-{n}"), s.run.name), c, class_="run-part") for n, s, c in found], class_="runs")


def _classes(subject: Subject) -> Markup | None:
    if subject.classes is None:
        return None
    found = subject.classes
    from avssl.report.markup import number, percent

    facts = ", ".join(f"{k.replace('_', ' ')} {percent(v) if 0 <= v <= 1 else number(v)}" for k, v in found["metrics"].items())
    return _join(_quiet(f"By {found['title']}, {found['items']} labelled clips: {facts}."),
                 tag("div", tag("div", data_widget="confusion", data_run=subject.run.name) if "confusion" in found else None,
                     sections.class_table(subject), class_="class-parts"))


def _bad(subject: Subject) -> Markup | None:
    lists = [(subject.run.bad, "While training"), (subject.unreadable, "While making this page")]
    return _join(*(sections.bad_files(items, title) for items, title in lists if items))


def _different_data(subjects: Sequence[Subject]) -> Sequence[Subject]:
    """One subject when all runs saw the same rows."""
    ids = [[(r.id, r.split) for r in s.run.rows] for s in subjects]
    return subjects[:1] if all(i == ids[0] for i in ids) else subjects


def _data(subjects: Sequence[Subject], clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the scripts draw."""
    return {
        "clips": clips, "panels": panels_of(subjects),
        "runs": [{"name": s.run.name, "directions": [d.plain() for d in s.directions], "matrices": s.matrices, "planes": s.planes,
                  "confusion": {"names": s.classes["names"], "counts": s.classes["confusion"]} if s.classes and "confusion" in s.classes else None}
                 for s in subjects],
    }


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(finite(value), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (files("avssl.report") / "assets" / name).read_text(encoding="utf-8")
