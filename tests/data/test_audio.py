"""Sound: windows are slices, channels stay, content decides the decoder, and one resampler serves everything."""

from __future__ import annotations

import numpy as np
import pytest
from media_files import tone, write_sound, write_video

from avssl.data.clip import Absent, AudioRequest, Limits
from avssl.data.decode import decode_audio
from avssl.data.resample import _direct, cancels, mono, resample
from avssl.errors import DataError


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "FLOAT"),
        ("a.wav", "PCM_16"),
        ("a.wav", "PCM_24"),
        ("a.flac", "PCM_16"),
        ("a.aiff", "PCM_16"),
        ("a.au", "PCM_16"),
    ],
)
def test_channels_and_samples_survive(tmp_path, name, subtype):
    samples = tone(1.5, 22_050, channels=3)
    wave = decode_audio(str(write_sound(tmp_path / name, samples, 22_050, subtype=subtype)))
    assert wave.rate == 22_050 and wave.samples.shape == samples.shape and wave.samples.flags.c_contiguous
    np.testing.assert_allclose(wave.samples, samples, atol=1 / 32767)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("wav", {}),
        ("flac", {}),
        ("ogg", {}),
        ("mp3", {}),
        ("wav", {"subtype": "GSM610"}),
        ("au", {"subtype": "G721_32"}),
    ],
    ids=str,
)
def test_a_window_is_a_slice_of_the_whole(tmp_path, suffix, options):
    """Of codecs that cannot be sought, too."""
    path = str(write_sound(tmp_path / f"a.{suffix}", tone(4.0), **options))
    whole = decode_audio(path)
    for start, seconds in ((0.0, 1.0), (0.5, 1.0), (1.37, 0.25), (3.5, None)):
        part = decode_audio(path, AudioRequest(start, seconds))
        first = round(start * 16_000)
        wanted = whole.samples[:, first : None if seconds is None else first + round(seconds * 16_000)]
        assert part.start == pytest.approx(start, abs=1 / 16_000)
        np.testing.assert_allclose(part.samples, wanted, atol=1e-4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
def test_a_window_of_a_film_is_a_slice_of_its_sound(tmp_path, suffix):
    rng = np.random.default_rng(0)
    sound = np.convolve(rng.normal(size=64_000), np.ones(8) / 8, "same").astype(np.float32)[None] * 0.2
    path = str(
        write_video(
            tmp_path / f"a.{suffix}",
            40,
            25 if suffix == "ts" else 10,
            sound=sound,
            codec="mpeg2video" if suffix == "ts" else "mpeg4",
        )
    )
    whole = decode_audio(path)
    for start in (0.1, 0.9, 1.7):
        part = decode_audio(path, AudioRequest(start, 0.5))
        first = round((part.start - whole.start) * whole.rate)
        length = part.samples.shape[1]
        slack = 17  # Matroska rounds time stamps to 1 ms
        errors = [
            float(np.abs(whole.samples[:, first + lag : first + lag + length] - part.samples).max())
            for lag in range(-slack, slack + 1)
        ]
        assert min(errors) < 0.05 and length == 8000
        assert part.start == pytest.approx(start, abs=0.002)


def test_the_rows_window_bounds_the_request(tmp_path):
    path = str(write_sound(tmp_path / "a.wav", tone(4.0)))
    assert decode_audio(path, AudioRequest(0.5, 10.0), start=1.0, end=2.0).samples.shape[1] == 8000
    assert decode_audio(path, AudioRequest(0.5, 10.0), start=1.0, end=2.0).start == pytest.approx(0.5)
    with pytest.raises(DataError, match=r"the window from 2.5 s to 2 s is empty"):
        decode_audio(path, AudioRequest(1.5), start=1.0, end=2.0)


def test_a_window_after_the_end_is_absent_not_silent(tmp_path):
    sound = str(write_sound(tmp_path / "a.wav", tone(1.0)))
    film = str(write_video(tmp_path / "a.mp4", 40, 10, sound=tone(1.0)))
    for path in (sound, film):
        with pytest.raises(Absent, match=r"has no sound at 3 s, it ends at [01]\.\d+ s"):
            decode_audio(path, AudioRequest(3.0, 0.5))


def test_a_long_file_is_refused_whole_but_read_in_windows(tmp_path):
    path = str(write_sound(tmp_path / "a.wav", tone(5.0)))
    limits = Limits(max_seconds=2.0)
    with pytest.raises(DataError, match=r"more than 2 s of sound at once \(data.max_seconds\)"):
        decode_audio(path, limits=limits)
    assert decode_audio(path, AudioRequest(3.0, 1.5), limits=limits).samples.shape == (1, 24_000)
    with pytest.raises(DataError, match="takes more than 1000 bytes at once"):
        decode_audio(path, AudioRequest(0.0, 1.0), limits=Limits(max_bytes=1000))


def test_the_mean_of_the_channels_is_the_one_stereo_policy():
    stereo = tone(0.1, channels=2)
    np.testing.assert_allclose(mono(stereo), stereo.mean(0), atol=1e-7)
    assert mono(stereo[:1]).dtype == np.float32
    assert cancels(np.stack([stereo[0], -stereo[0]])) and not cancels(stereo) and not cancels(stereo * 0)


@pytest.mark.parametrize(
    ("source", "target"),
    [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (16_000, 44_100), (11_025, 16_000), (22_050, 16_000)],
)
def test_resampling_gives_torchaudios_numbers_whichever_way(source, target):
    torch = pytest.importorskip("torch")
    from math import gcd

    from torchaudio.functional import resample as reference

    noise = np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32)
    wanted = reference(torch.from_numpy(noise).double(), source, target).numpy()
    divisor = gcd(source, target)
    np.testing.assert_allclose(resample(noise, source, target), wanted, atol=3e-6)
    np.testing.assert_allclose(_direct(noise, source // divisor, target // divisor), wanted, atol=3e-6)


def test_rates_without_a_common_divisor_take_no_memory_to_speak_of():
    import tracemalloc

    noise = np.random.default_rng(0).normal(size=(1, 44_099)).astype(np.float32)
    resample(noise[:, :100], 44_099, 16_000)
    tracemalloc.start()
    out = resample(noise, 44_099, 16_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.shape == (1, 16_000) and peak < 150e6
    slow = resample(noise, 44_100, 16_000)
    assert np.corrcoef(out[0, 1000:3000], slow[0, 1000:3000])[0, 1] > 0.99


def test_a_tone_keeps_its_pitch_and_level_and_what_is_too_high_goes():
    low, high = tone(1.0, 48_000, hertz=1000.0), tone(1.0, 48_000, hertz=15_000.0)
    np.testing.assert_allclose(
        resample(low, 48_000, 16_000)[0, 500:-500], tone(1.0, 16_000, hertz=1000.0)[0, 500:-500], atol=2e-3
    )
    assert np.abs(resample(high, 48_000, 16_000)[0, 500:-500]).max() < 5e-3
