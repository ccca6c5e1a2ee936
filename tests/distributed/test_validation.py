"""A look at the validation split is shared by the processes, gives the numbers of one, and may take its time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import toy
from work import group, look, wait_for_the_first

from avssl.data.bad import BadFiles

RECIPE = """
summary = "A toy"
[backbone]
name = "toy"
[loss]
{loss}
[data]
batch_size = 8
max_bad = 1.0
target = "{target}"
[optim]
lr = 1e-3
[train]
epochs = 1
{train}
"""
CONTRAST = 'name = "contrastive"\ndim = 6'
KINDS = {
    "a contrast of everything": (CONTRAST, "none", ""),
    "a contrast of everything in pieces": (CONTRAST, "none", "micro_batch = 3"),
    "a contrast of four": (CONTRAST, "none", 'negatives = "4"\nmicro_batch = 2'),
    "labels": ('name = "classify"', "index", "micro_batch = 4"),
    "sharded": (CONTRAST, "none", "shard = true"),
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    toy.install(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips to train on, 22 to look at; two of these cannot be decoded."""
    path = toy.write_media(tmp_path_factory.mktemp("media"), items=46)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["split"] = "train" if i < 24 else "val"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in (27, 40):
        (path.parent / f"{i:04d}.png").write_bytes(b"no picture")
    return path


def recipe(folder: Path, kind: str) -> Path:
    loss, target, train = KINDS[kind]
    path = folder / kind.replace(" ", "-") / "recipe.toml"
    path.parent.mkdir()
    path.write_text(RECIPE.format(loss=loss, target=target, train=train))
    return path


@pytest.fixture(scope="module")
def looks(plugin: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """processes -> kind -> metrics. All processes must say the same."""
    out = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"looks{ranks}")
        recipes = [str(recipe(folder, kind)) for kind in KINDS]
        found = group(ranks, look, str(plugin), recipes, str(manifest))
        assert all(f == found[0] and isinstance(f, list) for f in found), found
        for path in recipes:
            assert {i for p in Path(path).parent.glob("bad*.csv") for i in BadFiles(p).by_id} == {"0027", "0040"}
        out[ranks] = dict(zip(KINDS, found[0], strict=True))
    return out


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_two_processes_see_what_one_sees(kind: str, looks: dict[int, Any]) -> None:
    alone, both = looks[1][kind], looks[2][kind]
    names = {"accuracy", "map"} if kind == "labels" else {"loss", "contrastive", "contrastive_accuracy"}
    assert alone.keys() >= names | {"knn.audio.accuracy", "knn.joint.accuracy"}
    assert both == pytest.approx(alone, rel=1e-5)


def test_a_contrast_is_as_wide_as_in_training(looks: dict[int, Any]) -> None:
    """Telling a clip apart from three others is easier than from seven; how it is cut into pieces changes nothing."""
    whole, pieces, four = (looks[1][kind]["loss"] for kind in KINDS if kind.startswith("a contrast"))
    assert whole == pytest.approx(pieces, rel=1e-5) and four < whole - 0.3


def test_a_slow_look_outlives_the_time_out(plugin: Path, manifest: Path, tmp_path: Path) -> None:
    """Each item takes a quarter of the time-out, all of them more than twice as long."""
    began = time.monotonic()
    recipes = [str(recipe(tmp_path, "a contrast of four"))]
    found = group(2, look, str(plugin), recipes, str(manifest), 1.5, 6.0)
    assert found[0] == found[1] and isinstance(found[0], list), found
    assert time.monotonic() - began > 2 * 6.0


def test_a_look_at_nothing(plugin: Path, manifest: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for row in rows:
        row["audio"] = str(manifest.parent / row["audio"])
        row["vision"] = str(tmp_path / "broken.png" if row["split"] == "val" else manifest.parent / row["vision"])
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe(tmp_path, "a contrast of four")
    answers = group(2, look, str(plugin), [str(path)], str(tmp_path / "m.jsonl"))
    text = f"DataError: none of the validation items can be used (see {path.parent / 'bad_files.csv'})"
    assert answers == [text, text]


# -- what one process does for all ------------------------------------------------------------------------------------
def test_the_others_wait_for_the_first() -> None:
    """Longer than twice the time-out of a collective operation."""
    assert group(2, wait_for_the_first, 10.0) == ["2.0", "2.0"]


LOST = " (that one's message says why; --resume goes on from the last checkpoint)"


def test_its_own_error_is_not_covered_up() -> None:
    first, second = group(2, wait_for_the_first, 0.1, "raise")
    assert first == "ValueError: its own reason"
    assert second.startswith("PeerLost: process 1 of 2 lost another one: ") and second.endswith(LOST)


def test_a_first_process_that_dies_ends_the_others() -> None:
    first, second = group(2, wait_for_the_first, 0.1, "die")
    assert first == "ended with 3"
    assert second.startswith("PeerLost: process 1 of 2 lost another one: ") and second.endswith(LOST)


def test_a_first_process_that_shows_no_life_is_given_up() -> None:
    _, second = group(2, wait_for_the_first, 15.0, "mute")
    assert second == "PeerLost: process 1 of 2 lost process 0: no sign of life for 4 s" + LOST
