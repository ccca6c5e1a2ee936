"""An embedding is a function of the file, the model and the options, and of nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from messages import says

from avssl.data.bad import BadFiles
from avssl.embedding.encode import BOUND, HALF_BOUND, EmbedOptions, embed_inputs, embed_rows
from avssl.embedding.rows import spans
from avssl.errors import DataError, UsageError


def close(a, b) -> float:
    """The largest difference between two sets of vectors, relative to their lengths."""
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


@pytest.fixture(scope="module")
def reference(toy_model, toy_manifest):
    return embed_rows(toy_model, toy.rows(toy_manifest), batch_size=1)


@pytest.mark.parametrize(("batch_size", "workers"), [(4, 0), (30, 0), (7, 2)])
def test_batch_size_neighbours_and_workers_change_only_rounding(
    toy_model, toy_manifest, reference, batch_size, workers
):
    got = embed_rows(toy_model, toy.rows(toy_manifest), batch_size=batch_size, workers=workers)
    assert got.ids == reference.ids
    for stream in ("audio", "vision", "joint"):
        assert close(got[stream], reference[stream]) <= BOUND


def test_the_order_of_items_changes_nothing_beyond_rounding(toy_model, toy_manifest, reference):
    rows = toy.rows(toy_manifest)
    order = np.random.default_rng(0).permutation(len(rows))
    got = embed_rows(toy_model, [rows[i] for i in order], batch_size=8)
    assert got.ids == [reference.ids[i] for i in order]
    assert close(got["audio"], reference["audio"][order]) <= BOUND


def test_workers_give_bit_equal_vectors_and_so_does_repetition(toy_model, toy_manifest):
    rows = toy.rows(toy_manifest)
    once, again, workers = (embed_rows(toy_model, rows, batch_size=8, workers=w) for w in (0, 0, 2))
    for stream in once.values:
        assert np.array_equal(once[stream], again[stream]) and np.array_equal(once[stream], workers[stream])


def test_padded_batches_of_unequal_lengths_stay_within_the_bound(toy_model, toy_manifest, reference):
    got = embed_rows(toy_model, toy.rows(toy_manifest), batch_size=30, mixed=True)
    assert close(got["audio"], reference["audio"]) <= BOUND


def test_a_file_that_cannot_be_read_is_named_and_spoils_nothing(toy_model, toy_manifest, reference, tmp_path):
    rows = toy.rows(toy_manifest)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    rows[3] = replace(rows[3], parts={"audio": str(tmp_path / "broken.wav")})
    bad = BadFiles()
    got = embed_rows(toy_model, rows, bad=bad, batch_size=1)
    assert got.indices == [i for i in range(30) if i != 3]
    assert [i.id for i in bad.items.values()] == ["0003"]
    assert np.array_equal(got["audio"], np.delete(reference["audio"], 3, 0))
    broken = tmp_path / "broken.wav"
    why = "cannot be read as media: Invalid data found when processing input"
    with says(DataError, f"{broken}: {why} (on_bad=skip goes on without it)"):
        embed_rows(toy_model, rows, on_bad="fail")


def test_items_that_lack_a_modality_have_the_streams_they_can_have(toy_model, toy_manifest, reference):
    rows = toy.rows(toy_manifest)[:4]
    rows[1] = replace(rows[1], parts={"audio": rows[1].parts["audio"]})
    got = embed_rows(toy_model, rows, batch_size=1)
    assert got.present["vision"].tolist() == [True, False, True, True] == got.present["joint"].tolist()
    assert got.present["audio"].all() and np.isnan(got["vision"][1]).all()
    assert np.array_equal(got["audio"], reference["audio"][:4])


def test_a_part_that_is_absent_in_a_window_leaves_the_others(toy_model, toy_manifest, reference):
    row = replace(toy.rows(toy_manifest)[0], start=1.5, end=2.0)  # its sound ends at one second, its picture does not
    got = embed_rows(toy_model, [row], batch_size=1, on_bad="fail")
    assert {s: bool(p[0]) for s, p in got.present.items()} == {"audio": False, "vision": True, "joint": False}
    assert np.array_equal(got["vision"], reference["vision"][:1])
    bad = BadFiles()
    assert len(embed_rows(toy_model, [replace(row, parts={"audio": row.parts["audio"]})], bad=bad)) == 0
    assert [b.what for b in bad.items.values()] == ["missing"]


# -- options -----------------------------------------------------------------------------------------------------------
def test_pooling_and_layers_are_those_of_the_tokens(toy_model, toy_manifest):
    rows = toy.rows(toy_manifest)[:5]
    tokens = embed_rows(toy_model, rows, EmbedOptions(streams=("audio",), sequence=True))["audio"]
    mean, cls, top = (
        embed_rows(toy_model, rows, EmbedOptions(streams=("audio",), pooling=p))["audio"]
        for p in ("mean", "cls", "max")
    )
    for n in range(5):
        np.testing.assert_allclose(mean[n], tokens[n][1:].mean(0), atol=1e-6)  # the class token is no place
        np.testing.assert_allclose(cls[n], tokens[n][0], atol=1e-6)
        np.testing.assert_allclose(top[n], tokens[n][1:].max(0), atol=1e-6)
    first, last = (
        embed_rows(toy_model, rows, EmbedOptions(streams=("audio",), layer=i, pooling="mean"))["audio"] for i in (0, -1)
    )
    assert not np.allclose(first, last)
    same = embed_rows(toy_model, rows, EmbedOptions(streams=("audio",), layer=1, pooling="mean"))["audio"]
    assert np.array_equal(last, same)


def test_normalised_vectors_have_length_one_and_the_same_direction(toy_model, toy_manifest, reference):
    got = embed_rows(toy_model, toy.rows(toy_manifest), EmbedOptions(normalize=True), batch_size=1)["joint"]
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(reference["joint"], axis=1, keepdims=True)
    np.testing.assert_allclose(got, reference["joint"] / lengths, atol=1e-6)


def test_windows_cover_a_recording_and_their_vectors_are_averaged(toy_model, toy_manifest):
    row = replace(toy.rows(toy_manifest)[3], duration=None)  # 2.5 s
    row = replace(row, parts={"audio": row.parts["audio"]})
    options = EmbedOptions(streams=("audio",), window=1.0)
    whole = embed_rows(toy_model, [row], options)["audio"][0]
    parts = [replace(row, start=s, end=s + 1.0) for s in (0.0, 1.0, 1.5)]  # the last ends with the recording
    parts = [embed_rows(toy_model, [p], EmbedOptions(streams=("audio",)))["audio"][0] for p in parts]
    np.testing.assert_allclose(whole, np.mean(parts, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("duration", "window", "hop", "starts"),
    [
        (2.5, 1.0, 1.0, [0.0, 1.0, 1.5]),
        (3.0, 1.0, 1.0, [0.0, 1.0, 2.0]),
        (3.0, 2.0, 0.5, [0.0, 0.5, 1.0]),
        (0.5, 1.0, 1.0, [0.0]),
        (1.0, 1.0, 0.1, [0.0]),
    ],
)
def test_windows_start_where_they_should(duration, window, hop, starts):
    assert [s for s, _ in spans(duration, window, hop)] == pytest.approx(starts)


def test_a_long_recording_is_embedded_whole_by_the_views_of_its_frontend(toy_model, tmp_path):
    import soundfile

    rng = np.random.default_rng(0)
    loud, quiet = rng.normal(size=4 * toy.RATE) * 0.2, rng.normal(size=4 * toy.RATE) * 0.001
    soundfile.write(tmp_path / "long.wav", np.r_[loud, quiet], toy.RATE, subtype="FLOAT")
    row = toy.Row(id="long", parts={"audio": str(tmp_path / "long.wav")})
    both = embed_rows(toy_model, [row], EmbedOptions(streams=("audio",)))["audio"][0]
    halves = [
        embed_rows(toy_model, [replace(row, start=s, end=s + 4.0)], EmbedOptions(streams=("audio",)))["audio"][0]
        for s in (0.0, 4.0)
    ]
    np.testing.assert_allclose(both, np.mean(halves, 0), atol=1e-6)
    one = embed_rows(toy_model, [row], EmbedOptions(streams=("audio",), views="one"))["audio"][0]
    np.testing.assert_allclose(one, halves[0], atol=1e-6)


def test_bf16_changes_vectors_a_little_and_nothing_else(toy_model, toy_manifest, reference):
    half = EmbedOptions(precision="bf16")
    once, again = (embed_rows(toy_model, toy.rows(toy_manifest), half, batch_size=8) for _ in range(2))
    assert once.ids == reference.ids
    for stream in ("audio", "vision", "joint"):
        assert once[stream].dtype == np.float32 and np.array_equal(once[stream], again[stream])
        assert 1e-6 < close(once[stream], reference[stream]) <= HALF_BOUND, "it is computed in half, and still close"


def test_a_precision_that_the_device_lacks_is_refused_before_anything_is_decoded(toy_model):
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        embed_rows(toy_model, [], EmbedOptions(precision="fp16"))


def test_vectors_in_a_notebook_say_what_they_are(toy_model, toy_manifest):
    rows = toy.rows(toy_manifest)[:3]
    rows[1] = replace(rows[1], parts={"audio": rows[1].parts["audio"]})
    found = embed_rows(toy_model, rows)
    assert repr(found) == "<Vectors of 3 items: audio 3 x 16; vision 3 x 16 (1 lack it); joint 3 x 16 (1 lack it)>"
    assert repr(embed_rows(toy_model, rows[:1], EmbedOptions(streams=("audio",), sequence=True))) == (
        "<Vectors of 1 item: audio 1 sequences>"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"streams": ("sound",)}, "the model gives no 'sound' stream (did you mean 'vision'?)"),
        ({"layer": 2, "pooling": "mean"}, "layer 2 of 2 (give -2 to 1)"),
        ({"layer": 0}, "an inner layer has no pooling of the model (add --pooling mean (or cls, max))"),
        ({"hop": 1.0}, "hop is 1.0 with window None (give --window, and a hop between 0 and it)"),
        ({"window": -1.0}, "window is -1.0 (give seconds above 0)"),
        ({"sequence": True, "pooling": "cls"}, "pooling 'cls' of a sequence (leave out --pooling or --sequence)"),
        ({"sequence": True, "views": "each"}, "a sequence is of one view (views=one)"),
    ],
)
def test_options_that_cannot_be_served_are_refused(toy_model, toy_manifest, options, text):
    with says(UsageError, text):
        embed_rows(toy_model, toy.rows(toy_manifest)[:1], EmbedOptions(**options))


# -- Python ------------------------------------------------------------------------------------------------------------
def test_arrays_give_what_their_files_give(toy_model, toy_manifest, reference):
    import soundfile

    waves = [soundfile.read(toy_manifest.parent / f"{i:04d}.wav", dtype="float32")[0] for i in range(4)]
    got = embed_inputs(toy_model, waves, rate=toy.RATE, streams=["audio"], batch_size=1)
    assert np.array_equal(got["audio"], reference["audio"][:4])
    single = toy_model.embed(waves[0], rate=toy.RATE, streams=["audio"])
    assert np.array_equal(single["audio"], reference["audio"][:1])


def test_what_cannot_be_embedded_is_said(toy_model, toy_manifest, monkeypatch):
    rows = toy.rows(toy_manifest)[:1]
    with says(UsageError, "nothing to embed (give paths, rows or arrays)"):
        embed_inputs(toy_model, [])
    wave = np.zeros(8000, np.float32)
    with says(UsageError, "arrays are not cut into windows (cut them yourself, or give files)"):
        embed_inputs(toy_model, [wave], rate=toy.RATE, window=0.5)
    with says(UsageError, "no 'sound' stream was embedded (known: joint)"):
        embed_rows(toy_model, rows, EmbedOptions(streams=("joint",)))["sound"]
    text = "0: the model gives no vision for items with audio (choose another --stream, or items that have it)"
    with says(DataError, text):
        embed_inputs(toy_model, [wave], rate=toy.RATE, streams=["vision"])
    grid = toy.Toy.grid
    without = {m: replace(g, prefix=0) for m, g in grid(toy_model.backbone, _batch(toy_model, rows)).items()}
    monkeypatch.setattr(toy.Toy, "grid", lambda self, batch: without)
    with says(UsageError, "the audio stream has no class token (use --pooling mean)"):
        embed_rows(toy_model, rows, EmbedOptions(streams=("audio",), pooling="cls"))
    monkeypatch.undo()
    monkeypatch.setattr(toy_model.backbone.norm.bias, "data", torch.full((16,), torch.nan))
    text = "0000: its audio embedding is not finite (the weights or the input are damaged)"
    with says(DataError, text):
        embed_rows(toy_model, rows, EmbedOptions(streams=("audio",)))


def _batch(model, rows):
    from avssl.data.loader import evaluation_batches

    _, _, batch = next(iter(evaluation_batches(rows, model.frontend, batch_size=1)))
    return model.frontend(batch)


@pytest.mark.parametrize("value", [np.zeros(0, np.float32), np.full(100, np.nan), np.zeros((4, 4), np.int64)])
def test_arrays_that_are_neither_sound_nor_pictures_are_refused(toy_model, value):
    text = (
        f"input 0: an array of {value.dtype} {value.shape} is neither sound nor a picture (give finite floats (L,) "
        "or (C, L), or uint8 (H, W, 3) or (K, H, W, 3))"
    )
    with says(DataError, text):
        embed_inputs(toy_model, [value])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stream": ["audio"]}, "unknown key stream (did you mean 'streams'?)"),
        ({"pooling": "avg"}, "pooling = 'avg'"),
        ({"precision": "half"}, "precision = 'half'"),
    ],
)
def test_misspelt_options_in_python_are_refused(toy_model, options, text):
    with pytest.raises(UsageError) as caught:
        toy_model.embed(np.zeros(8000, np.float32), **options)
    assert str(caught.value).startswith(text)


def test_metadata_of_options_survives_json():
    from avssl.schema import structure, unstructure

    options = EmbedOptions(streams=("audio",), window=2.0, normalize=True)
    assert structure(EmbedOptions, json.loads(json.dumps(unstructure(options)))) == options


def test_a_film_whose_pictures_outlast_its_sound_is_embedded_by_its_sound(toy_model, tmp_path):
    """The views of a sound end with it, not with the film: a window of nothing would cost the whole item."""
    from media_files import tone, write_video

    from avssl.data.manifest import read_rows
    from avssl.data.scan import examine

    write_video(tmp_path / "a.mp4", 50, 5, sound=tone(1.0))
    bad, (row,) = BadFiles(), read_rows(tmp_path)
    vectors = embed_rows(toy_model, [row], EmbedOptions(streams=("audio",)), bad=bad)
    assert vectors.ids == ["a"] and not bad.items
    sound = examine(replace(row, parts={"audio": row.parts["audio"]}), "headers").row
    assert sound is not None and sound.duration == pytest.approx(1.0, abs=0.1)
