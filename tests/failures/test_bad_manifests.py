"""A manifest that cannot be used is refused with its file, its line and what to do."""

from __future__ import annotations

import pytest
from messages import says

from avssl.data.manifest import read_rows
from avssl.errors import DataError

CASES = {
    "duplicate ids": ("m.csv", b"id,path\na,1.wav\nb,2.wav\na,3.wav\n", "id 'a' of item 3 is also that of item 1"),
    "a column too few": ("m.csv", b"id,path\na,1.wav\nb\n", "line 3 has 1 fields, the header has 2"),
    "not UTF-8": ("m.csv", b"id,path\na,caf\xe9.wav\n", "line 2 is not UTF-8 (byte 0xe9)"),
    "no media column": (
        "m.csv",
        b"id,sound\na,1.wav\n",
        "has no column that names media or text (it has 'id', 'sound')",
    ),
    "an empty line of cells": ("m.csv", b"id,path\na,1.wav\nb,\n", "line 3 names no media and no text"),
    "an unknown suffix": ("m.csv", b"path\n1.xyz\n", "line 2, path: 1.xyz has no suffix of a known kind of media"),
    "a time that is none": ("m.csv", b"path,start\n1.wav,soon\n", "line 2, start: 'soon' is no number of at least 0"),
    "a negative time": ("m.csv", b"path,start\n1.wav,-1\n", "line 2, start: '-1' is no number of at least 0"),
    "an infinite time": ("m.csv", b"path,end\n1.wav,inf\n", "line 2, end: 'inf' is no number of at least 0"),
    "an empty window": ("m.csv", b"path,start,end\n1.wav,3,2\n", "line 2: the window 3-2 s is empty"),
    "a column twice": ("m.csv", b"path,path\n1.wav,2.wav\n", "has the column 'path' twice"),
    "an open quote": ("m.csv", b'path,label\n1.wav,"x\n', "line 2: unexpected end of data"),
    "a NUL": ("m.csv", b"path\n1\0.wav\n", "holds NUL characters"),
    "a header alone": ("m.csv", b"path,label\n", "has no rows"),
    "an empty file": ("m.csv", b"", "is empty (0 bytes)"),
    "broken JSON": (
        "m.jsonl",
        b'{"path": "1.wav"}\n{"path"\n',
        "line 2 is no JSON: Expecting ':' delimiter: line 1 column 8 (char 7)",
    ),
    "JSON that is no object": ("m.jsonl", b"[1]\n", "line 1 is no JSON object"),
    "a path that is none": ("m.jsonl", b'{"audio": 3}\n', "line 1, audio: 3 is no path"),
    "no Parquet": (
        "m.parquet",
        b"PAR1" + bytes(64),
        "is no readable Parquet file: Could not open Parquet input source '{path}': Parquet magic "
        "bytes not found in footer. Either the file is corrupted or this is not a parquet file.",
    ),
}
FIXES = {
    "duplicate ids": "make the ids unique, or leave the column out",
    "a column too few": "quote fields that contain the separator",
    "not UTF-8": "save the file as UTF-8",
    "no media column": "name one audio, text, vision or path",
    "an empty line of cells": "fill in a column or remove the line",
    "an unknown suffix": "name the column audio or vision",
    "a time that is none": "mend the cell",
    "a negative time": "mend the cell",
    "an infinite time": "mend the cell",
    "an empty window": "check start and end",
    "a column twice": "rename one",
    "an open quote": "mend the CSV",
    "a NUL": "save the file as plain CSV",
    "a header alone": "give a manifest with at least one item",
    "an empty file": "mend or remove the file",
    "broken JSON": "write one JSON object a line",
    "JSON that is no object": "write one JSON object a line",
    "a path that is none": "give a path or a list of paths",
    "no Parquet": "mend or remove the file",
}


@pytest.mark.parametrize("name", CASES)
def test_it_says_where_and_what(tmp_path, name):
    file, data, message = CASES[name]
    (tmp_path / file).write_bytes(data)
    with says(DataError, f"{tmp_path / file}: {message.replace('{path}', str(tmp_path / file))} ({FIXES[name]})"):
        read_rows(tmp_path / file)


def test_deep_json_does_not_end_the_programme(tmp_path):
    (tmp_path / "m.jsonl").write_text("[" * 200_000)
    with pytest.raises(DataError, match="line 1 is no JSON"):
        read_rows(tmp_path / "m.jsonl")


def test_a_missing_file_is_found_when_it_is_read_and_spoils_no_other(tmp_path):
    from media_files import tone, write_sound

    from avssl.data.scan import scan

    write_sound(tmp_path / "there.wav", tone(0.1))
    (tmp_path / "m.csv").write_text("path\nthere.wav\ngone.wav\n")
    found = scan(read_rows(tmp_path / "m.csv"))
    assert [r.id for r in found.rows] == ["there.wav"]
    assert [(b.id, b.what, b.reason) for b in found.bad] == [("gone.wav", "bad", f"{tmp_path}/gone.wav: no such file")]
