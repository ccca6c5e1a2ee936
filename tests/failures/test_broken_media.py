"""Every file of the broken-media collection has the outcome that its table expects, and the error says why."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import av
import numpy as np
import pytest
from messages import says

from avssl.data.bad import BadFiles
from avssl.data.clip import Absent, FramesRequest, Limits, Row
from avssl.data.decode import decode_audio, decode_frames
from avssl.data.manifest import read_rows
from avssl.data.scan import examine, scan
from avssl.errors import DataError

FOLDER = Path(os.environ.get("AVSSL_SHARED_ROOT", Path(__file__).resolve().parents[3] / "shared")) / "data/broken-media"
TABLE = FOLDER / "expected.csv"
CASES = list(csv.DictReader(TABLE.open(newline="", encoding="utf-8"))) if TABLE.exists() else []
if not CASES:
    pytest.skip(f"no broken media at {FOLDER}; set AVSSL_SHARED_ROOT", allow_module_level=True)

TRIMS = int(av.__version__.partition(".")[0]) >= 19  # its FFmpeg cuts the padding of AAC off the end
NOT_FINITE = {"nan-float32.wav", "inf-float32.wav"}  # "yes" to a reader, but never to be trained on
# samples (channels kept), rate and pictures (height, width) where the table fixes them
SOUND = {
    "sixteen-channels.wav": (16, 8000, 16000),
    "one-sample.wav": (1, 1, 16000),
    "zero-samples.wav": (1, 0, 16000),
    "odd-data-length.wav": (1, 31999, 16000),
    "streaming-size-ffffffff.wav": (1, 32000, 16000),
    "truncated.wav": (1, 10674, 16000),
    "wavex-ms-adpcm.wav": (1, 32384, 16000),
    "alaw.wav": (1, 32000, 8000),
    "rate-96000.wav": (1, 96000, 96000),
    "mp4-named.wav": (2, 132300 if TRIMS else 133120, 44100),
    "audio-starts-late.mkv": (2, 134144, 44100),
    "audio-shorter-than-video.mp4": (2, 22528, 44100),
    "theora-empty-packets.ogv": (2, 64000, 16000),
    "truncated.mkv": (2, 73728, 44100),
}
PICTURES = {
    "rotated-90.mp4": (320, 214),
    "exif-rotated.jpg": (60, 40),
    "tiny-2x2.mp4": (2, 2),
    "odd-size-rgb.mkv": (57, 101),
    "one-pixel.png": (1, 1),
    "gray16.png": (20, 30),
    "cmyk.jpg": (40, 60),
}
REASONS = {
    "zero-byte.mp4": "is empty (0 bytes)",
    "zero-byte.wav": "is empty (0 bytes)",
    "truncated-end-moov-lost.mp4": "cannot be read as media: Invalid data found when processing input",
    "header-only.wav": "its header promises samples, but there are none",
    "nan-float32.wav": "10 of its samples are not finite (NaN or infinity)",
    "inf-float32.wav": "2 of its samples are not finite (NaN or infinity)",
    "zero-channels.wav": "its header says 0 channels, the limit is 1 to 64",
    "lying-huge-rate.wav": "its header says 2147483647 Hz, the limit is 1 to 768000",
    "directory.mp4": "is a directory, not a file",
}


def _outcome(decode, path: Path, *request):  # type: ignore[no-untyped-def]
    try:
        return decode(str(path), *request)
    except Absent:
        return "absent"
    except DataError as error:
        assert str(path) in error.message and "\n" not in str(error) and error.fix
        return "no"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["path"])
def test_sound_is_decoded_refused_or_absent_as_expected(case):
    name, expected = case["path"], case["audio_decodable"]
    found = _outcome(decode_audio, FOLDER / name)
    if name in NOT_FINITE:
        expected = "no"
    if expected == "maybe":
        assert found == "no" or np.isfinite(found.samples).all()
    elif name == "zero-frames.mkv":
        assert found == "no"  # FFmpeg does not open a file that ends after its headers, whatever they announce
    elif expected in ("yes", "part"):
        assert found.samples.dtype == np.float32 and np.isfinite(found.samples).all()
        assert name not in SOUND or (*found.samples.shape, found.rate) == SOUND[name]
        assert name == "zero-samples.wav" or found.samples.shape[1] > 0
    else:
        assert found == expected


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["path"])
def test_pictures_are_decoded_refused_or_absent_as_expected(case):
    name, expected = case["path"], case["video_decodable"]
    found = _outcome(decode_frames, FOLDER / name, FramesRequest(count=3))
    if expected in ("yes", "part", "image"):
        assert found.pixels.dtype == np.uint8 and found.pixels.shape[0] == 3 and found.pixels.shape[3] == 3
        assert name not in PICTURES or found.pixels.shape[1:3] == PICTURES[name]
    elif expected == "maybe":
        assert found == "no" or found.pixels.size
    elif expected == "picture":
        assert found == "absent", "a cover picture is not the video"
    elif case["audio_decodable"] == "no":
        assert found in ("no", "absent")  # nothing can be read: which of the two words is the decoder's affair
    elif case["audio_decodable"] == "maybe":
        assert found in ("no", "absent")
    else:
        assert found == expected


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_said_word_for_word(name):
    decode = decode_frames if name.endswith(".mp4") else decode_audio
    with pytest.raises(DataError) as caught:
        decode(str(FOLDER / name))
    assert caught.value.message == f"{FOLDER / name}: {REASONS[name]}"


def test_a_scan_keeps_what_can_be_used_and_lists_the_rest():
    rows = [
        Row(id=c["path"], parts={"audio": str(FOLDER / c["path"]), "vision": str(FOLDER / c["path"])}) for c in CASES
    ]
    found = scan(rows, depth="sample")
    kept = {r.id: set(r.parts) for r in found.rows}
    for case in CASES:
        has = kept.get(case["path"], set())
        sound, video = case["audio_decodable"], case["video_decodable"]
        if case["path"] in NOT_FINITE:
            sound = "no"
        if sound != "maybe":
            assert ("audio" in has) == (sound in ("yes", "part")), case["path"]
        if video != "maybe":
            assert ("vision" in has) == (video in ("yes", "part", "image")), case["path"]
    lost = {c["path"] for c in CASES} - set(kept)
    assert lost <= {b.id for b in found.bad if b.what != "missing"}


def test_the_folder_itself_is_scanned_and_content_wins_over_suffixes():
    found = scan(read_rows(FOLDER), depth="sample")
    parts = {r.id: set(r.parts) for r in found.rows}
    assert parts["mp4-named"] == {"audio", "vision"} and parts["flac-named"] == {"audio"}
    assert {"directory", "text-renamed", "random-bytes"} <= {b.id for b in found.bad}


def test_a_scan_notes_what_is_suspicious():
    def notes(name):  # type: ignore[no-untyped-def]
        row = examine(Row(id="x", parts={"audio": str(FOLDER / name)})).row
        return "" if row is None else row.extra.get("note", "")

    assert notes("silence.wav") == "silent" and notes("zero-samples.wav") == "empty sound"


def test_two_sound_tracks_give_the_first():
    import av

    with av.open(str(FOLDER / "two-audio-tracks.mkv")) as container:
        first = np.concatenate([f.to_ndarray() for f in container.decode(container.streams.audio[0])], axis=1)
    np.testing.assert_array_equal(decode_audio(str(FOLDER / "two-audio-tracks.mkv")).samples, first)


def test_sound_that_starts_late_keeps_its_place_on_the_clock_of_the_pictures():
    wave = decode_audio(str(FOLDER / "audio-starts-late.mkv"))
    assert wave.start == pytest.approx(1.0, abs=0.03)


def test_limits_hold_before_memory_is_taken():
    with says(
        DataError,
        f"{FOLDER / 'dc-only.wav'}: more than 0.5 s of sound at once (data.max_seconds) (give windows "
        "(start, end), or raise data.max_seconds)",
    ):
        decode_audio(str(FOLDER / "dc-only.wav"), limits=Limits(max_seconds=0.5))
    with says(
        DataError,
        f"{FOLDER / 'sixteen-channels.wav'}: its header says 16 channels, the limit is 1 to 8 (mend or "
        "remove the file)",
    ):
        decode_audio(str(FOLDER / "sixteen-channels.wav"), limits=Limits(max_channels=8))
    video = FOLDER / "video-without-audio.mp4"
    with says(
        DataError,
        f"{video}: its pictures are 320x214, more than data.max_pixels = 1000 (raise data.max_pixels or "
        "scale the file down)",
    ):
        decode_frames(str(FOLDER / "video-without-audio.mp4"), limits=Limits(max_pixels=1000))
    with says(
        DataError, f"{video}: 9 pictures of 320x214 take more than 100000 bytes (ask for fewer or smaller frames)"
    ):
        decode_frames(str(FOLDER / "video-without-audio.mp4"), FramesRequest(count=9), limits=Limits(max_bytes=100_000))


# -- the whole folder, as a user gives it ------------------------------------------------------------------------------
EMPTY = {"zero-samples.wav"}  # a valid file, and nothing to learn from


def expected(path: str, modality: str) -> str:
    """ "good", "bad", "absent" or "either" of a file for a modality that its suffix promises."""
    (case,) = [c for c in CASES if c["path"] == Path(path).name]
    word = case["audio_decodable" if modality == "audio" else "video_decodable"]
    if modality == "audio" and case["path"] in NOT_FINITE | EMPTY:
        word = "no"
    return {"yes": "good", "part": "good", "image": "good", "no": "bad", "absent": "absent", "picture": "absent"}.get(
        word, "either"
    )


def listed(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {line["id"]: line["what"] for line in csv.DictReader(file)}


def test_the_whole_folder_is_embedded(toy_model, tmp_path):
    """A clip that has a damaged part is left out and listed; one that lacks a part is embedded without it."""
    from avssl.embedding.files import read_index
    from avssl.embedding.job import embed

    rows = read_rows(FOLDER)
    embed(toy_model, rows, tmp_path / "x.npz", limits=Limits(max_seconds=60.0))
    index, bad = read_index(tmp_path / "x.npz"), listed(tmp_path / "bad_files.csv")
    assert sorted([*index.ids, *bad]) == sorted(r.id for r in rows)
    for row in rows:
        words = {m: expected(str(s), m) for m, s in row.parts.items()}
        if "either" in words.values():
            continue
        assert (row.id in bad) == ("bad" in words.values() or set(words.values()) == {"absent"}), (row.id, words)
        if row.id in index.ids:
            for modality, word in words.items():
                assert index.present[modality][index.ids.index(row.id)] == (word == "good"), (row.id, modality)
        else:
            assert bad[row.id] == ("bad" if "bad" in words.values() else "missing"), row.id


@pytest.mark.slow
def test_the_whole_folder_is_trained_on(tmp_path):
    """Every file is tried; what its table calls undecodable is listed as bad, what has no sound as missing, all else used."""
    from runs import avssl, pretrain_arguments

    out = tmp_path / "run"
    arguments = pretrain_arguments(FOLDER, out, "data.batch_size=4", "data.max_bad=1.0", "monitor.every=0", updates=60)
    ended = avssl(tmp_path / "logs", *arguments)
    assert ended.code == 0, ended.stderr
    bad = BadFiles(out / "bad_files.csv").by_id
    for row in read_rows(FOLDER, modalities={"audio"}):
        path = str(row.parts["audio"])
        word, found = expected(path, "audio"), bad.get(row.id)
        if Path(path).name == "zero-frames.mkv":
            word = "bad"  # FFmpeg does not open a file that ends after its headers
        if word == "either" or Path(path).name in NOT_FINITE:  # ten samples that a crop may not meet
            continue
        if word == "good":  # a crop of a film may lie after its sound
            assert found is None or found.reason.startswith(f"{path}: has no sound at "), found
        else:
            assert found is not None and found.what == {"absent": "missing"}.get(word, word), (row.id, found)
