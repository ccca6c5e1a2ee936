"""Splits keep together what belongs together, and leaks are found."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from media_files import picture, tone, write_image, write_sound
from messages import says

from avssl.data.check import check_rows
from avssl.data.clip import Row
from avssl.data.fingerprint import fingerprint, fingerprints
from avssl.data.manifest import read_rows
from avssl.data.split import bundle, few_rows, fold_rows, split_rows
from avssl.errors import DataError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def _rows(count: int = 600, groups: int = 0, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["common", "usual", "rare"], count, p=[0.7, 0.25, 0.05])
    return [
        Row(
            id=str(i),
            parts={"audio": f"/{i}.wav"},
            labels=(str(labels[i]),),
            group=str(rng.integers(groups)) if groups else "",
        )
        for i in range(count)
    ]


def test_every_class_keeps_its_share():
    rows = split_rows(_rows(), SHARES, seed=1)
    for label in ("common", "usual", "rare"):
        places = Counter(r.split for r in rows if label in r.labels)
        for split, share in SHARES.items():
            assert places[split] / sum(places.values()) == pytest.approx(share, abs=0.04), (label, split)


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_divided_and_shares_stay_near(seed):
    rows = split_rows(_rows(groups=60, seed=seed), SHARES, seed=seed)
    where: dict[str, set[str]] = {}
    for row in rows:
        where.setdefault(row.group, set()).add(row.split)
    assert all(len(splits) == 1 for splits in where.values())
    counts = Counter(r.split for r in rows)
    for split, share in SHARES.items():
        assert counts[split] / len(rows) == pytest.approx(share, abs=0.05)


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    rows = _rows()
    assert split_rows(rows, SHARES, seed=3) == split_rows(rows, SHARES, seed=3)
    assert [r.split for r in split_rows(rows, SHARES, seed=3)] != [r.split for r in split_rows(rows, SHARES, seed=4)]


def test_files_groups_and_copies_chain_together():
    rows = [
        Row("a", {"audio": "/1.wav"}, group="g"),
        Row("b", {"audio": "/2.wav"}, group="g"),
        Row("c", {"audio": "/2.wav"}),
        Row("d", {"audio": "/4.wav"}),
        Row("e", {"audio": "/5.wav"}),
    ]
    prints = [{}, {}, {"audio": "x"}, {"audio": "x"}, {"audio": "y"}]
    assert bundle(rows, prints) == [[0, 1, 2, 3], [4]]


def test_folds_are_equal_and_stratified():
    rows = fold_rows(_rows(500), 5)
    assert sorted(Counter(r.fold for r in rows).items()) == [(n, 100) for n in range(1, 6)]
    assert max(Counter(r.fold for r in rows if r.labels == ("rare",)).values()) <= 8


def test_impossible_splits_are_refused():
    with says(DataError, "the shares {'train': 0.5, 'test': 0.6} do not sum to 1 (e.g. train=0.8 val=0.1 test=0.1)"):
        split_rows(_rows(10), {"train": 0.5, "test": 0.6})
    with says(
        DataError,
        "10 items in 1 group cannot fill 2 splits (what shares a group, a file or its content stays together: "
        "give more, or fewer splits)",
    ):
        split_rows([replace(r, group="g") for r in _rows(10)], {"train": 0.5, "test": 0.5})
    with says(DataError, "1 folds are none (give at least 2)"):
        fold_rows(_rows(10), 1)
    small = Counter(r.split for r in split_rows(_rows(4), {"train": 0.9, "val": 0.05, "test": 0.05}))
    assert set(small) == {"train", "val", "test"}  # no split stays empty


def test_copies_in_another_container_or_size_are_found(tmp_path):
    samples = (tone(0.5) * 32767).astype(np.int16)
    write_sound(tmp_path / "a.wav", samples)
    write_sound(tmp_path / "b.flac", samples)
    write_sound(tmp_path / "c.wav", samples // 2)
    scene = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    write_image(tmp_path / "d.png", scene)
    write_image(tmp_path / "e.jpg", scene, quality=80)
    write_image(tmp_path / "f.png", scene[::-1])
    prints = dict(zip("abcdef", fingerprints(read_rows(tmp_path)), strict=True))
    assert prints["a"] == prints["b"] != prints["c"]
    assert prints["d"] == prints["e"] != prints["f"]


def test_silence_and_blank_pictures_are_nobodys_copy(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0.5) * 0)
    write_image(tmp_path / "b.png", np.full((100, 100, 3), 7, np.uint8))
    assert [fingerprint(r) for r in read_rows(tmp_path)] == [{}, {}]


def test_leaks_are_named(tmp_path):
    write_sound(tmp_path / "a.wav", (tone(0.5) * 32767).astype(np.int16))
    write_sound(tmp_path / "b.flac", (tone(0.5) * 32767).astype(np.int16))
    write_sound(tmp_path / "c.wav", tone(0.5, hertz=300))
    a, b, c = read_rows(tmp_path)
    rows = [
        replace(a, split="train", labels=("x",)),
        replace(b, split="test", labels=("y",)),
        replace(c, split="train", group="g"),
        replace(c, id="c2", split="test", group="g", labels=("x",)),
    ]
    found = check_rows(rows, fingerprints(rows))
    assert {(p.kind, p.message, p.grave) for p in found} == {
        ("group leak", "group 'g' is in test, train", True),
        ("shared file", f"{tmp_path}/c.wav is in test, train", True),
        ("duplicate", "the same audio 2 times across test, train: a, b", True),
        ("label", "1 of 4 items have no label", False),
        ("label", "label 'y' is tested but never trained", False),
    }
    assert check_rows([replace(r, split="train", labels=("x",)) for r in (a, c)], fingerprints([a, c])) == []


def test_a_split_of_the_real_digits_by_speaker_has_no_leak(shared_data):
    rows = read_rows(shared_data / "av-digits")
    assert any(p.kind == "group leak" for p in check_rows(rows))
    divided = split_rows(rows, {"train": 0.67, "test": 0.33})
    assert not [p for p in check_rows(divided) if p.grave]
    assert {label for r in divided if r.split == "test" for label in r.labels} == {(str(d)) for d in range(10)}


def test_a_picture_is_not_its_neighbour(tmp_path):
    for n in range(5):
        write_image(tmp_path / f"{n}.png", picture(n * 5))
    prints = fingerprints(read_rows(tmp_path))
    assert len({p["vision"] for p in prints}) == 5


def test_few_rows_are_the_same_number_of_each_class_and_the_same_ones_each_time():
    rows = _rows()
    few = few_rows(rows, 5, seed=1)
    assert Counter(r.labels[0] for r in few) == {"common": 5, "usual": 5, "rare": 5}
    assert few == [r for r in rows if r in few]  # in their order
    assert few_rows(rows[::-1], 5, seed=1) == few[::-1]  # whatever the order they are offered in
    assert few_rows(few, 5, seed=1) == few
    assert {r.id for r in few} < {r.id for r in few_rows(rows, 8, seed=1)}  # more labels are more of the same
    assert few_rows(rows, 5, seed=2) != few
    assert few_rows(rows, 10**6) == rows


def test_few_rows_of_several_labels_give_each_label_its_number_and_leave_out_what_has_none():
    rows = [
        Row(str(i), {"audio": f"/{i}.wav"}, labels=labels)
        for i, labels in enumerate([("a", "b"), ("a",), ("b",), (), ("c",), ("a", "c")] * 10)
    ]
    few = few_rows(rows, 3)
    counts = Counter(label for r in few for label in r.labels)
    assert min(counts[x] for x in "abc") >= 3 and all(r.labels for r in few) and len(few) < 10
    assert few_rows(few, 3) == few
