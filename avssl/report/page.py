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
from avssl.report.markup import Markup, number, percent, tag
from avssl.words import counted

SCRIPTS = ("core.js", "charts.js", "gallery.js", "matrix.js", "map.js", "main.js")
NOTES = {
    "retrieval": "A right answer is marked: the very clip, or one of its class. Chance is what a random order gives.",
    "similarity": "Cosines between every two clips, sorted by class. Pairs that belong together lie on the diagonal; "
    "a model that has learned classes shows bright squares along it.",
    "map": "Each point is a clip. Point at one to see it; choose it to see its neighbours in the gallery.",
    "reconstructions": "Hidden patches are filled in by the model, the visible ones are the input's own. The three "
    "pictures of a row share one scale.",
    "evaluations": "What avssl evaluate measured on this run, with its own protocol and clips.",
    "sounding": "A glow where a token of one modality points the same way as the pooled vector of the other: cosine, "
    "stretched to each clip's own range, which stands below. This reading is ours, not the authors'; where every "
    "picture has one sound it can also show what is merely typical of a class.",
}
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(subjects: Sequence[Subject], clips: Sequence[dict[str, Any]], what: str) -> str:
    """The HTML of the page. what: which clips they are, in words."""
    parts = _sections(subjects, clips, what)
    names = " and ".join(s.run.name for s in subjects)
    nav = tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in parts], aria_label="Sections")
    body = tag(
        "body",
        tag(
            "header",
            tag("div", tag("p", "avssl report", class_="eyebrow"), _theme_button(), class_="topline"),
            tag("h1", names),
            [
                tag("p", (f"{s.run.name}: " if len(subjects) > 1 else "") + sections.lead(s.run), class_="lead")
                for s in subjects
            ],
            [tag("p", note, class_="notice", role="note") for s in subjects for note in s.notes],
        ),
        nav,
        tag("main", [tag("section", tag("h2", title), content, id=key) for key, title, content in parts]),
        tag(
            "footer",
            f"Written by avssl {__version__}. This file holds everything it shows; it opens without a network.",
        ),
        tag("audio", id="player", preload="none"),
        tag("div", id="preview", role="tooltip", hidden=True),
        tag(
            "noscript",
            tag("p", "Charts, gallery and map need JavaScript; tables and pictures do not.", class_="notice"),
        ),
        tag("script", Markup(_json(_data(subjects, clips))), type="application/json", id="page-data"),
        tag("script", Markup("\n".join(_asset(name) for name in SCRIPTS))),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"avssl {__version__}"),
        tag("title", f"{names} · avssl"),
        tag("style", Markup(_asset("style.css"))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _theme_button() -> Markup:
    return tag(
        "button",
        "Light / dark",
        type="button",
        id="theme",
        class_="quiet-button",
        aria_label="Switch between light and dark",
    )


def _sections(subjects: Sequence[Subject], clips: Sequence[dict[str, Any]], what: str) -> list[tuple[str, str, Markup]]:
    """(anchor, title, content) in reading order; what there is nothing to say about is left out."""

    def any_has(part: str) -> bool:
        return any(getattr(s, part) for s in subjects)

    out = [("overview", "At a glance", _per_run(subjects, sections.tiles))]
    if any_has("directions"):
        numbers = sections.retrieval_table(subjects)
        shown = counted(len(clips), "clip")
        note = _quiet(f"Over {shown} ({what}), one view of each. {NOTES['retrieval']}")
        out.append(("retrieval", "Retrieval", _join(note, numbers, _widget("gallery"))))
    if any_has("matrices"):
        out.append(("similarity", "Similarity", _join(_quiet(NOTES["similarity"]), _widget("matrix"))))
    if any_has("planes"):
        out.append(("map", "Map of the embedding", _join(_quiet(NOTES["map"]), _widget("map"))))
    if any_has("classes"):
        out.append(("classes", "Classes", _per_run(subjects, _classes)))
    if any_has("reconstructions"):
        shown = _per_run(subjects, lambda s: figures.reconstruction_figures(s.reconstructions))
        out.append(("reconstructions", "Reconstructions", _join(_quiet(NOTES["reconstructions"]), shown)))
    if any_has("soundings"):
        shown = _per_run(subjects, lambda s: figures.sounding_figures(s.soundings))
        out.append(("sounding", "Sound over picture", _join(_quiet(NOTES["sounding"]), shown)))
    if any(s.run.evaluations for s in subjects):
        shown = _per_run(subjects, sections.evaluation_tables)
        out.append(("evaluations", "Evaluations", _join(_quiet(NOTES["evaluations"]), shown)))
    if any(s.run.records for s in subjects):
        out.append(("training", "Training", _join(_widget("charts"), sections.metrics_table(subjects))))
    out.append(("recipe", "Recipe", sections.recipe_table(subjects)))
    if any(s.run.rows for s in subjects):
        out.append(("data", "Data", _per_run(_different_data(subjects), lambda s: sections.data_card(s.run.rows))))
    if any(s.run.bad or s.unreadable for s in subjects):
        out.append(("bad", "Bad files", _per_run(subjects, _bad)))
    if any(s.run.environment for s in subjects):
        out.append(("machine", "Machine", sections.machine_table(subjects)))
    return out


def _widget(name: str, **data: str) -> Markup:
    """The place where the script of that name draws."""
    return tag("div", data_widget=name, **data)


def _join(*parts: Markup | None) -> Markup:
    return Markup("".join(p for p in parts if p))


def _quiet(text: str) -> Markup:
    return tag("p", text, class_="quiet")


def _per_run(subjects: Sequence[Subject], content: Callable[[Subject], Markup | None]) -> Markup:
    """The content of each run, side by side under its name where there are several."""
    found = [(n, s, c) for n, s in enumerate(subjects) if (c := content(s))]
    if len(subjects) == 1:
        return _join(*(c for _, _, c in found))
    return tag(
        "div",
        [
            tag("div", tag("h3", tag("span", class_=f"dot run-{n}"), s.run.name), c, class_="run-part")
            for n, s, c in found
        ],
        class_="runs",
    )


def _classes(subject: Subject) -> Markup | None:
    if subject.classes is None:
        return None
    found = subject.classes
    facts = ", ".join(
        f"{k.replace('_', ' ')} {percent(v) if 0 <= v <= 1 else number(v)}" for k, v in found["metrics"].items()
    )
    return _join(
        _quiet(f"By {found['title']}, {found['items']} labelled clips: {facts}."),
        tag(
            "div",
            _widget("confusion", data_run=subject.run.name) if "confusion" in found else None,
            sections.class_table(subject),
            class_="class-parts",
        ),
    )


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
        "clips": clips,
        "panels": panels_of(subjects),
        "runs": [
            {
                "name": s.run.name,
                "directions": [d.plain() for d in s.directions],
                "matrices": s.matrices,
                "planes": s.planes,
                "confusion": {"names": s.classes["names"], "counts": s.classes["confusion"]}
                if s.classes and "confusion" in s.classes
                else None,
            }
            for s in subjects
        ],
    }


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair stays JSON's escape


def _asset(name: str) -> str:
    return (files("avssl.report") / "assets" / name).read_text(encoding="utf-8")
