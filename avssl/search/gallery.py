"""Search results as one page that opens from disk: pictures, playable sound, no network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avssl.data.clip import Row
from avssl.errors import check
from avssl.files import write_text
from avssl.search.index import Answer
from avssl.words import counted

SECONDS = 10.0  # of sound kept per clip
PIXELS = 480  # long side of a picture

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: #1d2126; --dim: #667078; --card: #fff; --page: #f3f4f6; --line: #dde1e6;
  --good: #1a7f4b }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e7eaee; --dim: #98a2ad; --card: #1d2228; --page: #14171b;
  --line: #2c333b; --good: #58c98c }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0; padding: 1.5rem clamp(1rem, 4vw, 3rem); background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.3rem; margin: 0 0 .2rem }} h2 {{ font-size: 1rem; margin: 2rem 0 .7rem }}
p {{ color: var(--dim); margin: 0 0 1rem }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr)); gap: 1rem }}
figure {{ margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden }}
figure.same {{ border-color: var(--good) }}
img {{ display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: cover; background: var(--line) }}
audio {{ display: block; width: calc(100% - 1rem); margin: .5rem; height: 36px }}
figcaption {{ padding: .6rem .8rem; overflow-wrap: anywhere }} small {{ color: var(--dim) }}
.score {{ float: right; font-variant-numeric: tabular-nums; font-weight: 600 }}
blockquote {{ margin: .8rem }} .query {{ max-width: 320px }}
</style></head><body>
<h1>Nearest to {query}</h1><p>{note}</p>
<div class="query">{card}</div>
{sections}
</body></html>
"""


def write_gallery(answers: Sequence[Answer], path: Path) -> None:
    """Write the page. A clip whose file has gone or cannot be read is shown without it."""
    check(bool(answers), "nothing to show", fix="search for something")
    check(path.suffix in (".html", ".htm"), f"{path} is no page", fix="end the name with .html")
    first = answers[0]
    seen: dict[str, dict[str, Any]] = {}

    def card(id: str, media: Mapping[str, Any], score: str, labels: Sequence[str], same: bool) -> str:
        shown = seen.setdefault(id, preview(media))
        return "".join(
            [
                f'<figure class="{"same" if same else "hit"}">',
                _picture(shown, id),
                f'<audio controls preload="none" src="{shown["sound"]}"></audio>' if "sound" in shown else "",
                f"<blockquote>{html.escape(shown['text'])}</blockquote>" if shown.get("text") else "",
                f'<figcaption><span class="score">{score}</span>{html.escape(id)}',
                f"<br><small>{html.escape(', '.join(labels))}</small>" if labels else "",
                *(f"<br><small>{html.escape(note)}</small>" for note in shown.get("missing", ())),
                "</figcaption></figure>",
            ]
        )

    asked = Path(first.query).name if first.kind == "file" else first.query
    sections = []
    for answer in answers:
        cards = "".join(card(h.id, h.media, f"{h.similarity:.3f}", h.labels, False) for h in answer.hits)
        title = f"{html.escape(answer.stream)} → {html.escape(answer.among)}"
        sections.append(f'<section><h2>{title}</h2><div class="grid">{cards}</div></section>')
    page = _PAGE.format(
        title=f"avssl search: {html.escape(asked)}",
        query=html.escape(asked),
        note=f"{counted(len(first.hits), 'hit')}, by cosine similarity",
        card=card(asked, first.media, "query", (), True),
        sections="\n".join(sections),
    )
    write_text(path, page)


def preview(media: Mapping[str, Any]) -> dict[str, Any]:
    """What a card shows of a clip: the record that the report makes of one, with a larger picture."""
    from avssl.report.previews import preview as record

    parts = {m: tuple(s) if isinstance(s, list) else s for m, s in media.items() if m not in ("start", "end")}
    return record(Row(id="", parts=parts, start=media.get("start"), end=media.get("end")), SECONDS, PIXELS)


def _picture(shown: Mapping[str, Any], id: str) -> str:
    """The clip's picture, or what its sound looks like."""
    for modality, what in (("vision", "picture"), ("audio", "spectrogram")):
        if modality in shown:
            return f'<img alt="{what} of {html.escape(id)}" src="{shown[modality]}">'
    return ""
