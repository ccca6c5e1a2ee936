"""Prepared data: complete or absent, made once, and equal to what decoding on the fly gives."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from media_files import number_of, tone, write_image, write_sound, write_video

from avssl.data import prepare as module
from avssl.data.clip import FramesRequest
from avssl.data.decode import decode_audio, decode_frames
from avssl.data.manifest import read_rows
from avssl.data.prepare import Plan, prepare, slug
from avssl.data.resample import mono, resample
from avssl.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", 20, 10, sound=tone(2.0))
    write_video(tmp_path / "in" / "b.mp4", 20, 10)
    write_sound(tmp_path / "in" / "c.wav", tone(1.0, 44_100, channels=2), 44_100)
    write_image(tmp_path / "in" / "d.png")
    (tmp_path / "in" / "e.wav").write_bytes(b"RIFF junk")
    return tmp_path


def _times(root):  # type: ignore[no-untyped-def]
    return {p: p.stat().st_mtime_ns for p in sorted(root.rglob("*")) if p.suffix in (".jpg", ".flac", ".wav")}


def test_sound_and_frames_are_those_of_the_source(folder):
    rows = read_rows(folder / "in")
    made, bad = prepare(rows, folder / "out", Plan(frames=4, size=32))
    assert [r.id for r in made] == ["a", "b", "c", "d"] and [b.id for b in bad if b.what == "bad"] == ["e"]
    assert read_rows(folder / "out") == made
    a, b, c, d = made
    assert set(a.parts) == {"audio", "vision"} and set(b.parts) == {"vision"}
    assert d.parts == {"vision": str(folder / "in" / "d.png")}
    frames = decode_frames(a.parts["vision"], FramesRequest(indices=(0, 1, 2, 3)))
    assert frames.pixels.shape == (4, 32, 43, 3) and [number_of(p) for p in frames.pixels] == [2, 7, 12, 17]
    wave, source = decode_audio(c.parts["audio"]), decode_audio(rows[2].parts["audio"])
    assert wave.rate == 16_000 and c.duration == pytest.approx(1.0)
    np.testing.assert_allclose(wave.samples[0], resample(mono(source.samples), 44_100, 16_000), atol=1 / 32000)


def test_a_second_call_makes_nothing_again_and_mends_what_is_missing(folder):
    rows = read_rows(folder / "in")
    made, _ = prepare(rows, folder / "out")
    before = _times(folder / "out")
    assert prepare(rows, folder / "out")[0] == made and _times(folder / "out") == before
    lost = [next(p for p in before if p.suffix == s) for s in (".jpg", ".wav")]
    for path in lost:
        path.unlink()
    assert prepare(rows, folder / "out")[0] == made
    assert all(p.exists() for p in lost) and len(_times(folder / "out")) == len(before)


@pytest.mark.parametrize("after", range(0, 12, 3))
def test_a_power_cut_leaves_no_half_file(folder, monkeypatch, after):
    class PowerCut(BaseException):
        pass

    calls = []
    replace_ = os.replace

    def cut(source, target):  # type: ignore[no-untyped-def]
        calls.append(target)
        if len(calls) > after:
            raise PowerCut
        replace_(source, target)

    rows = read_rows(folder / "in")
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", cut)
        with pytest.raises(PowerCut):
            prepare(rows, folder / "out")
    assert not (folder / "out" / "manifest.parquet").exists()
    for path in _times(folder / "out"):
        assert not path.name.startswith("."), "a temporary file was left"
        (decode_audio if path.suffix == ".wav" else decode_frames)(str(path))
    made, _ = prepare(rows, folder / "out")
    assert len(made) == 4


def test_a_window_is_cut_out(folder):
    rows = [replace(r, start=0.5, end=1.5) for r in read_rows(folder / "in") if r.id == "a"]
    (made,), _ = prepare(rows, folder / "out", Plan(frames=2))
    assert made.start is None and made.end is None and made.duration == pytest.approx(1.0, abs=0.001)
    assert [number_of(p) for p in decode_frames(made.parts["vision"], FramesRequest(count=2)).pixels] == [7, 12]


def test_other_options_do_not_mix_with_an_old_folder(folder):
    rows = read_rows(folder / "in")
    prepare(rows, folder / "out")
    with pytest.raises(DataError, match="was prepared with other options"):
        prepare(rows, folder / "out", Plan(frames=3))
    with pytest.raises(UsageError, match="format 'mp3' is not known"):
        Plan(format="mp3")
    with pytest.raises(DataError, match="no item can be prepared"):
        prepare([r for r in rows if r.id == "e"], folder / "other")


def test_another_source_or_window_under_a_known_id_is_prepared_anew(folder, tmp_path):
    """Two data sets that number their clips, one output folder: neither may get the other's sound."""
    write_sound(tmp_path / "first" / "0.wav", tone(1.0, hertz=300))
    write_sound(tmp_path / "second" / "0.wav", tone(2.0, hertz=500))
    first, second = (read_rows(tmp_path / n) for n in ("first", "second"))
    lengths = [prepare(rows, folder / "out")[0][0].duration for rows in (first, second, first)]
    assert lengths == [1.0, 2.0, 1.0]
    assert prepare([replace(second[0], end=0.5)], folder / "out")[0][0].duration == 0.5


def test_ids_become_file_names_that_never_collide():
    names = ["a/b", "a_b", "a b", "", "..", "x" * 300, "é", "caf\udce9"]
    slugs = [slug(n) for n in names]
    assert len(set(slugs)) == len(names) and all(len(s) < 100 and "/" not in s and s.isascii() for s in slugs)


def test_square_keeps_the_centre(folder):
    rows = read_rows(folder / "in")
    whole = prepare(rows, folder / "whole", Plan(frames=2, size=32))[0][0]
    square = prepare(rows, folder / "square", Plan(frames=2, size=32, square=True))[0][0]
    a, b = (decode_frames(r.parts["vision"], FramesRequest(indices=(0, 1))).pixels for r in (whole, square))
    assert a.shape == (2, 32, 43, 3) and b.shape == (2, 32, 32, 3)
    assert np.abs(a[:, :, 5:37].astype(int) - b).mean() < 4  # JPEG blocks lie elsewhere
