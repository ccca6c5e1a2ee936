"""The parts of the page that are rows of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avssl.report.markup import Markup, tag

STEPS = (("original", "Original"), ("masked", "What the model saw"), ("reconstructed", "Reconstructed"))


def reconstruction_figures(items: Sequence[Mapping[str, Any]]) -> Markup:
    """For each clip and modality: original, masked, reconstructed in a row."""
    figures = []
    for item in items:
        for modality, pictures in item["parts"].items():
            shown = [tag("div", tag("img", src=pictures[k], alt=f"{words}: {modality} of {item['id']}", class_=f"{k} {modality}"),
                         tag("span", words, class_="label")) for k, words in STEPS if k in pictures]
            error = item["errors"].get(modality)
            note = f"{modality}, error where hidden {error:.0%} of the variance" if error is not None else modality
            figures.append(tag("figure", tag("div", shown, class_="triple"), _caption(item, note), class_=f"reconstruction {modality}"))
    return tag("div", figures, class_="figures")


def sounding_figures(items: Sequence[Mapping[str, Any]]) -> Markup:
    """For each clip: the picture and what in it matches the sound; the sound and what in it matches the picture."""
    words = {"vision": ("Picture", "What matches the sound"), "audio": ("Sound", "What matches the picture")}
    figures = []
    for item in items:
        shown = []
        for modality, pair in item["maps"].items():
            plain, mapped = words[modality]
            shown += [tag("div", tag("img", src=pair["plain"], alt=f"{plain} of {item['id']}"), tag("span", plain, class_="label"),
                          class_=modality),
                      tag("div", tag("img", src=pair["map"], alt=f"{mapped}, {item['id']}"),
                          tag("span", f"{mapped}, cosine {pair['low']:.2f} to {pair['high']:.2f}", class_="label"), class_=modality)]
        figures.append(tag("figure", tag("div", shown, class_="pairs"), _caption(item, ""), class_="sounding"))
    return tag("div", figures, class_="figures")


def _caption(item: Mapping[str, Any], note: str) -> Markup:
    labels = ", ".join(item["labels"])
    return tag("figcaption", tag("strong", labels) if labels else None, tag("span", item["id"], class_="id"), tag("span", note) if note else None)
