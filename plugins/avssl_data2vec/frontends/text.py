"""Text to token ids: UTF-8 bytes, or a tokenizer of the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Request, Row
from avssl.errors import DataError, UsageError, check
from avssl.frontend import Frontend
from avssl_data2vec.frontends.configs import TextFrontendConfig

BOS, PAD, EOS, UNK = SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in fairseq's dictionaries
MASK = "<mask>"  # the last id
_CHARACTERS = 12  # that a token may have on average: more of a long text is not tokenised


class Tokens(Protocol):
    """Text to ids without the tokens at the ends."""

    bos: int
    eos: int
    size: int

    def ids(self, text: str) -> list[int]: ...


class Bytes:
    """Bytes as tokens: 4 specials, 256 bytes, the mask; 261 ids."""

    bos, eos, size, mask = 0, 2, 261, 260

    def ids(self, text: str) -> list[int]:
        return [b + len(SPECIALS) for b in text.encode()]


class Trained:
    """A tokenizer.json."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        check(
            Path(path).is_file(),
            f"{path}: no such tokenizer",
            fix="give a tokenizer.json, or --set frontend.tokenizer=bytes",
        )
        try:
            self._tokenizer = Tokenizer.from_file(path)
        except Exception as error:  # the library raises plain Exception for a damaged file
            raise DataError(f"{path}: not a tokenizer: {error}", fix="give a tokenizer.json") from None
        self.size = self._tokenizer.get_vocab_size()
        self.bos, self.eos = self._id(BOS, path), self._id(EOS, path)

    def _id(self, token: str, path: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise UsageError(
                f"{path} has no token {token!r}", fix="train one with avssl_data2vec.frontends.text.train_bpe"
            )
        return found

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class TextFrontend(Frontend):
    """text.x (B, N) int64 with <s> and </s> at the ends, padded with `pad`."""

    modalities = frozenset({"text"})
    config: TextFrontendConfig

    def __init__(self, config: TextFrontendConfig) -> None:
        super().__init__(config)
        self.tokens: Tokens = Bytes() if config.tokenizer == "bytes" else Trained(config.tokenizer)
        self.pad_values = {"text": config.pad}

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        return Request({"text": None})

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """A text that is too long is cut: at a random place in training, at its end otherwise and where pairs are read."""
        clip, c = clips[0], self.config
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
        if self.config.tokenizer == "bytes":
            return self.config
        if Path(self.config.tokenizer).resolve() != (folder / "tokenizer.json").resolve():
            shutil.copyfile(self.config.tokenizer, folder / "tokenizer.json")
        return dataclasses.replace(self.config, tokenizer="assets/tokenizer.json")


def train_bpe(texts: Iterable[str], size: int, path: Path) -> int:
    """Train a byte-level BPE (GPT-2's pre-tokenisation) and write its tokenizer.json; the vocabulary's size.

    size: tokens wanted, with the 4 specials (ids 0 to 3) and <mask> (the last id).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    check(
        size > 256 + len(SPECIALS) + 1,
        f"a byte-level vocabulary of {size} has no room for merges",
        fix="give at least 300",
    )
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(MASK, special=True)])
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()
