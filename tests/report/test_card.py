"""The model card says what the files of a model say."""

from __future__ import annotations

import json
import shutil

import pytest

from avssl.card import write_card
from avssl.errors import CheckpointError


def test_the_card_of_a_run_states_system_data_front_end_and_training(run):
    text = write_card(run).read_text(encoding="utf-8")
    report = json.loads((run / "report.json").read_text())
    for words in ("# first", "`cav_mae`", "test 16, train 24", "bell 5", "| frames | 96 |", f"{report['parameters']:,}",
                  "| updates | 6 |", "| loss.temperature |"):  # fmt: skip
        assert words in text, words


def test_the_card_states_metrics_with_interval_chance_and_protocol(run, tmp_path):
    part = tmp_path / "m"
    shutil.copytree(run, part)
    (part / "evaluations").mkdir()
    found = {"task": "retrieval", "metrics": {"retrieval.audio->vision.class.r@1": 0.5}, "n": {"items": 16},
             "intervals": {"retrieval.audio->vision.class.r@1": [0.25, 0.75]},
             "chance": {"retrieval.audio->vision.class.r@1": 0.125}, "protocol": {"similarity": "cosine"}}  # fmt: skip
    (part / "evaluations" / "retrieval.json").write_text(json.dumps(found))
    text = write_card(part).read_text(encoding="utf-8")
    assert "| retrieval.audio->vision.class.r@1 | 0.5 | 0.25 – 0.75 | 0.125 |" in text
    assert "n.items = 16, similarity = cosine" in text


def test_the_card_of_an_imported_model_states_licence_and_source_or_that_there_is_none(run, tmp_path):
    part = tmp_path / "imported"
    part.mkdir()
    shutil.copy(run / "recipe.toml", part)
    for licence, says in (("BSD-2-Clause", "BSD-2-Clause"), ("", "Not stated by their source.")):
        (part / "report.json").write_text(json.dumps({"kind": "import", "licence": licence, "source": "a file"}))
        text = write_card(part).read_text(encoding="utf-8")
        assert "imported from a published checkpoint" in text
        assert says in text and "Source: a file" in text


def test_a_table_cell_cannot_break_the_table(run, tmp_path):
    part = tmp_path / "m"
    shutil.copytree(run, part)
    report = json.loads((part / "report.json").read_text())
    report["environment"]["device"] = "a | b\nc"
    (part / "report.json").write_text(json.dumps(report))
    assert "| machine | a \\| b c |" in write_card(part).read_text(encoding="utf-8")


def test_a_folder_without_a_recipe_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"recipe\.toml"):
        write_card(tmp_path)
