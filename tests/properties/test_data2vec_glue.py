"""GLUE as it is published: every task's columns, pairs, matched and mismatched validation, and what a bad file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from avssl.errors import DataError
from avssl_data2vec.glue import detect, read

PAIR = "a dog\tan animal"
TASKS = {  # header of train.tsv (None: there is none), a line, its text, its label
    "CoLA": (None, "gj04\t0\t*\tThey drank the pub.", "They drank the pub.", "0"),
    "SST-2": ("sentence\tlabel", "a fine film \t1", "a fine film ", "1"),
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", f"1\t7\t8\t{PAIR}", PAIR, "1"),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", f"0\t1\t2\t{PAIR}\t0", PAIR, "0"),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        f"0\tnews\tf\t2012\t1\tnone\tnone\t{PAIR}\t3.800",
        PAIR,
        "3.800",
    ),
    "MNLI": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
        "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        f"0\t1\t1n\tfiction\t(a)\t(b)\t(c)\t(d)\t{PAIR}\tneutral\tentailment",
        PAIR,
        "entailment",
    ),
    "QNLI": ("index\tquestion\tsentence\tlabel", f"0\t{PAIR}\tnot_entailment", PAIR, "not_entailment"),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel",
        f'0\tsaid "yes\t{PAIR[6:]}\tentailment',
        f'said "yes\t{PAIR[6:]}',
        "entailment",
    ),
}


def task(folder: Path, name: str, dev: str = "dev") -> Path:
    header, line, *_ = TASKS[name]
    for file in ("train", dev):
        (folder / f"{file}.tsv").write_text(
            "\n".join([*([header] if header else []), line, line, ""]), encoding="utf-8"
        )
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_as_it_is_published(name: str, tmp_path: Path):
    folder = task(tmp_path, name)
    *_, text, label = TASKS[name]
    assert detect(folder) and detect(folder / "dev.tsv")
    rows = read(folder)
    assert [r.split for r in rows] == ["train", "train", "val", "val"] and len({r.id for r in rows}) == 4
    assert all(r.parts == {"text": text} and r.labels == (label,) for r in rows)


def test_mismatched_sentences_are_a_split_of_their_own(tmp_path: Path):
    folder = task(task(tmp_path, "MNLI", "dev_matched"), "MNLI", "dev_mismatched")
    assert [r.split for r in read(folder)] == ["train"] * 2 + ["val"] * 2 + ["mismatched"] * 2


def test_test_sentences_have_no_labels(tmp_path: Path):
    (tmp_path / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n", encoding="utf-8")
    (row,) = read(tmp_path / "test.tsv")
    assert row.labels == () and row.parts == {"text": "a\tb"} and row.split == "test"


def test_other_tables_are_left_to_their_own_reader(tmp_path: Path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tb\n", encoding="utf-8")
    assert not detect(tmp_path / "train.tsv") and not detect(tmp_path) and not detect(tmp_path / "none.tsv")


def test_a_short_line_is_named(tmp_path: Path):
    folder = task(tmp_path, "RTE")
    (folder / "dev.tsv").write_text(TASKS["RTE"][0] + "\n0\tonly one\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"dev.tsv: line 2 has 2 columns"):
        read(folder)
