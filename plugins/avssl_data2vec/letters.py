"""Letters as symbols of a recogniser, and sentences from them."""

from __future__ import annotations

from collections.abc import Sequence

# The published dict.ltr.txt behind fairseq's four specials; the first one serves as blank, "|" parts the words.
FAIRSEQ_LETTERS = ("<s>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
BOUNDARY = "|"


def plain(text: str, symbols: Sequence[str]) -> str:
    """A transcript as a recogniser could write it: upper case if no symbol is lower case, one space between words."""
    cased = any(len(s) == 1 and s.islower() for s in symbols)
    return " ".join((text if cased else text.upper()).split())


def spell(text: str, symbols: Sequence[str]) -> list[int]:
    """Ids of a sentence: as `plain` has it, "|" for spaces, <unk> (or nothing) for letters that are no symbols."""
    index = {s: i for i, s in enumerate(symbols)}
    words = plain(text, symbols)
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
