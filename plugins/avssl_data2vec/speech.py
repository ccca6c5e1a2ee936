"""Evaluation of a recogniser: what it writes, against the transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from avssl.data.bad import BadFiles
from avssl.data.clip import Row
from avssl.data.loader import evaluation_batches
from avssl.errors import CheckpointError, DataError, check
from avssl.evaluation import bootstrap
from avssl.evaluation.features import note_bad, protocol
from avssl.evaluation.labels import Splits, evaluation_split, labelled, named_split
from avssl.evaluation.report import Report
from avssl.words import none_of
from avssl_data2vec.decode import NGrams, beam_search, distance, greedy
from avssl_data2vec.letters import plain, read, spell
from avssl_data2vec.speech_config import SpeechConfig

if TYPE_CHECKING:
    from avssl.model import Model


def speech(model: Model, splits: Splits, config: SpeechConfig) -> Report:
    """`speech.wer` and `speech.cer`: edits over all items divided by the words (characters) of all transcripts.

    A transcript is a row's label, whole: letters that the model cannot write count as errors. Case is that of the model's
    symbols. Raises CheckpointError for a model that writes no characters.
    """
    codec = model.codec
    if model.head is None or codec is None or codec.kind != "characters":
        raise CheckpointError(
            f"{model.path} writes no characters", fix="fine-tune with loss.name=ctc and data.target=characters"
        )
    split, rows = evaluation_split(splits, config.split, config.limit)
    rows = labelled(rows)
    blank = int(model.recipe["loss"].get("blank", 0))
    language = _language_model(splits, codec.classes, config)
    bad = BadFiles()
    said: list[str] = []
    meant: list[str] = []
    ids: list[str] = []
    for indices, log_probs in _frames(model, rows, config, bad):
        for index, one in zip(indices, log_probs, strict=True):
            symbols = greedy(one, blank)
            if config.decoder == "beam":
                symbols = beam_search(
                    one,
                    blank,
                    config.beam,
                    language_model=language,
                    lm_weight=config.lm_weight,
                    symbol_score=config.symbol_score,
                )[0][0]
            said.append(read(symbols, codec.classes))
            meant.append(plain(rows[index].labels[0], codec.classes))
            ids.append(rows[index].id)
    check(bool(ids), f"{none_of(len(rows), 'item')} could be read", fix="see the list of bad files", error=DataError)
    report = Report("speech", protocol=protocol(config, split=split, symbols=len(codec.classes)))
    note_bad(report, bad)
    counts = {
        "wer": _edits([s.split() for s in said], [m.split() for m in meant]),
        "cer": _edits([list(s) for s in said], [list(m) for m in meant]),
    }
    for name, (edits, lengths) in counts.items():
        interval = {}
        if config.bootstrap:
            pairs = np.stack([edits, lengths])

            def rate(picked: np.ndarray, pairs: np.ndarray = pairs) -> float:
                edited, all_of_them = pairs[:, picked].sum(1)
                return float(edited / max(1, all_of_them))

            level, seed = config.confidence, config.seed
            interval = {
                name: bootstrap.of_statistic(rate, len(ids), resamples=config.bootstrap, level=level, seed=seed)
            }
        report.add("speech", {name: edits.sum() / max(1, lengths.sum())}, interval)
    report.n |= {"items": len(ids), "words": int(counts["wer"][1].sum()), "characters": int(counts["cer"][1].sum())}
    report.hits["speech"] = [
        {"id": i, "said": s, "meant": m} for i, s, m in list(zip(ids, said, meant, strict=True))[: config.examples]
    ]
    return report


def _edits(said: Sequence[Sequence[str]], meant: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Edit distance and meant length of each item."""
    edits = np.array([distance(s, m) for s, m in zip(said, meant, strict=True)])
    return edits, np.array([len(m) for m in meant])


def _language_model(splits: Splits, symbols: Sequence[str], config: SpeechConfig) -> NGrams | None:
    if config.lm_order == 0:
        return None
    rows = labelled(named_split(splits, "train"))
    return NGrams([spell(row.labels[0], symbols) for row in rows], config.lm_order)


@torch.inference_mode()
def _frames(model: Model, rows: Sequence[Row], config: SpeechConfig, bad: BadFiles):
    """(row numbers, (T, V) log probabilities of each without its padding), batch by batch."""
    head = model.head
    assert head is not None
    for indices, _, batch in evaluation_batches(
        rows,
        model.frontend,
        batch_size=config.batch_size,
        workers=config.workers,
        views=False,
        on_bad=config.on_bad,
        bad=bad,
    ):
        prepared = model.frontend(batch.to(model.device))
        with model.autocast(config.precision):
            features = model.backbone(prepared, only={"audio"})
            logits = head(features)
        log_probs = logits.float().log_softmax(-1).cpu().numpy()
        prefix, pad = features.grid["audio"].prefix, features.pad.get("audio")
        lengths = [log_probs.shape[1]] * len(log_probs) if pad is None else (~pad[:, prefix:]).sum(1).tolist()
        yield indices, [row[:n] for row, n in zip(log_probs, lengths, strict=True)]
