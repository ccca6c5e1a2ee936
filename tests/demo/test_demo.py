"""The generated clips are real media with an identity, and the story runs from files to the report."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from avssl.data.decode import decode_audio, decode_frames, probe
from avssl.data.manifest import read_rows
from avssl.demo.clips import CLASSES, SECONDS, make_clips
from avssl.demo.pictures import THINGS
from avssl.demo.sounds import SOUNDS
from avssl.demo.story import demo_recipe, run_demo, untrained
from avssl.errors import PluginError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("clips")
    assert make_clips(out, train=4, test=2, seed=3) == 6 * len(CLASSES)
    return out


def test_every_class_is_both_seen_and_heard():
    assert set(THINGS) == set(SOUNDS) == set(CLASSES) and len(CLASSES) == 8


def test_the_clips_are_videos_with_sound_that_read_as_a_labelled_folder_with_splits(folder):
    rows = read_rows(folder)
    assert {(r.split, len(r.labels)) for r in rows} == {("train", 1), ("test", 1)}
    assert sum(r.split == "train" for r in rows) == 4 * len(CLASSES)
    for row in rows[:: len(rows) // 8]:
        found = probe(row.parts["vision"])
        assert found.modalities == {"audio", "vision"}
        assert found.seconds == pytest.approx(SECONDS, abs=0.15)
        wave = decode_audio(row.parts["audio"])
        assert wave.samples.shape[0] == 1 and 0.02 < np.abs(wave.samples).max() <= 1.5
        frames = decode_frames(row.parts["vision"]).pixels
        assert frames.shape == (1, 64, 64, 3) and frames.std() > 5


def test_the_same_seed_gives_the_same_files_and_another_gives_others(folder, tmp_path):
    make_clips(tmp_path / "a", train=1, test=1, seed=3)
    make_clips(tmp_path / "b", train=1, test=1, seed=4)

    def digest(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    name = "train/drum/0000.mp4"
    assert digest(tmp_path / "a" / name) == digest(folder / name)  # however many others there are
    assert digest(tmp_path / "b" / name) != digest(folder / name)


def test_no_two_clips_of_a_class_are_alike(folder):
    for kind in CLASSES:
        rows = [r for r in read_rows(folder) if r.labels == (kind,)]
        pixels = np.stack([decode_frames(r.parts["vision"]).pixels[0].astype(float).ravel() for r in rows])
        distance = np.abs(pixels[:, None] - pixels[None]).mean(-1)
        assert distance[np.triu_indices(len(rows), 1)].min() > 8  # of 255


def test_the_recipe_is_found_by_its_tag_and_its_absence_is_explained(monkeypatch):
    from avssl import registry

    assert "demo" in demo_recipe().tags
    empty = registry.load_registry(points=[])
    monkeypatch.setattr(registry, "registry", lambda: empty)
    with pytest.raises(PluginError, match="no registered recipe has the tag 'demo'"):
        demo_recipe()


def test_the_untrained_model_holds_the_weights_that_the_run_begins_with(folder, tmp_path):
    from avssl.model import open_model
    from avssl.training.run import pretrain
    from avssl.training.setup import Machine

    recipe = demo_recipe(["train.updates=1", "data.batch_size=8", "optim.lr=1e-30", "optim.weight_decay=0.0"])
    pretrain(recipe, read_rows(folder), tmp_path / "run", machine=Machine(device="cpu", workers=0))
    before, after = (
        untrained(recipe, tmp_path).backbone.state_dict(),
        open_model(tmp_path / "run").backbone.state_dict(),
    )
    for name, tensor in after.items():
        np.testing.assert_allclose(before[name].numpy(), tensor.numpy(), rtol=0, atol=1e-12, err_msg=name)


def test_the_story_runs_from_files_to_the_report(tmp_path):
    quick = ["train.updates=4", "data.batch_size=12"]
    made = run_demo(tmp_path / "demo", overrides=quick, train=3, test=2, device="cpu", workers=0)
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == made
    assert made["clips"] == {"train": 24, "test": 16}
    numbers = made["metrics"]["retrieval.audio->vision.class.r@1"]
    assert (
        numbers["chance"] == pytest.approx(2 / 16) and 0 <= numbers["trained"] <= 1 and 0 <= numbers["untrained"] <= 1
    )
    assert made["metrics"]["probe.joint.accuracy"]["chance"] == pytest.approx(1 / 8)
    assert (tmp_path / "demo" / "run" / "report.html").stat().st_size > 100_000
    assert (tmp_path / "demo" / "run" / "evaluations" / "probe.json").is_file()
    with pytest.raises(UsageError, match="exists already"):
        run_demo(tmp_path / "demo")
