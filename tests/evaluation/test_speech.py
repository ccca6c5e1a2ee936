"""A recogniser's error rates: what it wrote, counted against the whole transcript."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avssl.cli import main

TRANSCRIPTS = ("ONE TWO", "TWO ONE", "two  two one", "one café 42", "two-two one")  # of training: the first two
TINY = (
    "backbone.dim=16",
    "backbone.depth=1",
    "backbone.heads=2",
    "backbone.ffn=32",
    "backbone.conv_layers=[[16, 10, 5], [16, 8, 4], [16, 4, 4]]",
    "backbone.positions_groups=4",
    "train.updates=2",
    "data.batch_size=2",
)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two updates, and its data: two transcripts to train, all five to test."""
    folder = tmp_path_factory.mktemp("speech")
    with (folder / "sounds.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "audio", "label", "split"])
        for i, text in enumerate((*TRANSCRIPTS[:2], *TRANSCRIPTS)):
            noise = np.random.default_rng(i).normal(0, 0.1, 8000 + 500 * i)
            soundfile.write(folder / f"{i}.wav", noise, 16_000)
            table.writerow([f"{i}", f"{i}.wav", text, "train" if i < 2 else "test"])
    changes = [word for change in TINY for word in ("--set", change)]
    where = ["--data", str(folder / "sounds.csv"), "--out", str(folder / "run"), "--workers", "0", "--device", "cpu"]
    assert run("finetune", "data2vec/asr_tiny", *where, *changes) == 0
    return folder / "run", folder / "sounds.csv"


def speech(recogniser: tuple[Path, Path], capsys: pytest.CaptureFixture, *options: str) -> dict:
    model, data = recogniser
    changes = [word for option in options for word in ("--set", option)]
    assert run("evaluate", "--model", str(model), "--data", str(data), "--task", "speech", *changes, "--json") == 0
    return json.loads(capsys.readouterr().out)


def edits(said: list[str], meant: list[str]) -> int:
    """Levenshtein's recursion, as it is defined."""
    if not said or not meant:
        return len(said) + len(meant)
    if said[0] == meant[0]:
        return edits(said[1:], meant[1:])
    return 1 + min(edits(said[1:], meant[1:]), edits(said, meant[1:]), edits(said[1:], meant))


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_rates_are_edits_of_all_items_over_the_words_of_all_transcripts(
    decoder: str, recogniser: tuple[Path, Path], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's output is replaced by frames that spell known sentences; the transcripts are those of the manifest."""
    from avssl_data2vec import speech as module
    from avssl_data2vec.letters import spell

    written = ["ONE TWO", "TWO", "TWO TWO ONE ONE", "ONE TWO", "TWO TWO ONE"]

    def frames(model, rows, config, bad):  # type: ignore[no-untyped-def]
        symbols = model.codec.classes
        for index, text in enumerate(written):
            ids = [i for symbol in spell(text, symbols) for i in (symbol, 0)]
            yield [index], [np.log(np.eye(len(symbols))[ids] * 0.98 + 0.02 / len(symbols))]

    monkeypatch.setattr(module, "_frames", frames)
    report = speech(recogniser, capsys, f"decoder={decoder}", "bootstrap=0")
    shown = report["hits"]["speech"]
    assert [hit["said"] for hit in shown] == written
    assert [hit["meant"] for hit in shown] == ["ONE TWO", "TWO ONE", "TWO TWO ONE", "ONE CAFÉ 42", "TWO-TWO ONE"]
    words = [(hit["said"].split(), hit["meant"].split()) for hit in shown]
    assert sum(len(meant) for _, meant in words) == report["n"]["words"] == 12
    assert report["metrics"]["speech.wer"] == pytest.approx(sum(edits(*pair) for pair in words) / 12)


def test_an_untrained_recogniser_is_scored_by_the_commands_alone(
    recogniser: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    report = speech(recogniser, capsys)
    assert report["n"] == {"items": 5, "words": 12, "characters": sum(len(" ".join(t.split())) for t in TRANSCRIPTS)}
    wrong = sum(edits(hit["said"].split(), hit["meant"].split()) for hit in report["hits"]["speech"])
    assert report["metrics"]["speech.wer"] == pytest.approx(wrong / 12)
    low, high = report["intervals"]["speech.wer"]
    assert low <= report["metrics"]["speech.wer"] <= high
