"""From a path to rows: folders, tables and known data sets; what is written is read back equal."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_files import tone, write_image, write_sound, write_video

from avssl.data.clip import Row
from avssl.data.manifest import read_rows, write_rows
from avssl.errors import DataError


def test_a_folder_gives_every_file_once_in_a_stable_order(tmp_path):
    for name in ("b/10.wav", "b/9.wav", "a.wav"):
        write_sound(tmp_path / name, tone(0.1))
    write_video(tmp_path / "c.mp4", 3)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / ".hidden.wav").write_bytes(b"x")
    rows = read_rows(tmp_path)
    assert [r.id for r in rows] == ["a", "b/9", "b/10", "c"] == [r.id for r in read_rows(tmp_path)]
    assert rows[-1].parts == {"audio": str(tmp_path / "c.mp4"), "vision": str(tmp_path / "c.mp4")}
    assert all(not r.labels and not r.split for r in rows)  # a file outside of the folders: nothing is a label


def test_class_folders_are_labels_and_split_folders_are_splits(tmp_path):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            write_image(tmp_path / split / label / "1.png")
    rows = read_rows(tmp_path)
    assert [(r.split, r.labels) for r in rows] == [
        ("train", ("cat",)),
        ("train", ("dog",)),
        ("val", ("cat",)),
        ("val", ("dog",)),
    ]
    assert [r.labels for r in read_rows(tmp_path / "train")] == [("cat",), ("dog",)]
    assert [r.labels for r in read_rows(tmp_path / "train" / "cat")] == [()]


def test_files_of_one_name_are_one_item_and_a_text_beside_it_its_caption(tmp_path):
    write_sound(tmp_path / "x.wav", tone(0.1))
    write_image(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("a tone")
    (tmp_path / "README.txt").write_text("not an item")
    (row,) = read_rows(tmp_path)
    assert row.parts == {
        "audio": str(tmp_path / "x.wav"),
        "vision": str(tmp_path / "x.png"),
        "text": (str(tmp_path / "x.txt"),),
    }
    write_sound(tmp_path / "x.flac", tone(0.1))
    assert sorted(r.id for r in read_rows(tmp_path)) == ["x.flac", "x.png", "x.wav"]  # which sound is whose is unknown


def test_frame_folders_are_items_of_many_frames(tmp_path):
    for n in range(11):
        write_image(tmp_path / "one" / f"frame_{n}" / "clip.jpg")
        write_image(tmp_path / "two" / "frames" / f"{n}.jpg")
    write_sound(tmp_path / "two" / "sound.wav", tone(0.1))
    one, two = read_rows(tmp_path)
    assert one.id == "one/clip" and [p.split("/")[-2] for p in one.parts["vision"]] == [f"frame_{n}" for n in range(11)]
    assert two.id == "two" and len(two.parts["vision"]) == 11 and two.parts["audio"].endswith("sound.wav")


def test_a_manifest_at_the_top_of_a_folder_is_its_list(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0.1))
    write_sound(tmp_path / "b.wav", tone(0.1))
    (tmp_path / "manifest.csv").write_text("path,label\nb.wav,x\n")
    assert [(r.id, r.labels) for r in read_rows(tmp_path)] == [("b.wav", ("x",))]


def test_a_csv_of_another_programme_is_understood(tmp_path):
    (tmp_path / "m.csv").write_bytes(
        b"\xef\xbb\xbfvideo;caption;labels;fold;speaker;start;end;mood\r\n"
        b'clips/1.mp4;"a dog; a ""cat""\nand rain";dog|rain;3;ann;1.5;4;calm\r\n\r\n'
        b'/abs/2.wav;;"[""x, y"", ""z""]";;;;;\r\n'
    )
    first, second = read_rows(tmp_path / "m.csv")
    assert first == Row(
        id="clips/1.mp4#1.5-4",
        labels=("dog", "rain"),
        group="ann",
        fold=3,
        start=1.5,
        end=4.0,
        parts={
            "text": 'a dog; a "cat"\nand rain',
            "audio": str(tmp_path / "clips/1.mp4"),
            "vision": str(tmp_path / "clips/1.mp4"),
        },
        extra={"mood": "calm"},
    )
    assert second == Row(id="/abs/2.wav", parts={"audio": "/abs/2.wav"}, labels=("x, y", "z"))


def test_paths_are_relative_to_the_manifest_and_may_leave_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m.csv").write_text("audio\n../a.wav\nb.wav\n")
    assert [r.parts["audio"] for r in read_rows(tmp_path / "in" / "m.csv")] == [
        str(tmp_path / "a.wav"),
        str(tmp_path / "in" / "b.wav"),
    ]


def test_names_of_classes_win_over_their_numbers(tmp_path):
    (tmp_path / "m.csv").write_text("path,label,category\na.wav,3,dog\n")
    assert read_rows(tmp_path / "m.csv")[0].labels == ("dog",)
    (tmp_path / "n.csv").write_text("path,label\na.wav,3\n")
    assert read_rows(tmp_path / "n.csv")[0].labels == ("3",)


def test_json_lines_keep_types_and_take_lists(tmp_path):
    records = [{"id": "a", "audio": "a.wav", "vision": ["f/0.jpg", "f/1.jpg"], "labels": ["x;y"], "n": 3}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, records)))
    (row,) = read_rows(tmp_path / "m.jsonl")
    assert row.labels == ("x;y",) and row.extra == {"n": 3}
    assert row.parts["vision"] == (str(tmp_path / "f/0.jpg"), str(tmp_path / "f/1.jpg"))


def test_plain_text_is_one_item_for_each_paragraph(tmp_path):
    (tmp_path / "book.txt").write_text("One\nline.\n\n\nTwo.\n")
    assert [(r.id, r.parts["text"]) for r in read_rows(tmp_path / "book.txt")] == [
        ("book/0", "One line."),
        ("book/1", "Two."),
    ]


def test_only_the_wanted_modalities_are_kept(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0.1))
    write_image(tmp_path / "b.png")
    assert [r.id for r in read_rows(tmp_path, modalities={"audio"})] == ["a"]
    with pytest.raises(DataError, match=r": none of the 2 items has text \(they have audio, vision\)"):
        read_rows(tmp_path, modalities={"text"})


LISTS = {
    "audioset": (
        "eval_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2\n# YTID, a, b, c\n"
        '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"\nAAAAAAAAAAA, 30.000, 40.000, "/m/0bt9lr"\n',
    ),
    "vggsound": ("vggsound.csv", '--4gqARaEJE,0,people marching,test\nAAAAAAAAAAA,30,"dog, barking",train\n'),
}


@pytest.mark.parametrize("kind", LISTS)
def test_published_lists_give_the_clips_that_are_there(tmp_path, kind, caplog):
    name, text = LISTS[kind]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="none of its 2 clips lies beside it"):
        read_rows(tmp_path / name)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "--4gqARaEJE_000000.mp4").write_bytes(b"x")
    (row,) = read_rows(tmp_path / name)
    assert row.id == "--4gqARaEJE_0" and set(row.parts) == {"audio", "vision"}
    assert row.labels == {"audioset": ("/m/068hy", "/m/07q6cd_"), "vggsound": ("people marching",)}[kind]
    assert row.split == {"audioset": "eval", "vggsound": "test"}[kind]
    assert "1 of 2 clips are not on disk" in caplog.text


def test_the_real_sets_are_read(shared_data):
    esc = read_rows(shared_data / "esc10")
    assert len(esc) == 400 and {r.fold for r in esc} == {1, 2, 3, 4, 5} and len({r.labels for r in esc}) == 10
    assert esc == read_rows(shared_data / "esc10" / "esc10.csv") and esc[0].group
    digits = read_rows(shared_data / "av-digits")
    assert len(digits) == 3000 and digits[0].group and set(digits[0].parts) == {"audio", "vision"}
    assert {r.split for r in digits} == {"train", "test"}
    assert len({r.labels for r in read_rows(shared_data / "cifar10-subset")}) == 10
    assert len(read_rows(shared_data / "text-banking77" / "train.csv")) == 10003
    assert len(read_rows(shared_data / "media")) == 60


text = st.text(st.characters(exclude_categories=()), max_size=12)
name = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda s: s.strip() and s not in (".", "..")
)
odd = st.sampled_from(
    ["caf\udce9.wav", "a;b.wav", "json:x.wav", '"q".wav', "[1].wav", " lead.wav", "tail .wav", "n\nl.wav"]
)
path = st.one_of(name, odd).map(lambda s: "/data/" + s)
seconds = st.floats(0, 1e6, allow_nan=False)
rows = st.lists(
    st.builds(
        Row,
        id=st.text(min_size=1, max_size=12).filter(str.strip),
        parts=st.one_of(
            st.fixed_dictionaries({"audio": path}),
            st.fixed_dictionaries({"vision": st.lists(path, min_size=1, max_size=3).map(tuple)}),
            st.fixed_dictionaries({"text": text.filter(str.strip), "audio": path}),
        ),
        labels=st.lists(text, max_size=3).map(tuple),
        split=name,
        group=name,
        fold=st.none() | st.integers(0, 9),
        start=st.none() | seconds,
        duration=st.none() | seconds,
        extra=st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(st.integers(-9, 9), name), max_size=2),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda r: r.id,
)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows)
def test_what_is_written_is_read_back_equal(tmp_path, suffix, rows):
    write_rows(rows, tmp_path / f"m{suffix}")
    assert read_rows(tmp_path / f"m{suffix}") == rows


def test_a_written_manifest_moves_with_its_folder(tmp_path):
    write_sound(tmp_path / "one" / "a.wav", tone(0.1))
    write_rows(read_rows(tmp_path / "one"), tmp_path / "one" / "m.csv")
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_rows(tmp_path / "two" / "m.csv")[0].parts == {"audio": str(tmp_path / "two" / "a.wav")}
