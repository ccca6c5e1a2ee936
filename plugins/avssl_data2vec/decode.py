"""From frame-wise symbol probabilities to symbols, and how wrong they are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

LanguageModel = Callable[
    [tuple[int, ...]], float
]  # symbols so far -> log10 probability of the last one, given the others


def greedy(log_probs: np.ndarray, blank: int = 0) -> list[int]:
    """(T, V) -> the best symbol of each frame, repeats merged and blanks dropped."""
    best = log_probs.argmax(1)
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return best[changed & (best != blank)].tolist()


def beam_search(
    log_probs: np.ndarray,
    blank: int = 0,
    width: int = 50,
    *,
    symbols_per_frame: int = 40,
    language_model: LanguageModel | None = None,
    lm_weight: float = 1.0,
    symbol_score: float = 0.0,
) -> list[tuple[list[int], float]]:
    """The most probable label sequences, each the sum over its alignments (prefix beam search, arXiv:1408.2873).

    log_probs: (T, V) natural logarithms. symbols_per_frame: only the best symbols of a frame extend a prefix.
    language_model: scores each added symbol, times lm_weight; symbol_score is added for each symbol.
    Returns (symbols, natural-log score), best first, at most `width`.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}  # prefix -> ends in blank, in a symbol
    bonus: dict[tuple[int, ...], float] = {(): 0.0}
    for frame in log_probs.astype(np.float64):
        likely = np.argsort(-frame, kind="stable")[:symbols_per_frame]
        ends: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (in_blank, in_symbol) in beams.items():
            total = _log_add(in_blank, in_symbol)
            ends[prefix][0] = _log_add(ends[prefix][0], total + frame[blank])
            if prefix:  # the last symbol goes on
                ends[prefix][1] = _log_add(ends[prefix][1], in_symbol + frame[prefix[-1]])
            for symbol in likely:
                symbol = int(symbol)
                if symbol == blank:
                    continue
                # a repeated symbol needs a blank between the two
                before = in_blank if prefix and symbol == prefix[-1] else total
                if before == -math.inf:
                    continue
                longer = (*prefix, symbol)
                if longer not in bonus:
                    score = 0.0 if language_model is None else lm_weight * language_model(longer)
                    bonus[longer] = bonus[prefix] + score + symbol_score
                ends[longer][1] = _log_add(ends[longer][1], before + frame[symbol])
        ranked = sorted(ends, key=lambda p: _log_add(*ends[p]) + bonus[p], reverse=True)[:width]
        beams = {p: (ends[p][0], ends[p][1]) for p in ranked}
    return [
        (list(p), _log_add(*beams[p]) + bonus[p])
        for p in sorted(beams, key=lambda p: _log_add(*beams[p]) + bonus[p], reverse=True)
    ]


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


class NGrams:
    """A back-off n-gram model over symbols, fitted with add-one counts of the highest order ("stupid" back-off 0.4).

    Small and ours: enough to rescore letters or words of a closed task. ARPA files of other tools are not read.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], order: int, backoff: float = 0.4) -> None:
        self.order, self.backoff = order, backoff
        self.counts: dict[tuple[int, ...], int] = defaultdict(int)
        self.total = 0
        self.symbols = set()
        for sequence in sequences:
            for i in range(len(sequence)):
                self.total += 1
                self.symbols.add(sequence[i])
                for n in range(1, order + 1):
                    if i - n + 1 >= 0:
                        self.counts[tuple(sequence[i - n + 1 : i + 1])] += 1

    def __call__(self, prefix: tuple[int, ...]) -> float:
        """log10 of the last symbol's score, given up to order - 1 symbols before it."""
        factor = 1.0
        for n in range(min(self.order, len(prefix)), 1, -1):
            gram = prefix[-n:]
            if self.counts.get(gram, 0):
                return math.log10(factor * self.counts[gram] / self.counts[gram[:-1]])
            factor *= self.backoff
        return math.log10(factor * (self.counts.get(prefix[-1:], 0) + 1) / (self.total + len(self.symbols) + 1))


def distance(said: Sequence[object], meant: Sequence[object]) -> int:
    """Levenshtein distance: least number of insertions, deletions and substitutions."""
    row = list(range(len(meant) + 1))
    for i, a in enumerate(said, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(meant, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
