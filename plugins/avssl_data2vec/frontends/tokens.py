"""Text to token ids: UTF-8 bytes, or a byte-level BPE from any of the files that it is published in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from avssl.data.tokenizer import MASK, SPECIALS
from avssl.errors import DataError, UsageError, check
from avssl.files import write_text

BOS, PAD, EOS, UNK = SPECIALS  # ids 0 to 3, as in fairseq's dictionaries
KNOWN = "encoder.json, vocab.bpe and dict.txt, or vocab.json and merges.txt, or a tokenizer.json"


class Tokens(Protocol):
    """Text to ids without the tokens at the ends."""

    bos: int
    eos: int
    size: int  # of the vocabulary that the ids are of

    def ids(self, text: str) -> list[int]: ...


class Bytes:
    """Bytes as tokens: 4 specials, 256 bytes, the mask; 261 ids."""

    bos, eos, size, mask = 0, 2, 261, 260

    def ids(self, text: str) -> list[int]:
        return [b + len(SPECIALS) for b in text.encode()]


class Trained:
    """A tokenizer.json, or a folder that holds one or what one can be made of.

    What follows a <mask> that is no added token are tokens of a BPE that fairseq's dictionary lacks: read as <unk>.
    """

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self.path = path
        self.json = tokenizer_json(Path(path))
        try:
            self._tokenizer = Tokenizer.from_str(self.json)
        except Exception as error:  # the library raises plain Exception for a damaged file
            raise DataError(f"{path}: not a tokenizer: {error}", fix="give a tokenizer.json") from None
        self._tokenizer.no_truncation()  # what a file says of lengths is another's business
        self._tokenizer.no_padding()
        self.bos, self.eos, self._unknown = (self._id(t) for t in (BOS, EOS, UNK))
        mask = self._tokenizer.token_to_id(MASK)
        if mask is None or mask in self._tokenizer.get_added_tokens_decoder():
            mask = max(self._tokenizer.get_vocab().values())
        self.size = mask + 1

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise UsageError(f"{self.path} has no token {token!r}", fix="make one with `avssl data tokenizer`")
        return found

    def ids(self, text: str) -> list[int]:
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [i if i < self.size else self._unknown for i in found]

    def save(self, path: Path) -> None:
        write_text(path, self.json)


def tokens_of(name: str) -> Tokens:
    """The tokenizer that `frontend.tokenizer` names."""
    return Bytes() if name == "bytes" else Trained(name)


def check_size(tokens: Tokens, name: str, vocabulary: int) -> None:
    """Raises UsageError for a tokenizer of another vocabulary: its ids would mean other tokens to the model."""
    check(
        tokens.size == vocabulary,
        f"the tokenizer {name} has {tokens.size} tokens, the model a vocabulary of {vocabulary}",
        fix=f"for a new model --set backbone.vocabulary={tokens.size} --set backbone.mask={tokens.size - 1}; import one with "
        f"--option tokenizer=FOLDER, a folder with {KNOWN}",
    )


def imported(given: str, folder: Path, backbone: Mapping[str, Any]) -> dict[str, str]:
    """The frontend's key for an imported text model: what is given, and must fit, or else what lies beside its weights."""
    if given:
        check_size(tokens_of(given), given, int(backbone["vocabulary"]))
    name = given or (str(folder) if _reader(folder) else "")
    return {"tokenizer": name} if name else {}


def tokenizer_json(path: Path) -> str:
    """The text of a tokenizer.json, read or made. Raises UsageError where a path holds none."""
    if path.is_file():
        return _text(path)
    check(path.is_dir(), f"{path}: no such tokenizer", fix="give a tokenizer.json, or --set frontend.tokenizer=bytes")
    read = _reader(path)
    if read is None:
        raise UsageError(f"{path} holds no tokenizer", fix=f"give a folder with {KNOWN}")
    return read(path)


def _reader(folder: Path) -> Callable[[Path], str] | None:
    """What makes a tokenizer.json of a folder's files; None where they are none."""
    layouts = (
        (("tokenizer.json",), _whole),
        (("encoder.json", "vocab.bpe", "dict.txt"), _fairseq),
        (("vocab.json", "merges.txt"), _hugging_face),
    )
    for names, read in layouts:
        if all((folder / name).is_file() for name in names):
            return read
    return None


