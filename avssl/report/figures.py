"""The parts of the page that are rows of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avssl.report.markup import Markup, tag

STEPS = (("original", "Original"), ("masked", "Visible"), ("reconstructed", "Reconstructed"))


def reconstruction_figures(items: Sequence[Mapping[str, Any]]) -> Markup:
    """For each clip one figure; for each of its modalities a row of original, masked, reconstructed."""
    figures = []
    for item in items:
        rows = [_triple(item["id"], modality, pictures) for modality, pictures in item["parts"].items()]
        errors = [f"{m} {e:.0%}" for m, e in item["errors"].items() if e is not None]
        note = f"error where hidden: {', '.join(errors)} of the variance" if errors else ""
        figures.append(tag("figure", rows, _caption(item, note), class_="reconstruction"))
    return tag("div", figures, class_="figures")


def _triple(id: str, modality: str, pictures: Mapping[str, str]) -> Markup:
    def shown(step: str, words: str) -> Markup:
        picture = tag("img", src=pictures[step], alt=f"{words}: {modality} of {id}", class_=f"{step} {modality}")
        return tag("div", picture, tag("span", words, class_="label"))

    return tag("div", [shown(step, words) for step, words in STEPS if step in pictures], class_=f"triple {modality}")


def sounding_figures(items: Sequence[Mapping[str, Any]]) -> Markup:
    """For each clip: the picture and what in it matches the sound; the sound and what in it matches the picture."""
    words = {"vision": ("Picture", "Like the sound"), "audio": ("Sound", "Like the picture")}
    figures = []
    for item in items:
        shown = []
        for modality, pair in item["maps"].items():
            plain, mapped = words[modality]
            shown += [
                tag(
                    "div",
                    tag("img", src=pair["plain"], alt=f"{plain} of {item['id']}"),
                    tag("span", plain, class_="label"),
                    class_=modality,
                ),
                tag(
                    "div",
                    tag("img", src=pair["map"], alt=f"{mapped}, {item['id']}"),
                    tag("span", f"{mapped}: {pair['low']:.2f} to {pair['high']:.2f}", class_="label"),
                    class_=modality,
                ),
            ]
        figures.append(tag("figure", tag("div", shown, class_="pairs"), _caption(item, ""), class_="sounding"))
    return tag("div", figures, class_="figures")


def _caption(item: Mapping[str, Any], note: str) -> Markup:
    labels = ", ".join(item["labels"])
    return tag(
        "figcaption",
        tag("strong", labels) if labels else None,
        tag("span", item["id"], class_="id"),
        tag("span", note) if note else None,
    )
