"""Recipes: strict, resolved, and every shipped one loads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from avssl.errors import UsageError
from avssl.recipe import Pipeline, Recipe, apply_override, load_recipe, merge, recipe_from, show
from avssl.registry import registry

RECIPES = [e.name for e in registry().all("recipe")]
BASE = """
summary = "a test"
[backbone]
name = "tiny"
[loss]
name = "classify"
[data]
target = "index"
[optim]
lr = 1e-3
[train]
epochs = 1
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(BASE, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_resolves_and_survives_its_own_toml(name: str) -> None:
    recipe = load_recipe(name)
    again = recipe_from(tomllib.loads(show(recipe)))
    assert again == recipe
    assert recipe.summary, "a recipe says what it is"


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_says_where_its_numbers_come_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.source, "a recipe states its source, be it our own choice"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key optim.lrr (did you mean 'lr'?)"),
        ("optim.lr=fast", "optim.lr = 'fast': Input should be a valid number (see `avssl recipes show`)"),
        ("optim.lr=-1", "optim.lr is -1.0 (give a positive number, e.g. --set optim.lr=1e-4)"),
        ("optm.lr=1", "unknown key optm (did you mean 'optim'?)"),
        ("backbone.nam=x", "unknown key backbone.nam"),
        ("data.batch_size=0", "data.batch_size is 0 (give at least 1)"),
        ("nonsense", "--set 'nonsense' is no KEY=VALUE (e.g. --set optim.lr=1e-4)"),
        ("train.epochs.x=1", "--set train.epochs.x: epochs is no table (see `avssl recipes show`)"),
        ("backbone=tiny", "backbone = 'tiny' is no table (e.g. --set backbone.name=...)"),
        ("loss.name=3", "loss.name is missing (e.g. --set loss.name=...; see `avssl losses`)"),
        ("stage=pretrian", "stage = 'pretrian': Input should be 'pretrain' or 'finetune'"),
        ("tags=demo", "tags = 'demo': Input should be a valid array"),
        ("summary=3", "summary = 3: Input should be a valid string"),
        ("expected.loss=low", "expected.loss = 'low': Input should be a valid number"),
        ("optim.betas=[2, 3]", "optim.betas is (2.0, 3.0) (two numbers from 0 to below 1)"),
        ("optim.weight_decay=-0.1", "optim.weight_decay is -0.1 (give at least 0)"),
        ("optim.lr=inf", "optim.lr is inf (give a positive number, e.g. --set optim.lr=1e-4)"),
        ("optim.layer_decay=0", "optim.layer_decay is 0.0 (a factor of at most 1)"),
        ("schedule.milestones_every=0", "schedule.milestones_every is 0 (give at least 1)"),
        ("schedule.warmup=nan", "schedule.warmup is nan (give at least 0)"),
        ("data.epoch_items=-4", "data.epoch_items is -4 (give at least 1)"),
        ("data.limit=0", "data.limit is 0 (give at least 1)"),
        ("train.epochs=0", "train.epochs is 0.0 (give a positive number)"),
        ("train.updates=-3", "train.updates is -3 (give at least 1)"),
        ("train.log_every=0", "train.log_every is 0 (give at least 1)"),
        ("train.keep_last=0", "train.keep_last is 0 (give at least 1)"),
        ("train.seed=-1", "train.seed is -1 (give a number from 0 to 2^32 - 1)"),
        ("train.ema=2", "train.ema is 2.0 (a decay between 0 and 1, e.g. 0.999)"),
        ("train.weight_average=[5, 1]", "train.weight_average is (5, 1) (the first and the last epoch)"),
        (
            "train.negatives=1.5",
            "train.negatives = 1.5: Input should be a valid string or a valid integer (see `avssl recipes show`)",
        ),
        ("train.negatives='all'", 'train.negatives = \'all\' ("global", "rank" or a number of items)'),
        ("train.on_nonfinite=skip", 'train.on_nonfinite = \'skip\' ("stop" or "skip-10")'),
        ("monitor.patience=0", "monitor.patience is 0 (give at least 1)"),
    ],
)
def test_a_wrong_key_or_value_is_named(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(str(recipe_file), [override])
    assert str(caught.value).startswith(message)


def test_an_unknown_backbone_names_the_nearest(recipe_file: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        load_recipe(str(recipe_file), ["backbone.name=tinny"])


def test_a_loss_that_does_not_fit_is_refused_with_what_would(recipe_file: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(str(recipe_file), ["loss.name=contrastive"])
    assert "loss 'contrastive' cannot train backbone 'tiny': it needs 2 modalities, the backbone reads 1" in str(
        caught.value
    )
    assert "losses for tiny: " in str(caught.value)


def test_one_length_replaces_the_other(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["train.updates=7"])
    assert isinstance(recipe, Recipe)
    assert (recipe.train.updates, recipe.train.epochs) == (7, None)


def test_another_component_drops_the_old_keys() -> None:
    data = {"loss": {"name": "a", "weight": 3}}
    apply_override(data, "loss.name=b")
    assert data == {"loss": {"name": "b"}}


def test_extends_merges_tables_and_goes_one_level(tmp_path: Path, recipe_file: Path) -> None:
    child = tmp_path / "child.toml"
    child.write_text(f'extends = "{recipe_file}"\n[optim]\nweight_decay = 0.5\n', encoding="utf-8")
    recipe = load_recipe(str(child))
    assert isinstance(recipe, Recipe)
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (1e-3, 0.5)
    grandchild = tmp_path / "grandchild.toml"
    grandchild.write_text(f'extends = "{child}"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="one level, no chains"):
        load_recipe(str(grandchild))


def test_merge_replaces_a_component_of_another_name() -> None:
    assert merge({"loss": {"name": "a", "x": 1}}, {"loss": {"name": "b"}}) == {"loss": {"name": "b"}}
    assert merge({"loss": {"name": "a", "x": 1}}, {"loss": {"name": "a", "y": 2}}) == {
        "loss": {"name": "a", "x": 1, "y": 2}
    }


def test_a_pretrained_model_fills_what_the_recipe_leaves_open(recipe_file: Path) -> None:
    base = {"backbone": {"name": "tiny", "dim": 48, "heads": 4}, "frontend": {}}
    recipe = load_recipe(str(recipe_file), ["backbone.heads=2"], base=base)
    assert isinstance(recipe, Recipe)
    assert (recipe.backbone.config.dim, recipe.backbone.config.heads) == (48, 2)


@pytest.fixture
def two_stages(tmp_path: Path) -> str:
    path = tmp_path / "p.toml"
    path.write_text(
        'summary = "two"\n[[stages]]\nname = "a"\nrecipe = "tiny/masked"\n[[stages]]\nname = "b"\nrecipe = "tiny/6k-esc10"\n'
        'inputs = { from = "a" }\noverrides = { "train.seed" = 1, "optim.lr" = 1.0 }\n',
        encoding="utf-8",
    )
    return str(path)


def test_stages_make_a_pipeline(two_stages: str) -> None:
    pipeline = load_recipe(two_stages)
    assert isinstance(pipeline, Pipeline)
    assert [s.name for s in pipeline.stages] == ["a", "b"]


def test_an_override_of_a_pipeline_is_for_one_stage_or_for_all(two_stages: str) -> None:
    pipeline = load_recipe(two_stages, ["a.optim.lr=1e-3", "train.seed=7", "b.loss.name=classify"])
    assert isinstance(pipeline, Pipeline)
    assert [s.overrides for s in pipeline.stages] == [
        {"optim.lr": 1e-3, "train.seed": 7},
        {"train.seed": 7, "optim.lr": 1.0, "loss.name": "classify"},
    ]
    for wrong in ("c.optim.lr=1", "a=1", "summary=x"):
        with pytest.raises(UsageError, match=r"a pipeline has no such key .*a stage \(a, b\)"):
            load_recipe(two_stages, [wrong])


def test_the_schema_accepts_every_shipped_recipe_key() -> None:
    from avssl.recipe_schema import recipe_schema

    schema = recipe_schema()
    for entry in registry().all("recipe"):
        for key in tomllib.loads(entry.path.read_text(encoding="utf-8")):
            assert key in schema["properties"], f"{entry.name}: {key}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends = 3", "extends = 3 is no name (name one recipe)"),
        ('extends = "tiny/masked"\ntrain = 3', "train is no table (write [train])"),
        ('backbone = "tiny"', "backbone is no table (write [backbone])"),
    ],
)
def test_a_recipe_of_another_shape_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_recipe(str(path), base={"backbone": {"name": "tiny"}})
    assert str(caught.value) == f"{path}: {message}"
