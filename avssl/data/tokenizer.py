"""A tokenizer of one's own, made from one's own texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from avssl.data.clip import Row
from avssl.data.decode import decode_text
from avssl.errors import check
from avssl.files import replacing
from avssl.progress import Step

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as the encoders of RoBERTa's kind count
MASK = "<mask>"  # the last id


def texts(rows: Sequence[Row], step: Step = lambda done: None) -> Iterator[str]:
    """The text of every row that has one. Raises DataError for one that cannot be read."""
    for number, row in enumerate(rows, start=1):
        if "text" in row.parts:
            yield decode_text(row.parts["text"])
        step(number)


def train_bpe(texts: Iterable[str], size: int, path: Path) -> int:
    """Train a byte-level BPE (GPT-2's pre-tokenisation) and write its tokenizer.json; the vocabulary's size.

    size: tokens wanted, with the 4 specials (ids 0 to 3) and <mask> (the last id); few texts give fewer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    check(
        size > 256 + len(SPECIALS) + 1,
        f"a byte-level vocabulary of {size} has no room for merges",
        fix="give at least 300",
    )
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIALS[3]))
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
    with replacing(path) as temporary:
        tokenizer.save(str(temporary))
    return tokenizer.get_vocab_size()
