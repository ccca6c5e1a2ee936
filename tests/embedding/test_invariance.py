"""Every backbone that is registered: embeddings do not depend on neighbours, batch size, order or workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.data.clip import Row
from avssl.embedding.encode import BOUND, EmbedOptions, embed_rows
from avssl.model import Model, build_backbone, build_frontend
from avssl.recipe import Recipe, load_recipe
from avssl.registry import registry

# backbones whose recipes are all large, made small
SHRUNK = {
    "data2vec/audio2_base": (
        "backbone.dim=48",
        "backbone.depth=2",
        "backbone.heads=4",
        "backbone.conv_layers=[[64,10,5],[64,3,2],[64,3,2],[64,3,2],[64,3,2],[64,2,2],[64,2,2]]",
        "frontend.min_seconds=0.5",
    ),
    "data2vec/text2_base": (
        "backbone.dim=48",
        "backbone.depth=2",
        "backbone.heads=4",
        "backbone.vocabulary=261",
        "backbone.mask=260",
        'frontend.tokenizer="bytes"',
    ),
}
# Their authors' stack of positional convolutions normalises the zeros of the padding into something that reaches the
# frames before it (five layers deep): equal to the official numbers, and the reason why `embed` never pads.
LEAKY = {"data2vec_audio", "data2vec2_audio"}


def smallest() -> list[str]:
    """One recipe of a CPU's size for each backbone, by its tags; a backbone without one is named by the last test."""
    found: dict[str, str] = {
        load_recipe(name, changes).backbone.name: name
        for name, changes in SHRUNK.items()
        if name in {entry.name for entry in registry().all("recipe")}
    }
    for entry in registry().all("recipe"):
        if entry.tags & {"cpu", "edge", "baseline"} and entry.stage != "pipeline":
            recipe = load_recipe(entry.name)
            if isinstance(recipe, Recipe):
                found.setdefault(recipe.backbone.name, entry.name)
    return sorted(found.values())


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[Row]:
    """Ten clips with sound of six lengths, a picture and a sentence of several lengths each."""
    import soundfile
    from PIL import Image

    folder, rng, out = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "it", "rains"]
    for n in range(10):
        seconds = 1.0 + 0.35 * (n % 6)
        soundfile.write(folder / f"{n}.wav", 0.1 * rng.normal(size=int(seconds * 16000)), 16000)
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{n}.png")
        out.append(
            Row(
                id=str(n),
                parts={
                    "audio": str(folder / f"{n}.wav"),
                    "vision": str(folder / f"{n}.png"),
                    "text": " ".join(words[: 3 + n]),
                },
            )
        )
    return out


@pytest.fixture(scope="module", params=smallest())
def model(request) -> Model:
    tables = load_recipe(request.param, SHRUNK.get(request.param, ())).plain()
    torch.manual_seed(0)
    return Model(build_backbone(tables).eval(), build_frontend(tables, Path()).eval(), None, None, tables, Path())


def worst(got, want, order=None) -> float:
    """The largest change of any vector, relative to its length."""
    change = 0.0
    for stream in want.values:
        a, b = got[stream], want[stream] if order is None else want[stream][order]
        assert np.array_equal(np.isnan(a), np.isnan(b))
        change = max(change, float(np.nanmax(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))))
    return change


def test_embeddings_depend_on_the_clip_alone(model, rows):
    alone = embed_rows(model, rows, batch_size=1, on_bad="fail")
    assert len(alone) == 10
    for batch_size in (3, 10):
        assert worst(embed_rows(model, rows, batch_size=batch_size), alone) <= BOUND
    order = np.random.default_rng(0).permutation(10)
    assert worst(embed_rows(model, [rows[i] for i in order], batch_size=10), alone, order) <= BOUND


def test_embeddings_repeat_bit_by_bit_with_any_workers(model, rows):
    once = embed_rows(model, rows, batch_size=4)
    for workers in (0, 1, 3):
        again = embed_rows(model, rows, batch_size=4, workers=workers)
        assert all(np.array_equal(once[s], again[s], equal_nan=True) for s in once.values)


def test_padding_that_is_marked_does_not_leak(model, rows):
    alone = embed_rows(model, rows, batch_size=1)
    change = worst(embed_rows(model, rows, batch_size=10, mixed=True), alone)
    backbone = model.recipe["backbone"]
    if backbone["name"] in LEAKY and backbone.get("positions_over_padding", True):  # the authors' rule
        assert BOUND < change < 0.5
    else:
        assert change <= BOUND


def test_sequences_have_no_padding(model, rows):
    options = EmbedOptions(sequence=True)
    alone, padded = (embed_rows(model, rows[:4], options, batch_size=b, mixed=b > 1) for b in (1, 4))
    for stream in alone.values:
        assert [v.shape for v in alone[stream]] == [v.shape for v in padded[stream]]


def test_every_backbone_has_a_recipe_that_is_tested():
    tested = {load_recipe(name).backbone.name for name in smallest()}
    missing = {b.name for b in registry().all("backbone")} - tested - {"toy"}
    assert not missing, f"no recipe of a CPU's size for {sorted(missing)}"