def _whole(folder: Path) -> str:
    return _text(folder / "tokenizer.json")


def _hugging_face(folder: Path) -> str:
    """vocab.json counts as the model does, its special tokens included."""
    vocabulary = _vocabulary(folder / "vocab.json")
    settings = folder / "tokenizer_config.json"
    prefix = bool(_json(settings).get("add_prefix_space", False)) if settings.is_file() else False
    added = sorted({*SPECIALS, MASK} & vocabulary.keys(), key=vocabulary.__getitem__)
    return _written(vocabulary, _merges(folder / "merges.txt"), added, prefix)


def _fairseq(folder: Path) -> str:
    """dict.txt counts GPT-2's ids in the order of its lines, after the specials; <mask> is the last of all.

    Nothing is an added token: fairseq reads "<mask>" in a text as the letters that it is.
    """
    tokens, ids = _vocabulary(folder / "encoder.json"), _dictionary(folder / "dict.txt")
    ids.setdefault(MASK, max(ids.values()) + 1)
    names = {str(i) for i in tokens.values()}
    vocabulary = {word: i for word, i in ids.items() if not word.isdecimal()}  # specials, fillers and the mask
    clash = sorted(vocabulary.keys() & tokens.keys())
    check(
        not clash,
        f"{folder}: {', '.join(clash[:3])} is a token of encoder.json and a word of dict.txt",
        fix="give the files that belong together",
        error=DataError,
    )
    check(
        bool(names & ids.keys()),
        f"{folder}: dict.txt has none of the ids of encoder.json",
        fix="give the files that belong together",
        error=DataError,
    )
    unknown = ids[MASK] + 1
    for token, number in tokens.items():
        if str(number) in ids:
            vocabulary[token] = ids[str(number)]
        else:
            vocabulary[token], unknown = unknown, unknown + 1
    return _written(vocabulary, _merges(folder / "vocab.bpe"), [], prefix=False)


def _dictionary(path: Path) -> dict[str, int]:
    """Word -> id of a fairseq dictionary."""
    ids = {word: i for i, word in enumerate(SPECIALS)}
    for number, line in enumerate(_text(path).removesuffix("\n").split("\n"), start=len(SPECIALS)):
        word, _, count = line.rstrip().rpartition(" ")
        again = count == "#fairseq:overwrite"
        word = word.rpartition(" ")[0] if again else word
        check(
            bool(word) and (again or (count.isdecimal() and word not in ids)),
            f"{path}: line {number - len(SPECIALS) + 1} is no new word with its count",
            fix="give fairseq's dict.txt",
            error=DataError,
        )
        ids[word] = number
    return ids


def _written(vocabulary: Mapping[str, int], merges: list[str], added: Iterable[str], prefix: bool) -> str:
    """A tokenizer.json: GPT-2's pre-tokenisation before a BPE."""
    bytes_ = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    specials = [{"id": vocabulary[t], "content": t, **plain} for t in added]
    model = {"type": "BPE", "unk_token": UNK, "vocab": vocabulary, "merges": merges}
    whole = {"version": "1.0", "added_tokens": specials, "normalizer": None,
             "pre_tokenizer": bytes_, "post_processor": None, "decoder": bytes_, "model": model}  # fmt: skip
    return json.dumps(whole, ensure_ascii=False)


def _merges(path: Path) -> list[str]:
    """Pairs in their order; the first line is a version."""
    lines = _text(path).split("\n")
    return [line for line in lines[lines[0].startswith("#version") :] if line.strip()]


def _vocabulary(path: Path) -> dict[str, int]:
    table = _json(path)
    check(
        bool(table) and all(isinstance(i, int) for i in table.values()),
        f"{path}: no table of tokens and their ids",
        fix="restore it from a copy",
        error=DataError,
    )
    return table


def _json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}", fix="restore it from a copy") from None
    return table if isinstance(table, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", fix="restore it from a copy") from None
