"""The tasks of GLUE (arXiv:1804.07461) as they are published: a folder of train.tsv, dev.tsv and test.tsv, or one such file.

The two sentences of a pair become one text with a tab between them. dev_matched.tsv of MNLI validates; the rows of
dev_mismatched.tsv have the split "mismatched".
"""

from __future__ import annotations

from pathlib import Path

from avssl.data.clip import Row
from avssl.errors import DataError

SPLITS = {"train": "train", "dev": "val", "dev_matched": "val", "dev_mismatched": "mismatched",
          "test": "test", "test_matched": "test", "test_mismatched": "test_mismatched"}  # fmt: skip
COLUMNS = (  # of sentences and of the label, the most telling header first
    (("#1 String", "#2 String"), "Quality"),  # MRPC
    (("question1", "question2"), "is_duplicate"),  # QQP
    (("sentence1", "sentence2"), "gold_label"),  # MNLI
    (("sentence1", "sentence2"), "score"),  # STS-B
    (("sentence1", "sentence2"), "label"),  # RTE, WNLI
    (("question", "sentence"), "label"),  # QNLI
    (("sentence",), "label"),  # SST-2, and the test sentences of CoLA
)


def detect(path: Path) -> bool:
    """A task's folder, or one of its files; reads one line."""
    path = Path(path)
    if path.is_dir():
        return any((path / f"{dev}.tsv").is_file() for dev in ("dev", "dev_matched")) and detect(path / "train.tsv")
    return path.suffix == ".tsv" and path.stem in SPLITS and _places(_head(path)) is not None


def read(path: Path) -> list[Row]:
    """A row for each line, its label as it is written. Raises DataError naming a line that has too few columns."""
    path = Path(path)
    files = [p for name in SPLITS if (p := path / f"{name}.tsv").is_file()] if path.is_dir() else [path]
    return [row for file in files for row in _rows(file)]


def _rows(file: Path) -> list[Row]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # sentences may hold other ends of line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: {error}", fix="restore the published file") from None
    places = _places(lines[0])
    if places is None:
        raise DataError(f"{file} is no file of a GLUE task", fix="restore the published file")
    header, sentences, label = places
    rows = []
    for number, line in enumerate(lines[header:], start=header + 1):
        cells = line.rstrip("\r").split("\t")
        if cells == [""]:
            continue
        if len(cells) <= max(*sentences, -1 if label is None else label):
            raise DataError(f"{file}: line {number} has {len(cells)} columns", fix="restore the published file")
        text = "\t".join(cells[i] for i in sentences)
        labels = () if label is None else (cells[label],)
        rows.append(
            Row(id=f"{file.stem}-{number}", parts={"text": text}, labels=labels, split=SPLITS.get(file.stem, ""))
        )
    return rows


def _places(line: str) -> tuple[int, list[int], int | None] | None:
    """(lines of header, columns of the sentences, column of the label); None for a file of another kind."""
    cells = line.rstrip("\r").split("\t")
    if len(cells) == 4 and cells[1] in ("0", "1") and cells[2] in ("", "*"):  # CoLA has no header
        return 0, [3], 1
    for sentences, label in COLUMNS:
        if set(sentences) <= set(cells) and (label in cells or "index" in cells) and "text" not in cells:
            known = label in cells
            if known or not any(other in cells for names, other in COLUMNS if names == sentences):
                return 1, [cells.index(s) for s in sentences], cells.index(label) if known else None
    return None


def _head(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(1 << 16).rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return ""
