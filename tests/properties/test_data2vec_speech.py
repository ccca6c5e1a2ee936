"""Letters from frames: decoding against exhaustive search, error rates, and a recogniser that learns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.batch import Batch, Stream
from avssl.model import build_backbone, build_loss
from avssl_data2vec import example
from avssl_data2vec.decode import NGrams, beam_search, distance, greedy
from avssl_data2vec.letters import FAIRSEQ_LETTERS, read, spell


def log_probs(frames: int, symbols: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((frames, symbols)) * 2
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(s for s, _ in itertools.groupby(path) if s != 0)


def exhaustive(x: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every label sequence, summed over all its alignments."""
    out: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(x.shape[1]), repeat=len(x)):
        p = math.exp(sum(x[t, s] for t, s in enumerate(path)))
        out[collapse(path)] = out.get(collapse(path), 0.0) + p
    return out


def test_greedy_merges_repeats_and_drops_blanks():
    path = [0, 1, 1, 0, 1, 2, 2, 0]
    x = np.full((len(path), 3), -10.0)
    x[np.arange(len(path)), path] = 0.0
    assert greedy(x) == [1, 1, 2]


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_most_probable_labels(seed: int):
    x = log_probs(6, 3, seed)
    wanted = exhaustive(x)
    found = beam_search(x, width=1000)
    assert tuple(found[0][0]) == max(wanted, key=wanted.get)
    for symbols, score in found:
        assert score == pytest.approx(math.log(wanted[tuple(symbols)]), abs=1e-9)


def test_a_beam_beats_the_best_path_where_alignments_add_up():
    x = np.log(np.array([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25]]))
    assert greedy(x) == [] and beam_search(x, width=10)[0][0] == [1]


def test_a_language_model_decides_between_equal_sounds():
    x = np.log(np.array([[0.02, 0.49, 0.49], [0.02, 0.49, 0.49]]))
    model = NGrams([[1, 2], [1, 2], [1, 2]], order=2)
    assert beam_search(x, width=10, language_model=model, lm_weight=3.0, symbol_score=5.0)[0][0] == [1, 2]


@pytest.mark.parametrize(
    "said,meant,edits", [("", "", 0), ("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("ab", "ba", 2)]
)
def test_edit_distance(said: str, meant: str, edits: int):
    assert distance(said, meant) == distance(meant, said) == edits


def test_spelling_and_reading_are_inverse():
    ids = spell("hello  world's", FAIRSEQ_LETTERS)
    assert read(ids, FAIRSEQ_LETTERS) == "HELLO WORLD'S"
    assert read([0, 1, *ids, 2], FAIRSEQ_LETTERS) == "HELLO WORLD'S"
    assert FAIRSEQ_LETTERS[spell("é", FAIRSEQ_LETTERS)[0]] == "<unk>" and len(FAIRSEQ_LETTERS) == 32


def recogniser(encoder: Callable[[Path], dict] = example.audio, **loss: object):
    torch.manual_seed(0)
    tables = {**encoder(Path()), "loss": {"name": "ctc", "classes": 5, **loss}}
    return build_loss(tables, build_backbone(tables)).train()


def speech_batch() -> Batch:
    x = torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))
    targets = Stream(
        torch.tensor([[1, 2, 3], [4, 4, 0], [2, 0, 0]]), torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]]).bool()
    )
    return Batch(("a", "b", "c"), torch.arange(3), {"audio": Stream(x)}, targets)


def test_a_recogniser_learns_its_transcripts():
    loss, batch = recogniser(), speech_batch()
    optimiser = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    for _ in range(150):
        total = loss(batch).total()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    edits, length = loss.eval()(batch).metrics["cer"]
    assert length == 6 and float(edits) == 0


@pytest.mark.parametrize("encoder", [example.audio, example.audio2])
def test_frames_and_channels_are_hidden_in_training_only(encoder):
    masks = {"spans": {"probability": 0.5, "length": 3}, "channels": {"probability": 0.5, "length": 4, "min_spans": 0}}
    loss, batch = recogniser(encoder, **masks), speech_batch()
    draw = loss.sample(batch)
    assert draw.frames.any() and draw.channels.any()
    assert not torch.equal(loss(batch, draw).total(), loss.eval()(batch).total())
    assert loss.sample(batch).frames is None
    loss.train()
    seen = []
    loss.backbone.positions.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    loss(batch, draw)
    assert (seen[0].transpose(1, 2)[draw.channels] == 0).all()


def test_a_transcript_that_cannot_be_aligned_does_not_break_the_step():
    loss = recogniser()
    batch = speech_batch()
    long = Batch(batch.ids, batch.seeds, batch.streams, Stream(torch.ones(3, 60, dtype=torch.int64)))
    total = loss(long).total()
    assert total.item() == 0.0  # as fairseq's zero_infinity
