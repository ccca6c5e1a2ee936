"""Letters as symbols of a recogniser, and sentences from them."""

from __future__ import annotations

from collections.abc import Sequence

# The published dict.ltr.txt behind fairseq's four specials; the first one serves as blank, "|" parts the words.
FAIRSEQ_LETTERS = ("<s>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
BOUNDARY = "|"


def spell(text: str, symbols: Sequence[str]) -> list[int]:
    """Ids of a sentence: upper case if no symbol is lower case, "|" for spaces, <unk> (or nothing) for others."""
    index = {s: i for i, s in enumerate(symbols)}
    if not any(len(s) == 1 and s.islower() for s in symbols):
        text = text.upper()
    words = " ".join(text.split())
    if BOUNDARY in index:
        words = words.replace(" ", BOUNDARY) + BOUNDARY
    unknown = index.get("<unk>")
    ids = [index.get(c, unknown) for c in words]
    return [i for i in ids if i is not None]


def read(ids: Sequence[int], symbols: Sequence[str]) -> str:
    """The sentence that ids spell; specials ("<...>") are left out."""
    letters = [symbols[i] for i in ids]
    text = "".join(s for s in letters if not (len(s) > 1 and s.startswith("<") and s.endswith(">")))
    return " ".join(text.replace(BOUNDARY, " ").split())
