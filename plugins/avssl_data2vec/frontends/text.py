"""Text to token ids, cut to the model's length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Request, Row
from avssl.errors import DataError, check
from avssl.frontend import Frontend
from avssl_data2vec.frontends.configs import TextFrontendConfig
from avssl_data2vec.frontends.tokens import Trained, check_size, tokens_of

_CHARACTERS = 12  # that a token may have on average: more of a long text is not tokenised


class TextFrontend(Frontend):
    """text.x (B, N) int64 with <s> and </s> at the ends, padded with `pad`."""

    modalities = frozenset({"text"})
    config: TextFrontendConfig

    def __init__(self, config: TextFrontendConfig) -> None:
        super().__init__(config)
        self.tokens = tokens_of(config.tokenizer)
        self.vocabulary: int | None = None  # of the encoder that reads the ids
        self.pad_values = {"text": config.pad}

    def bind(self, backbone: Any) -> None:
        """Texts are refused, not ids: a model that was imported without its tokenizer serves who has ids."""
        self.vocabulary = getattr(backbone, "vocabulary", None)

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        return Request({"text": None})

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """A text that is too long is cut: at a random place in training, at its end otherwise and where pairs are read.

        Raises UsageError where the tokenizer is not of the encoder's vocabulary."""
        clip, c = clips[0], self.config
        if self.vocabulary is not None:
            check_size(self.tokens, c.tokenizer, self.vocabulary)
        rng = None if c.pairs else rng
        text = clip.parts["text"]
        check(bool(text.strip()), f"{clip.id} has no text", fix="leave it out", error=DataError)
        first, tab, second = text.partition("\t")
        ids = self.tokens.ids(self._part(first if c.pairs and tab else text, rng))
        if c.pairs and tab:  # RoBERTa's two ends between the sentences of a pair
            ids = [*ids, self.tokens.eos, self.tokens.eos, *self.tokens.ids(self._part(second, None))]
        room = c.max_tokens - 2
        start = int(rng.integers(len(ids) - room + 1)) if rng is not None and len(ids) > room and not c.lines else 0
        x = torch.tensor([self.tokens.bos, *ids[start : start + room], self.tokens.eos])
        target = None if clip.target is None else Stream(torch.as_tensor(clip.target)[None])
        return Batch((clip.id,), torch.tensor([clip.seed], dtype=torch.int64), {"text": Stream(x[None])}, target)

    def _part(self, text: str, rng: np.random.Generator | None) -> str:
        """At most the characters that may be needed, so that a book is not tokenised for one line of it."""
        most = self.config.max_tokens * _CHARACTERS
        if rng is None or len(text) <= self.config.max_tokens:
            return text[:most]
        start = int(rng.integers(max(1, len(text) - self.config.max_tokens)))
        if self.config.lines:
            start = text.rfind("\n", 0, start) + 1
        return text[start : start + most]

    def save_assets(self, folder: Path) -> TextFrontendConfig:
        if not isinstance(self.tokens, Trained):
            return self.config
        self.tokens.save(folder / "tokenizer.json")
        return dataclasses.replace(self.config, tokenizer="assets/tokenizer.json")
