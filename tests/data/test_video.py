"""Frames come by time stamp, upright and square, and the quick way gives what decoding everything gives."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np
import pytest
from media_files import number_of, picture, tone, write_image, write_video

from avssl.data import container as containers
from avssl.data import video
from avssl.data.clip import Absent, FramesRequest, Limits
from avssl.data.decode import decode_audio, decode_frames, probe
from avssl.errors import DataError

FORMATS = [
    ("a.mp4", "mpeg4"),
    ("a.mkv", "mpeg4"),
    ("a.avi", "mpeg4"),
    ("a.mpg", "mpeg1video"),
    ("a.ts", "mpeg2video"),
    ("a.webm", "libvpx"),
]


@pytest.fixture(params=FORMATS, ids=lambda f: "-".join(f))
def film(request, tmp_path) -> Path:
    """40 frames, 10 a second, a key frame every 8, B-frames where the codec has them."""
    name, codec = request.param
    rate = 25 if codec.startswith("mpeg1") or codec.startswith("mpeg2") else 10
    options = {"bf": "2"} if codec in ("mpeg4", "mpeg2video") else {}
    return write_video(tmp_path / name, 40, rate, codec=codec, options=options)


def _all(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Every frame of a file, in order, decoded from the beginning."""
    with containers.media(str(path)) as media:
        stream = containers.need(media, media.video, "video")
        frames = [
            (float(f.pts * f.time_base) - media.origin, f.to_ndarray(format="gray"))
            for f in containers.frames_of(media.container, stream, [])
        ]
    return [t for t, _ in frames], [p for _, p in frames]


def test_the_frame_on_display_is_the_last_one_that_is_not_later(film):
    times, _ = _all(film)
    for n in (0, 1, 7, 8, 15, 16, 23, 38, 39):
        step = times[min(n + 1, 39)] - times[min(n + 1, 39) - 1]
        for t in (times[n], times[n] + 0.4 * step):
            found = decode_frames(str(film), FramesRequest(times=(t,)))
            assert number_of(found.pixels[0]) == n
            assert found.times[0] == pytest.approx(times[n], abs=1e-9)


def test_many_times_in_any_order_give_what_one_at_a_time_gives(film):
    times = tuple(np.random.default_rng(0).uniform(-0.2, 5.0, 12))
    together = decode_frames(str(film), FramesRequest(times=times))
    for t, pixels, stamp in zip(times, together.pixels, together.times, strict=True):
        alone = decode_frames(str(film), FramesRequest(times=(t,)))
        assert np.array_equal(alone.pixels[0], pixels) and alone.times[0] == stamp


def test_the_quick_way_equals_decoding_everything_on_real_files(shared_data):
    checked = 0
    for path in sorted((shared_data / "media").iterdir()):
        if path.suffix in (".md", ".csv") or "vision" not in probe(str(path)).modalities:
            continue
        with containers.media(str(path)) as media:
            end = video.video_end(media)[0]
        if end > 13:
            continue  # the same containers and codecs again, only longer
        stamps, pixels = _all(path)
        wanted = [0.0, *np.random.default_rng(1).uniform(0, end, 3), end + 5]
        with containers.media(str(path)) as media:
            try:
                found = video.quick(media, containers.need(media, media.video, "video"), sorted(wanted))
            except video._Lost:
                continue  # decode_video then decodes everything
        for t, frame in found.items():
            n = max(0, bisect.bisect_right(stamps, t + 1e-6) - 1)
            assert np.array_equal(frame.to_ndarray(format="gray"), pixels[n]), f"{path.name} at {t}"
            checked += 1
    assert checked > 100


