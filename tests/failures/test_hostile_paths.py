"""Paths that are no ordinary files: each is refused with one line, and nothing hangs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from media_files import tone, write_sound, write_video
from messages import says

from avssl.data.bad import BadFiles
from avssl.data.decode import decode_audio, decode_frames, probe
from avssl.data.manifest import read_rows, write_rows
from avssl.data.scan import scan
from avssl.errors import DataError

NAMES = [
    "new\nline.wav",
    "-dash.wav",
    "qu'o\"te.wav",
    "sp ace.wav",
    "per%cent.wav",
    "emoji-🎧.wav",
    "con:on.wav",
    "http:..wav",
    "pipe|.wav",
    "semi;colon.wav",
    "json:x.wav",
    "x" * 251 + ".wav",
    "[0-9]*.wav",
    "%03d.wav",
]


def _refused(path: object, message: str) -> None:
    for look in (decode_audio, decode_frames, probe):
        with pytest.raises(DataError) as caught:
            look(str(path))
        assert caught.value.message.endswith(message) and "\n" not in str(caught.value) and caught.value.fix


def test_what_is_not_there_or_no_file_is_said_in_one_line(tmp_path):
    _refused(tmp_path / "none.wav", "none.wav: no such file")
    (tmp_path / "dir.mp4").mkdir()
    _refused(tmp_path / "dir.mp4", "dir.mp4: is a directory, not a file")
    (tmp_path / "empty.wav").touch()
    _refused(tmp_path / "empty.wav", "empty.wav: is empty (0 bytes)")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    _refused(tmp_path / "loop.wav", "loop.wav: a loop of symbolic links")
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "gone.wav")
    _refused(tmp_path / "dangling.wav", "dangling.wav: no such file")
    _refused(tmp_path / "empty.wav" / "x.wav", "x.wav: no such file: a part of the path is no directory")
    _refused(tmp_path / ("x" * 300 + ".wav"), ": the path is too long for this system")
    with says(DataError, f"{tmp_path / 'dir.mp4'}: is a directory, not a file (give the files in it)"):
        probe(str(tmp_path / "dir.mp4"))
    with says(DataError, "a\\x00.wav: a null byte in its name (check the path)"):
        decode_audio("a\0.wav")


@pytest.mark.timeout(20)
def test_a_pipe_and_a_device_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    _refused(tmp_path / "pipe.wav", "pipe.wav: is no regular file (a pipe, socket or device)")
    _refused("/dev/null", "/dev/null: is no regular file (a pipe, socket or device)")
    write_sound(tmp_path / "good.wav", tone(0.1))
    found = scan(read_rows(tmp_path))
    assert [r.id for r in found.rows] == ["good"] and [b.id for b in found.bad] == ["pipe"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write_sound(tmp_path / "a.wav", tone(0.1))
    path.chmod(0)
    _refused(path, "a.wav: no permission to read it")


def test_permission_is_refused_as_the_system_says_it(tmp_path, monkeypatch):
    path = write_sound(tmp_path / "a.wav", tone(0.1))
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    _refused(path, "a.wav: no permission to read it")


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_odd_names_are_read_scanned_and_kept_in_every_manifest(tmp_path, name):
    write_sound(tmp_path / "data" / name, tone(0.1))
    write_video(tmp_path / "data" / (name[:-4][:240] + "2.mp4"), 3)
    found = scan(read_rows(tmp_path / "data"))
    assert len(found.rows) == 2 and not found.bad
    for suffix in (".csv", ".jsonl", ".parquet"):
        write_rows(found.rows, tmp_path / f"m{suffix}")
        assert read_rows(tmp_path / f"m{suffix}") == found.rows
        assert all(s and s[0].isprintable() for r in found.rows for s in [r.id])


def test_names_that_are_not_utf8_are_read_and_shown_escaped(tmp_path):
    folder = os.fsencode(tmp_path)
    raw = folder + b"/caf\xe9-\xff.wav"
    try:
        Path(os.fsdecode(raw)).write_bytes(write_sound(tmp_path / "a.wav", tone(0.1)).read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    film = os.fsdecode(folder + b"/f\xfclm.mp4")
    os.rename(write_video(tmp_path / "b.mp4", 3), film)
    assert decode_audio(os.fsdecode(raw)).samples.shape == (1, 1600)
    assert decode_frames(film).pixels.shape == (1, 48, 64, 3)
    found = scan(read_rows(tmp_path))
    assert {r.id for r in found.rows} == {"a", "caf\\xe9-\\xff", "f\\xfclm"}
    for suffix in (".csv", ".jsonl", ".parquet"):
        write_rows(found.rows, tmp_path / f"m{suffix}")
        assert read_rows(tmp_path / f"m{suffix}") == found.rows
    os.truncate(raw, 20)
    broken = scan(read_rows(tmp_path))
    (item,) = broken.bad
    assert item.reason.startswith(f"{tmp_path}/caf\\xe9-\\xff.wav: ")
    BadFiles(tmp_path / "bad_files.csv").add(broken.bad)
    assert BadFiles(tmp_path / "bad_files.csv").items


def test_loops_of_folders_end_and_files_reached_twice_are_read_once(tmp_path):
    write_sound(tmp_path / "a" / "x.wav", tone(0.1))
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    assert len(read_rows(tmp_path)) == 1


def test_files_that_differ_only_in_case_are_two_items(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0.1))
    write_sound(tmp_path / "A.wav", tone(0.1))
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system ignores case")
    assert {r.id for r in read_rows(tmp_path)} == {"a", "A"}


def test_a_deep_tree_is_read(tmp_path):
    folder = tmp_path
    while len(str(folder)) < 1200:
        folder = folder / ("d" * 100)
    folder.mkdir(parents=True)
    write_sound(tmp_path / "a.wav", tone(0.1)).rename(folder / "a.wav")  # libsndfile itself writes no such path
    (row,) = read_rows(tmp_path)
    assert decode_audio(row.parts["audio"]).samples.shape == (1, 1600)


def test_a_file_that_vanishes_or_shrinks_after_listing_is_reported_not_fatal(tmp_path):
    for n in range(3):
        write_sound(tmp_path / f"{n}.wav", tone(0.5))
    rows = read_rows(tmp_path)
    (tmp_path / "0.wav").unlink()
    os.truncate(tmp_path / "1.wav", 44)
    found = scan(rows)
    assert [r.id for r in found.rows] == ["2"]
    assert [b.reason.split(": ", 1)[1] for b in found.bad] == [
        "no such file",
        "its header promises samples, but there are none",
    ]


def test_nothing_usable_is_one_line(tmp_path):
    for path, message in (
        (tmp_path / "none", "none: no such file or folder"),
        (tmp_path, ": holds nothing that avssl can read"),
    ):
        with pytest.raises(DataError) as caught:
            read_rows(path)
        assert caught.value.message.endswith(message)
    (tmp_path / "x.xyz").write_text("x")
    with says(
        DataError,
        f"{tmp_path / 'x.xyz'}: is neither a folder, a manifest nor a media file of a known suffix "
        "(rename it, or list it in a manifest under audio or vision)",
    ):
        read_rows(tmp_path / "x.xyz")


def test_a_playlist_opens_no_other_file(tmp_path):
    """FFmpeg follows HLS and concat scripts by their content, whatever they are called."""
    secret = write_sound(tmp_path / "secret.wav", tone(0.1))
    scripts = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{secret}'\n",
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        assert stat.S_ISREG((tmp_path / name).stat().st_mode)
        why = "Invalid data found when processing input" if name == "hls.mp4" else "Invalid argument"
        with says(DataError, f"{tmp_path / name}: cannot be read as media: {why} (mend or remove the file)"):
            decode_audio(str(tmp_path / name))
