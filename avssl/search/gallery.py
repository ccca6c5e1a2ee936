"""Search results as one page that opens from disk: pictures, playable sound, no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.data.clip import AudioRequest, FramesRequest, Limits
from avssl.errors import DataError, check
from avssl.files import write_text
from avssl.search.index import Answer

SECONDS = 10.0  # of sound kept per clip
PIXELS = 240  # short side of a picture

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


@dataclass(frozen=True)
class Preview:
    """What a card shows of a clip: data URIs, or a text; "" where there is none."""

    picture: str = ""
    sound: str = ""
    text: str = ""


def write_gallery(answers: Sequence[Answer], path: Path) -> None:
    """Write the page. A clip whose file has gone or cannot be read is shown without it."""
    check(bool(answers), "nothing to show", fix="search for something")
    check(path.suffix in (".html", ".htm"), f"{path} is no page", fix="end the name with .html")
    first = answers[0]
    seen: dict[str, Preview] = {}

    def card(id: str, media: Mapping[str, Any], score: str, labels: Sequence[str], same: bool) -> str:
        shown = seen.setdefault(id, preview(media))
        return "".join([
            f'<figure class="{"same" if same else "hit"}">',
            f'<img alt="" src="{shown.picture}">' if shown.picture else "",
            f'<audio controls preload="none" src="{shown.sound}"></audio>' if shown.sound else "",
            f"<blockquote>{html.escape(shown.text)}</blockquote>" if shown.text else "",
            f'<figcaption><span class="score">{score}</span>{html.escape(id)}',
            f"<br><small>{html.escape(', '.join(labels))}</small>" if labels else "", "</figcaption></figure>"])

    sections = []
    for answer in answers:
        cards = "".join(card(h.id, h.media, f"{h.similarity:.3f}", h.labels, False) for h in answer.hits)
        title = f"{html.escape(answer.stream)} → {html.escape(answer.among)}"
        sections.append(f'<section><h2>{title}</h2><div class="grid">{cards}</div></section>')
    page = _PAGE.format(title=f"avssl search: {html.escape(first.query)}", query=html.escape(first.query),
                        note=f"{len(first.hits)} hits, by cosine similarity",
                        card=card(first.query, first.media, "query", (), True), sections="\n".join(sections))
    write_text(path, page)


def preview(media: Mapping[str, Any]) -> Preview:
    """Picture, first seconds of sound, and text of a clip, small enough to put into a page."""
    start, end = media.get("start"), media.get("end")
    picture = sound = ""
    if "vision" in media:
        picture = _quietly(_picture, media["vision"], start, end)
    if "audio" in media:
        sound = _quietly(_sound, media["audio"], start, end)
    text = media.get("text", "")
    return Preview(picture, sound, text if isinstance(text, str) else "")


def _quietly(make: Any, source: Any, start: float | None, end: float | None) -> str:
    try:
        return make(tuple(source) if isinstance(source, list) else source, start, end)
    except DataError:
        return ""


def _picture(source: Any, start: float | None, end: float | None) -> str:
    from PIL import Image

    from avssl.registry import load

    frames = load("modality", "vision", "decode")(source, FramesRequest(count=1, size=PIXELS), start=start, end=end,
                                                  limits=Limits())
    image = Image.fromarray(frames.pixels[0])
    image.thumbnail((2 * PIXELS, 2 * PIXELS))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _sound(source: Any, start: float | None, end: float | None) -> str:
    import numpy as np
    import soundfile

    from avssl.registry import load

    decode = load("modality", "audio", "decode")
    wave = decode(source, AudioRequest(0.0, SECONDS), start=start, end=end, limits=Limits())
    samples, rate = wave.samples.mean(0), wave.rate
    if not 8000 <= rate <= 48000:  # what every browser plays
        from avssl.data.resample import resample

        samples, rate = resample(samples, rate, 16000), 16000
    out = io.BytesIO()
    soundfile.write(out, np.clip(samples, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(out.getvalue()).decode()
