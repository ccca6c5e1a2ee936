"""What is wrong with a file, a list or a label, word for word; each message by its real cause."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import picture, tone, write_image, write_sound, write_video
from messages import says

from avssl.data import audio, container
from avssl.data.clip import Absent, AudioRequest, FramesRequest, Limits, Row
from avssl.data.decode import decode_audio, decode_frames, decode_text, probe
from avssl.data.manifest import read_rows
from avssl.data.prepare import Plan, prepare
from avssl.data.resample import resample
from avssl.data.sampler import ShuffledSampler
from avssl.data.scan import examine, scan
from avssl.data.split import fold_rows
from avssl.data.stats import frontend_stats
from avssl.data.targets import Codec, fit_codec
from avssl.errors import AvsslError, DataError, UsageError

MEND = "mend or remove the file"
Case = tuple[Callable[[], Any], type[AvsslError], str]  # what fails, how, and the words


def packets(source: Path, track: int, every: int = 1) -> Path:
    """A copy whose packets of one track (every n-th of them) are bytes of nonsense."""
    import av

    data = bytearray(source.read_bytes())
    with av.open(str(source)) as media:
        for number, packet in enumerate(media.demux(media.streams[track])):
            if packet.size and packet.pos is not None and number % every == 0:
                content = bytes(packet)
                at = data.index(content, packet.pos)
                data[at : at + len(content)] = b"\xff" * len(content)
    copy = source.with_name(f"damaged{source.suffix}")
    copy.write_bytes(data)
    return copy


def empty_track(path: Path, kind: str) -> Path:
    """A film whose sound or pictures are announced and never come."""
    import av

    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = out.add_stream("aac", rate=16000, layout="mono")
        if kind == "sound":
            for n in range(5):
                out.mux(video.encode(av.VideoFrame.from_ndarray(picture(n), format="rgb24")))
            out.mux(video.encode(None))
        else:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone(0.064)), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
    return path


def cover_alone(path: Path) -> Path:
    import av
    from av.stream import Disposition

    with av.open(str(path), "w") as out:
        video = out.add_stream("mjpeg", rate=1)
        video.width, video.height, video.pix_fmt, video.disposition = 64, 48, "yuvj420p", Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24").reformat(format="yuvj420p")
        out.mux([*video.encode(frame), *video.encode(None)])
    return path


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    return path


# -- sound ------------------------------------------------------------------------------------------------------------
def test_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wav = write_sound(tmp_path / "a.wav", tone(1.0))
    flac = write_sound(tmp_path / "a.flac", tone(2.0))
    lost = tmp_path / "lost.flac"
    lost.write_bytes(flac.read_bytes()[:100] + bytes(5000))
    none = write_sound(tmp_path / "none.wav", tone(1.0)[:, :0])
    png = write_image(tmp_path / "a.png")
    film = write_video(tmp_path / "a.mkv", 10, sound=tone(1.0))
    unknown = tmp_path / "unknown.mkv"
    unknown.write_bytes(film.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_MPEGX/ISO/ASP").replace(b"A_AAC", b"A_AAX"))
    announced = empty_track(tmp_path / "announced.mkv", "sound")
    mute = write_video(tmp_path / "mute.mp4", 5)
    mp3 = joined(
        tmp_path / "both.mp3",
        write_sound(tmp_path / "1.mp3", tone(0.5)),
        write_sound(tmp_path / "2.mp3", tone(0.5, channels=2)),
    )
    cases: list[Case] = [
        (partial(decode_audio, str(wav), AudioRequest(3.0)), Absent,
         f"{wav}: has no sound at 3 s, it ends at 1.000 s (check start and end)"),
        (partial(decode_audio, str(wav), AudioRequest(1.5), start=1.0, end=2.0), DataError,
         f"{wav}: the window from 2.5 s to 2 s is empty (check start and end)"),
        (partial(decode_audio, str(wav), start=-1.0), DataError,
         f"{wav}: the window from -1 s to the end is empty (check start and end)"),
        (partial(decode_audio, str(wav), limits=Limits(max_seconds=0.5)), DataError,
         f"{wav}: more than 0.5 s of sound at once (data.max_seconds) (give windows (start, end), or raise "
         "data.max_seconds)"),
        (partial(decode_audio, str(wav), limits=Limits(max_bytes=1000)), DataError,
         f"{wav}: its sound takes more than 1000 bytes at once (give shorter windows)"),
        (partial(decode_audio, str(png)), Absent, f"{png}: is an image, it has no sound (leave it out)"),
        (partial(decode_audio, str(lost)), DataError,
         f"{lost}: cannot be decoded: Error : flac decoder lost sync. ({MEND})"),
        (partial(decode_audio, str(none), AudioRequest(1.0)), Absent, f"{none}: has no sound at all (leave it out)"),
        (partial(decode_audio, str(mp3)), DataError,
         f"{mp3}: its sound changes from 1 channel at 16000 Hz to 2 channels at 16000 Hz (convert the file)"),
        (partial(decode_audio, str(announced)), DataError, f"{announced}: its sound track holds no samples ({MEND})"),
        (partial(decode_audio, str(mute)), Absent,
         f"{mute}: has no sound (leave it out, or use what does without sound)"),
        (partial(decode_audio, str(unknown)), DataError,
         f"{unknown}: its sound codec is not known to this build of FFmpeg (convert the file)"),
        (partial(decode_audio, (str(wav), str(png))), DataError, "2 files given where one is needed (give one path)"),
    ]  # fmt: skip
    for call, kind, text in cases:
        with says(kind, text):
            call()
    monkeypatch.setattr(audio, "_read", lambda *a: np.zeros((1, 0), np.float32))  # as of a file that shrinks meanwhile
    with says(DataError, f"{wav}: its header promises 16000 samples, but none can be decoded ({MEND})"):
        decode_audio(str(wav))
    damaged = packets(film, track=1)
    with pytest.raises(DataError) as caught:  # FFmpeg has no words for what its AAC decoder says
        decode_audio(str(damaged))
    said, _, why = caught.value.message.rpartition(": ")
    assert said == f"{damaged}: none of its sound can be decoded" and why and caught.value.fix == MEND


# -- pictures ---------------------------------------------------------------------------------------------------------
def bomb(path: Path, side: int) -> Path:
    """A PNG header alone, of a picture of so many pixels squared."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, odd = write_image(tmp_path / "1.png"), write_image(tmp_path / "odd.png", picture(0, 32, 32))
    junk, half = tmp_path / "junk.jpg", tmp_path / "half.png"
    junk.write_bytes(b"\xff\xd8\xff junk")
    half.write_bytes(write_image(tmp_path / "whole.png", np.eye(300, dtype=np.uint8)).read_bytes()[:200])
    film = write_video(tmp_path / "a.mkv", 20, sound=tone(2.0))
    unknown = tmp_path / "unknown.mkv"
    unknown.write_bytes(film.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_MPEGX/ISO/ASP"))
    wav = write_sound(tmp_path / "a.wav", tone(0.1))
    announced = empty_track(tmp_path / "announced.mkv", "pictures")
    grows = joined(
        tmp_path / "grows.ts",
        write_video(tmp_path / "1.ts", 5, 25, codec="mpeg2video"),
        write_video(tmp_path / "2.ts", 5, 25, codec="mpeg2video", width=96, height=64),
    )
    cover = cover_alone(tmp_path / "cover.mp4")
    big, bigger = bomb(tmp_path / "big.png", 9_000), bomb(tmp_path / "bigger.png", 60_000)
    raise_it = "raise data.max_pixels or scale the file down"
    cases: list[Case] = [
        (partial(decode_frames, ()), DataError, "no frames are given (check the manifest)"),
        (partial(decode_frames, (str(one), str(one)), FramesRequest(indices=(5,))), Absent,
         f"{one}: frame 5 of 2 files (ask for fewer frames)"),
        (partial(decode_frames, (str(one), str(odd)), FramesRequest(count=2)), DataError,
         f"{odd}: is 32x32, other frames of the clip are 64x48 (make the frames of a clip one size)"),
        (partial(decode_frames, str(one), FramesRequest(count=3), limits=Limits(max_bytes=10_000)), DataError,
         f"{one}: 3 pictures take more than 10000 bytes (ask for fewer frames)"),
        (partial(decode_frames, str(one), limits=Limits(max_pixels=100)), DataError,
         f"{one}: its pictures are 64x48, more than data.max_pixels = 100 ({raise_it})"),
        (partial(decode_frames, str(big)), DataError,
         f"{big}: its pictures are 9000x9000, more than data.max_pixels = 64000000 ({raise_it})"),
        (partial(decode_frames, str(bigger)), DataError, f"{bigger}: is too large an image ({MEND})"),
        (partial(container.check_size, "a.mkv", 0, 48, Limits()), DataError, f"a.mkv: its pictures are 0x48 ({MEND})"),
        (partial(decode_frames, str(junk)), DataError,
         f"{junk}: the image cannot be decoded: its format is not recognised ({MEND})"),
        (partial(decode_frames, str(half)), DataError,
         f"{half}: the image cannot be decoded: image file is truncated ({MEND})"),
        (partial(decode_frames, str(unknown)), DataError,
         f"{unknown}: its video codec is not known to this build of FFmpeg (convert the file)"),
        (partial(decode_frames, str(wav)), Absent,
         f"{wav}: has no video (leave it out, or use what does without video)"),
        (partial(decode_frames, str(cover)), Absent,
         f"{cover}: has no video, only a cover picture (leave it out, or use what does without video)"),
        (partial(probe, str(cover)), DataError,
         f"{cover}: has neither sound nor video, only a cover picture ({MEND})"),
        (partial(decode_frames, str(announced)), DataError, f"{announced}: holds no video frames ({MEND})"),
        (partial(decode_frames, str(announced), FramesRequest(times=(0.5,))), DataError,
         f"{announced}: holds no video frames ({MEND})"),
        (partial(decode_frames, str(film), FramesRequest(indices=(20,))), Absent,
         f"{film}: has no frame 20, only 20 (ask for fewer frames)"),
        (partial(decode_frames, str(film), FramesRequest(count=9), limits=Limits(max_bytes=50_000)), DataError,
         f"{film}: 9 pictures of 64x48 take more than 50000 bytes (ask for fewer or smaller frames)"),
        (partial(decode_frames, str(grows), FramesRequest(times=(0.0, 9.0))), DataError,
         f"{grows}: its pictures change size (convert the file)"),
    ]  # fmt: skip
    for call, kind, text in cases:
        with says(kind, text):
            call()
    damaged, why = packets(film, track=0), "Invalid data found when processing input"
    with says(DataError, f"{damaged}: none of its video can be decoded: {why} ({MEND})"):
        decode_frames(str(damaged))
    some = packets(film, track=0, every=3)
    (bad,) = examine(Row("x", {"vision": str(some)}), "full").bad
    assert bad.what == "bad"
    assert bad.reason == f"{some}: 7 of its video packets cannot be decoded, 13 frames can: {why}"

    def refuse(*arguments: Any) -> None:
        raise ValueError("no such conversion.")

    monkeypatch.setattr("avssl.data.video.upright", refuse)
    with says(DataError, f"{film}: a picture cannot be converted: no such conversion ({MEND})"):
        decode_frames(str(film))


def test_what_a_programmer_gets_wrong() -> None:
    with says(ValueError, "rates must be positive, not 0 and 16000"):
        resample(np.zeros((1, 8), np.float32), 0, 16_000)
    with says(ValueError, "depth is one of ('headers', 'sample', 'full'), not 'deep'"):
        scan([], depth="deep")


# -- text -------------------------------------------------------------------------------------------------------------
def test_text(tmp_path: Path) -> None:
    long, latin = tmp_path / "long.txt", tmp_path / "latin.txt"
    long.write_bytes(b"x" * ((1 << 20) + 1))
    latin.write_bytes(b"caf\xe9")
    cases: list[Case] = [
        (partial(decode_text, "  "), DataError, "the text is empty (leave the row out)"),
        (partial(decode_text, ("a.txt", "b.txt")), DataError,
         "2 files given where one text is needed (give one path)"),
        (partial(decode_text, (str(long),)), DataError,
         f"{long}: is longer than 1048576 bytes (split it into one file for each item)"),
        (partial(decode_text, (str(latin),)), DataError,
         f"{latin}: is no UTF-8 text: 'utf-8' codec can't decode byte 0xe9 in position 3: unexpected end of data "
         "(convert it to UTF-8)"),
    ]  # fmt: skip
    for call, kind, text in cases:
        with says(kind, text):
            call()


# -- what a scan finds missing ------------------------------------------------------------------------------------------
def test_what_is_missing(tmp_path: Path) -> None:
    wav, png = str(write_sound(tmp_path / "a\nb.wav", tone(0.1))), str(write_image(tmp_path / "a.png"))
    mute = str(write_video(tmp_path / "mute.mp4", 5))
    for row, depth, path, reason in (
        (Row("x", {"vision": wav}), "headers", wav, f"{tmp_path}/a\\nb.wav: has no video"),
        (Row("x", {"audio": mute}), "headers", mute, f"{mute}: has no sound"),
        (Row("x", {"audio": png, "vision": wav}), "sample", png, "has neither sound nor pictures"),  # exchanged
    ):
        parts = dict(row.parts)
        found = examine(row, depth)
        kept = {} if found.row is None else dict(found.row.parts)
        assert not kept.keys() & parts.keys()
        assert [(b.what, b.path, b.reason) for b in found.bad] == [("missing", path, reason)]


# -- lists, folders, labels -----------------------------------------------------------------------------------------------
LISTS = {
    "esc": ("esc50.csv", "filename,fold,target,category,esc10,src_file,take\n1-1-A-0.wav,x,0,dog,True,1,A\n",
            "line 2 is no ESC record (restore the published file)"),
    "audioset": ("eval_segments.csv", "# Segments csv created Sun\n# x\n# y\nnonsense\n",
                 "line 4 is no segment of AudioSet (restore the published file)"),
    "audioset-empty": ("a.csv", "# Segments csv created Sun\n# x\n# y\n--4gqARaEJE, 0.000, 10.000, \"/m/068hy\"\n",
                       "none of its 1 clips lies beside it (put the list into the folder that holds the clips)"),
    "vggsound": ("vggsound.csv", "--4gqARaEJE,0,people marching,test\nnonsense\n",
                 "line 2 is no clip of VGGSound (restore the published file)"),
    "latin": ("vggsound.csv", b"--4gqARaEJE,0,people marching,test\nAAAAAAAAAAA,30,caf\xe9,train\n",
              "is not UTF-8 (byte 53) (restore the published file)"),
    "folder": ("m.csv", "vision\nframes\n", "line 2, vision: the folder frames holds no images (check the path)"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str, tmp_path: Path) -> None:
    file, content, text = LISTS[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "frames").mkdir()
    with says(DataError, f"{path}: {text}"):
        read_rows(path)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with says(DataError, f"{tmp_path}: holds nothing that avssl can read (give media files or a manifest of them)"):
        read_rows(tmp_path)
    write_sound(tmp_path / "a.wav", tone(0.1))
    with says(DataError, f"{tmp_path}: no item has text or vision (they have audio)"):
        read_rows(tmp_path, modalities={"text", "vision"})
    listed = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    (tmp_path / "secret").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    text = f"{tmp_path / 'secret'}: no permission to read it (check the folder's permissions)"
    with says(DataError, text):
        read_rows(tmp_path)


def test_labels() -> None:
    rows = [Row("a", {}, labels=("x",)), Row("b", {}, labels=("x", "y")), Row("c", {})]
    many = Codec("index", tuple(map(str, range(1000))))
    cases: list[Case] = [
        (partial(fit_codec, rows[2:], "index"), DataError,
         "no row has a label (give a manifest with a label column, or class folders)"),
        (partial(fit_codec, [rows[2]] * 3, "index"), DataError,
         "none of the 3 rows has a label (give a manifest with a label column, or class folders)"),
        (partial(fit_codec, rows, "classes"), UsageError,
         "data.target = 'classes' (one of none, index, multi_hot, float, characters)"),
        (partial(Codec("index", ("x", "y")).encode, rows[1]), DataError,
         "b: 2 labels where one class is expected (--set data.target=multi_hot)"),
        (partial(Codec("float").encode, rows[0]), DataError,
         "a: label 'x' is no number (give numbers, or data.target=index)"),
        (partial(Codec("float").encode, rows[2]), DataError,
         "c: no label (add a label column, or leave unlabelled rows out)"),
        (partial(many.encode, rows[0]), DataError, "a: label 'x' is not among the 1000 known ones (check the labels)"),
        (partial(Codec("characters", ("<blank>", "a")).encode, rows[0]), DataError,
         "a: symbol 'x' is not among the 2 known ones (known: <blank>, a)"),
        (partial(ShuffledSampler, rows[2:], 1, 0, balance=True), DataError,
         "data.balance draws by label, and no item has one (label them)"),
        (partial(fold_rows, rows, 1), DataError, "1 folds are none (give at least 2)"),
    ]  # fmt: skip
    for call, kind, text in cases:
        with says(kind, text):
            call()


# -- prepared data and statistics ---------------------------------------------------------------------------------------
def test_prepare(tmp_path: Path) -> None:
    for values in ({"rate": 0}, {"frames": 0}, {"size": -1}, {"quality": 101}):
        text = "rate, frames and size must be positive, quality 1 to 100 (see `avssl data prepare --help`)"
        with says(UsageError, text):
            Plan(**values)
    with says(UsageError, "format 'mp3' is not known (flac or wav)"):
        Plan(format="mp3")
    good = read_rows(write_sound(tmp_path / "in" / "a.wav", tone(0.1)))
    none = read_rows(write_sound(tmp_path / "none" / "b.wav", tone(0.1)[:, :0]))
    out = tmp_path / "out"
    _, bad = prepare([*good, *none], out)
    assert [(b.id, b.what, b.reason) for b in bad] == [
        ("b.wav", "bad", f"{tmp_path / 'none/b.wav'}: its sound is empty (0 samples)")
    ]
    old = json.loads((out / "prepare.json").read_text())
    with says(DataError, f"{out} was prepared with other options ({old}) (choose another folder)"):
        prepare(good, out, Plan(rate=8000))
    (out / "prepare.json").write_text("{")
    why = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    text = f"{out / 'prepare.json'}: cannot be read: {why} (remove it or choose another folder)"
    with says(DataError, text):
        prepare(good, out)
    for rows, words in ((none, "no item"), ([*none, Row("c", none[0].parts)], "none of the 2 items")):
        with says(DataError, f"{words} can be prepared (see {tmp_path / 'other' / 'bad_files.csv'})"):
            prepare(rows, tmp_path / "other")


def test_statistics(tmp_path: Path) -> None:
    from avssl.recipe import Recipe, load_recipe

    def tables(name: str, *overrides: str) -> dict[str, Any]:
        recipe = load_recipe(name, overrides)
        assert isinstance(recipe, Recipe)
        return recipe.plain()

    rows = read_rows(write_sound(tmp_path / "a.wav", tone(1.0)))
    silent = read_rows(write_sound(tmp_path / "b.wav", tone(1.0)[:, :0]))
    with says(UsageError, "this frontend has no mean and std to measure (choose a recipe whose frontend has them)"):
        frontend_stats(tables("data2vec/audio_tiny"), rows)
    with says(DataError, "no item gives any audio (`avssl data scan` shows what the files carry)"):
        frontend_stats(tables("cav_mae/tiny"), silent)
    text = "this frontend normalises each item by itself, there is nothing to measure"
    with says(UsageError, f"{text} (choose its fixed normalisation first, with --set)"):
        frontend_stats(tables("tiny/6k-esc10"), rows)