def test_count_takes_the_middles_of_equal_parts_and_fractions_their_places(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", 40, 10))
    assert [number_of(p) for p in decode_frames(path, FramesRequest(count=4)).pixels] == [5, 15, 25, 35]
    assert [number_of(p) for p in decode_frames(path, FramesRequest(fractions=(0.0, 0.51))).pixels] == [0, 20]
    found = decode_frames(path, FramesRequest(count=2, within=2.0))
    assert [number_of(p) for p in found.pixels] == [5, 15]


def test_a_window_moves_the_clock(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", 40, 10))
    found = decode_frames(path, FramesRequest(count=2), start=1.0, end=3.0)
    assert [number_of(p) for p in found.pixels] == [15, 25]
    assert found.times == pytest.approx((0.5, 1.5))


def test_indices_count_frames_and_a_frame_beyond_the_end_is_absent(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", 20, 10))
    assert [number_of(p) for p in decode_frames(path, FramesRequest(indices=(0, 7, 19, -1))).pixels] == [0, 7, 19, 19]
    with pytest.raises(Absent, match="has no frame 20, only 20"):
        decode_frames(path, FramesRequest(indices=(20,)))


def test_size_scales_down_to_the_short_side_and_never_up(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", 3, 10, width=96, height=64))
    assert decode_frames(path, FramesRequest(size=32)).pixels.shape == (1, 32, 48, 3)
    assert decode_frames(path, FramesRequest(size=500)).pixels.shape == (1, 64, 96, 3)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_display_matrix_turns_the_picture_upright(degrees):
    """The white square of the stored picture is at the upper left; turning the display by `degrees` anticlockwise
    moves it to the corner where a player shows it."""
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}[degrees]

    class Side:
        def __bytes__(self) -> bytes:
            return np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], np.int32).tobytes()

    frame = type("Frame", (), {"side_data": {"DISPLAYMATRIX": Side()}})
    shown = video.upright(picture(0, 64, 48), frame)
    assert np.array_equal(shown, np.rot90(picture(0, 64, 48), degrees // 90))


def test_a_mirrored_display_matrix_mirrors():
    class Side:
        def __bytes__(self) -> bytes:
            return np.array([-1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], np.int32).tobytes()

    shown = video.upright(picture(0), type("Frame", (), {"side_data": {"DISPLAYMATRIX": Side()}}))
    assert np.array_equal(shown, picture(0)[:, ::-1])


def test_pixels_that_are_not_square_are_squared(shared_data):
    path = shared_data / "broken-media/anamorphic.mp4"
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        wide = round(stream.width * stream.sample_aspect_ratio), stream.height
    assert decode_frames(str(path)).pixels.shape[1:3] == (wide[1], wide[0])


def test_sound_and_pictures_share_a_clock(tmp_path):
    sound = tone(4.0)
    sound[:, : 2 * 16_000] = 0
    path = str(write_video(tmp_path / "a.mp4", 40, 10, sound=sound))
    wave = decode_audio(path)
    onset = np.flatnonzero(np.abs(wave.samples[0]) > 0.1)[0] / wave.rate + wave.start
    assert onset == pytest.approx(2.0, abs=0.03)


def test_a_cover_picture_is_no_video_and_a_film_without_sound_has_none(tmp_path, shared_data):
    with pytest.raises(Absent, match="has no video, only a cover picture"):
        decode_frames(str(shared_data / "broken-media/audio-with-cover-art.m4a"))
    with pytest.raises(Absent, match="has no sound"):
        decode_audio(str(write_video(tmp_path / "a.mp4", 5)))


def test_frame_files_are_chosen_by_index_or_spread_evenly(tmp_path):
    files = tuple(str(write_image(tmp_path / f"{n}.png", picture(n))) for n in range(10))
    assert [number_of(p) for p in decode_frames(files, FramesRequest(indices=(9, 0))).pixels] == [9, 0]
    assert [number_of(p) for p in decode_frames(files, FramesRequest(count=5)).pixels] == [1, 3, 5, 7, 9]
    assert [number_of(p) for p in decode_frames(files, FramesRequest(fractions=(0.0, 0.99))).pixels] == [0, 9]
    with pytest.raises(DataError, match="other frames of the clip are 64x48"):
        decode_frames((files[0], str(write_image(tmp_path / "odd.png", picture(0, 32, 32)))), FramesRequest(count=2))


def test_an_image_is_every_frame_that_is_wanted(tmp_path):
    found = decode_frames(str(write_image(tmp_path / "a.png")), FramesRequest(count=3), limits=Limits())
    assert found.pixels.shape == (3, 48, 64, 3) and len(np.unique(found.pixels, axis=0)) == 1
