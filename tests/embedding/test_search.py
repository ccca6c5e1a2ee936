"""Search equals brute force, knows its model, and starts without torch when it can."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import toy
from messages import says
from PIL import Image

from avssl.embedding.encode import EmbedOptions
from avssl.embedding.files import Part, merge, read_index, write_part
from avssl.embedding.job import embed
from avssl.errors import CheckpointError, DataError, UsageError
from avssl.search.gallery import write_gallery
from avssl.search.index import cache_of, open_index, prepare, search


@pytest.fixture(scope="module")
def index(toy_model, toy_manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("index") / "x.parquet"
    embed(toy_model, toy.rows(toy_manifest), out)
    return out


def made(folder, vectors: np.ndarray, name: str = "x.parquet"):
    """An index of given vectors, as `embed` writes it."""
    n, width = vectors.shape
    part = Part(
        [f"c{i}" for i in range(n)], ["{}"] * n, [[]] * n, {"audio": vectors}, {"audio": np.isfinite(vectors).all(1)}
    )
    write_part(folder / "part.parquet", part, {"audio": width}, False)
    meta = {
        "streams": {"audio": width},
        "options": {},
        "rows": n,
        "model": str(folder / "gone"),
        "digest": "",
        "modalities": ["audio"],
        "job": "",
    }
    merge([folder / "part.parquet"], folder / name, meta)
    return folder / name


def brute(index, stream: str, among: str, id: str, top: int) -> list[str]:
    data = read_index(index)
    row = data.ids.index(id)
    q, g = data.values[stream][row].astype(float), data.values[among].astype(float)
    cosine = g @ q / np.linalg.norm(g, axis=1) / np.linalg.norm(q)
    cosine[row] = -np.inf
    return [data.ids[i] for i in np.argsort(-cosine, kind="stable")[:top]]


@pytest.mark.parametrize(("source", "among"), [("audio", "vision"), ("vision", "audio"), ("joint", "joint")])
def test_the_nearest_clips_are_those_of_brute_force(index, source, among):
    (answer,) = search(index, "0003", source=source, among=[among], top=7)
    assert [h.id for h in answer.hits] == brute(index, source, among, "0003", 7)
    assert (answer.kind, answer.stream, answer.among) == ("id", source, among)
    assert [h.rank for h in answer.hits] == list(range(1, 8)) and "0003" not in [h.id for h in answer.hits]


def test_an_id_asks_with_its_fused_stream_unless_told_otherwise(index):
    (answer,) = search(index, "0003")
    assert (answer.stream, answer.among) == ("joint", "joint") and len(answer.hits) == 10


def test_a_file_is_embedded_by_the_model_that_made_the_index(index, toy_manifest):
    (answer,) = search(index, str(toy_manifest.parent / "0007.wav"), top=3)
    assert (answer.kind, answer.stream) == ("file", "audio")
    assert answer.hits[0].id == "0007" and answer.hits[0].similarity == pytest.approx(1, abs=1e-5)
    (across,) = search(index, str(toy_manifest.parent / "0007.png"), among=["audio"], top=3)
    assert (across.stream, across.among) == ("vision", "audio")


def test_a_query_gets_the_options_of_the_index(toy_model, toy_manifest, tmp_path):
    out = tmp_path / "x.npz"
    options = EmbedOptions(streams=("audio",), layer=0, pooling="cls", window=0.5)
    embed(toy_model, toy.rows(toy_manifest)[:6], out, options)
    (answer,) = search(out, str(toy_manifest.parent / "0002.wav"), top=1)
    assert answer.hits[0].id == "0002" and answer.hits[0].similarity == pytest.approx(1, abs=1e-5)


def test_a_query_that_is_nothing_names_the_nearest_id(index):
    missing = "'00003' is no id of the index and no file, and its model reads no text (did you mean '0003'?)"
    with says(UsageError, missing):
        search(index, "00003")
    with says(UsageError, "the index has no 'sound' stream (did you mean 'vision'?)"):
        search(index, "0003", among=["sound"])


def test_another_or_a_missing_model_is_refused(index, toy_plugin, toy_manifest, tmp_path):
    wav = str(toy_manifest.parent / "0001.wav")
    other = toy.make_model(tmp_path / "other", seed=1)
    with says(
        CheckpointError,
        f"{other} is not the model that made the index, or it has changed (embed the clips again, or "
        "name the right one with --model)",
    ):
        search(index, wav, model=other)
    gone = made(tmp_path, np.eye(3, dtype=np.float32))
    with says(
        CheckpointError, f"the model that made the index is gone: {tmp_path / 'gone'} (name its new place with --model)"
    ):
        search(gone, wav)


def test_ties_keep_the_order_of_the_index_and_absent_vectors_are_never_found(tmp_path):
    vectors = np.ones((50, 4), np.float32)
    vectors[7] = np.nan
    opened = open_index(made(tmp_path, vectors))
    found = opened.nearest(np.ones(4, np.float32), "audio", 60, leave_out=2)
    assert [i for i, _ in found] == [i for i in range(50) if i not in (2, 7)]
    assert [i for i, _ in opened.nearest(np.ones(4, np.float32), "audio", 3)] == [0, 1, 2]


def test_sequences_are_refused_with_what_to_do(toy_model, toy_manifest, tmp_path):
    embed(toy_model, toy.rows(toy_manifest)[:2], tmp_path / "x.npz", EmbedOptions(sequence=True))
    with says(
        DataError, f"{tmp_path / 'x.npz'} holds sequences (search needs one vector per clip: embed without --sequence)"
    ):
        search(tmp_path / "x.npz", "0000")


# -- large indexes -----------------------------------------------------------------------------------------------------
def test_the_cache_gives_the_same_answers_and_follows_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr("avssl.search.index.CACHE_FROM", 10)
    rng = np.random.default_rng(0)
    path = made(tmp_path, rng.normal(size=(200, 8)).astype(np.float32))
    first = search(path, "c5", top=5)
    assert cache_of(path).is_dir() and search(path, "c5", top=5) == first
    made(tmp_path, rng.normal(size=(200, 8)).astype(np.float32))
    assert search(path, "c5", top=5) != first
    (cache_of(path) / "audio.npy").unlink()
    assert search(path, "c5", top=5)[0].hits


def test_a_cache_of_what_the_index_was_is_not_used(tmp_path, monkeypatch):
    """A small index writes no cache: the graph of the large one that had its name must not answer for it."""
    monkeypatch.setattr("avssl.search.index.CACHE_FROM", 10)
    path = made(tmp_path, np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    assert open_index(path).cache == open_index(path).cache == cache_of(path)
    made(tmp_path, np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32))
    assert cache_of(path).is_dir() and open_index(path).cache is None


def test_an_index_is_searched_from_its_cache_and_without_torch(tmp_path, toy_plugin, monkeypatch):
    monkeypatch.setattr("avssl.search.index.CACHE_FROM", 10)
    path = made(tmp_path, np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32))
    prepare(path)
    assert cache_of(path).is_dir()
    code = (
        "import sys, json; from avssl.search import index; index.CACHE_FROM = 10; "
        "assert index.open_index(sys.argv[1]).cache is not None; "
        "answer = index.search(sys.argv[1], 'c17'); assert 'torch' not in sys.modules; "
        "print(json.dumps([h.id for h in answer[0].hits]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=toy.environment(toy_plugin), text=True, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == [h.id for h in search(path, "c17")[0].hits]
    assert len(json.loads(done.stdout)) == 10


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_approximate_engines_find_what_is_exact(tmp_path, engine, monkeypatch):
    pytest.importorskip(engine)
    monkeypatch.setattr("avssl.search.index.CACHE_FROM", 10)
    vectors = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
    vectors[5] = np.nan
    path = made(tmp_path, vectors)
    exact = [h.id for h in search(path, "c9", top=10)[0].hits]
    for _ in range(2):  # the second time from the stored graph
        found = search(path, "c9", top=10, engine=engine)[0].hits
        assert len({h.id for h in found} & set(exact)) >= 9
        assert found[0].id == exact[0] and found[0].similarity <= 1.001
    assert (cache_of(path) / f"audio.{engine}").is_file()


def test_an_engine_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"faiss is not installed \(pip install"):
        search(made(tmp_path, np.eye(3, dtype=np.float32)), "c1", engine="faiss")


# -- the page ----------------------------------------------------------------------------------------------------------
def test_the_gallery_is_one_file_with_pictures_and_sound(index, tmp_path):
    answers = search(index, "0003", source="audio", among=["vision", "audio"], top=4)
    write_gallery(answers, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert page.count("<figure") == 9 and page.count("data:image/jpeg;base64,") == 9
    assert page.count("data:audio/mpeg;base64,") == 9 and "audio → vision" in page
    assert "http" not in page.replace("http-equiv", "") and "{" in page and "{{" not in page


def test_the_gallery_escapes_what_files_are_called(index, tmp_path):
    from dataclasses import replace

    answers = search(index, "0003", top=1)
    hit = replace(answers[0].hits[0], id="<img src=x onerror=y>")
    bad = replace(answers[0], query="<script>x</script>", hits=[hit])
    write_gallery([bad], tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert "<script>" not in page and "<img src=x" not in page


def test_the_sound_of_the_gallery_plays_back(index):
    import base64
    import io

    import soundfile

    from avssl.search.gallery import preview

    shown = preview(search(index, "0003", top=1)[0].media)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(shown["sound"].partition(",")[2])))
    assert abs(len(samples) / rate - 2.5) < 0.1 and np.abs(samples).max() > 0.01
    picture = Image.open(io.BytesIO(base64.b64decode(shown["vision"].partition(",")[2])))
    assert picture.size == (16, 12)


def test_a_clip_of_the_gallery_that_is_gone_says_so_and_a_sound_is_seen(index, tmp_path):
    from dataclasses import replace

    answer = search(index, "0003", source="audio", top=2)[0]
    sound, gone = answer.hits
    sound = replace(sound, media={"audio": sound.media["audio"]})
    gone = replace(gone, media={"vision": "/nowhere/x.png"})
    write_gallery([replace(answer, hits=[sound, gone])], tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert f'alt="spectrogram of {sound.id}"' in page and "vision: /nowhere/x.png: no such file" in page
