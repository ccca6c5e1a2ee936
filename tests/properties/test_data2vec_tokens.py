"""The tokenizers of text models: fairseq's and Hugging Face's files, what is refused, and what goes with a model."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import avssl as run

from avssl.data.clip import Clip, Row
from avssl.errors import DataError, UsageError
from avssl.imports import Imported, import_checkpoint
from avssl.model import build_backbone, build_frontend, build_loss, open_model
from avssl.model_import import write_imported
from avssl.recipe import Recipe, load_recipe
from avssl.registry import registry
from avssl.training.run import finetune
from avssl.training.setup import Machine
from avssl_data2vec import example
from avssl_data2vec.formats import to_fairseq, to_hugging_face
from avssl_data2vec.frontends.tokens import Trained, tokens_of

CORPUS = [
    "The hidden words of a sentence are what a model learns to tell.\nDon't say that they're lost, I'll find them.",
    "Größe, naïve, café; Привет, мир; 日本語 のテスト; 🙂👍🏽 12345 3.14",
    "  spaces  at   the beginning, \ttabs and\r\nlines\n\n",
] * 20
TEXTS = [
    *CORPUS[:3],
    "the sentence",
    " the sentence",
    "they'll we've I'M it's",
    "<mask> <s> </s> <pad> <unk> madeupword0000",
    "no-break\u00a0 em\u2003 line\u2028 next\x85 null\x00 mark\ufeff e\u0301",
    "\n",
    "   ",
    "",
]
FILLERS = 3
LOST = 40  # tokens of the BPE that the dictionary lacks
KNOWN = "encoder.json, vocab.bpe and dict.txt, or vocab.json and merges.txt, or a tokenizer.json"
FIX = (
    "for a new model --set backbone.vocabulary={} --set backbone.mask={}; import one with --option tokenizer=FOLDER, a "
    "folder with encoder.json, vocab.bpe and dict.txt, or vocab.json and merges.txt, or a tokenizer.json"
)


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE in GPT-2's own count of ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return made


@pytest.fixture
def published(bpe: Any, tmp_path: Path) -> Path:
    """encoder.json, vocab.bpe and dict.txt as the authors lay them out: the dictionary by falling counts, then fillers."""
    model = json.loads(bpe.to_str())["model"]
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    ids = list(model["vocab"].values())
    random.Random(0).shuffle(ids)
    lines = [f"{i} {len(ids) - n}" for n, i in enumerate(ids[LOST:])]
    lines += [f"madeupword{n:04d} 0" for n in range(FILLERS)]
    (folder / "dict.txt").write_text("\n".join(lines) + "\n")
    return folder


def vocabulary_of(folder: Path) -> int:
    return 4 + len((folder / "dict.txt").read_text().splitlines()) + 1


def test_ids_are_those_of_fairseqs_dictionary(bpe: Any, published: Path) -> None:
    tokens = Trained(str(published))
    order = [line.split()[0] for line in (published / "dict.txt").read_text().splitlines()]
    unknown = 0
    for text in TEXTS:
        want = [4 + order.index(str(i)) if str(i) in order else 3 for i in bpe.encode(text).ids]
        assert tokens.ids(text) == want, text
        unknown += want.count(3)
    assert unknown > 5  # a token that the dictionary lacks is <unk>, and its neighbours are what they would have been
    assert (tokens.bos, tokens.eos, tokens.size) == (0, 2, vocabulary_of(published))
    assert tokens._tokenizer.token_to_id("<mask>") == tokens.size - 1


def test_a_word_that_the_dictionary_counts_anew_has_its_last_id(published: Path) -> None:
    lines = (published / "dict.txt").read_text().splitlines()
    word = lines[0].split()[0]
    (published / "dict.txt").write_text("\n".join([*lines, f"{word} 1 #fairseq:overwrite"]) + "\n")
    vocabulary = json.loads(Trained(str(published)).json)["model"]["vocab"]
    token = next(t for t, i in json.loads((published / "encoder.json").read_text()).items() if str(i) == word)
    assert vocabulary[token] == 4 + len(lines) and vocabulary["<mask>"] == 5 + len(lines)


def test_the_two_files_of_hugging_face_count_as_they_stand(bpe: Any, tmp_path: Path) -> None:
    model = json.loads(bpe.to_str())["model"]
    shifted = {token: i + 4 for token, i in model["vocab"].items()}
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(shifted) + 4}
    (tmp_path / "vocab.json").write_text(json.dumps(shifted | specials))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    tokens = Trained(str(tmp_path))
    for text in TEXTS:
        if "<mask>" not in text:
            assert tokens.ids(text) == [i + 4 for i in bpe.encode(text).ids], text
    assert tokens.ids("the<mask>") == [*tokens.ids("the"), len(shifted) + 4]  # special there, and not in fairseq
    assert tokens.size == len(shifted) + 5
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert Trained(str(tmp_path)).ids("the") == tokens.ids(" the")


def test_what_a_file_says_of_lengths_does_not_cut_texts(bpe: Any, published: Path) -> None:
    table = json.loads(Trained(str(published)).json)
    table["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (published / "tokenizer.json").write_text(json.dumps(table))
    assert len(Trained(str(published)).ids(TEXTS[0])) > 2


def checkpoint(folder: Path, vocabulary: int, tables: dict[str, Any]) -> Path:
    """A text model of this vocabulary, as fairseq's file."""
    tables["backbone"] |= {"vocabulary": vocabulary, "mask": vocabulary - 1}
    tables["loss"] = {"name": "data2vec_text_classify", "classes": 2}
    loss = build_loss(tables, build_backbone(tables))
    made = Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict())
    write_imported(made, folder / "made")
    (folder / "weights").mkdir()
    (written,) = to_fairseq.write(open_model(folder / "made"), folder / "weights" / "model.pt")
    return written


@pytest.mark.parametrize("encoder", [example.text, example.text2])
@pytest.mark.parametrize("where", ["given", "beside"])
def test_an_imported_model_has_its_own_tokenizer(where: str, encoder: Any, published: Path, tmp_path: Path) -> None:
    file = checkpoint(tmp_path, vocabulary_of(published), encoder(tmp_path))
    tokens, options = Trained(str(published)), {"tokenizer": str(published)}
    if where == "beside":
        for path in published.iterdir():
            shutil.copy(path, file.parent)
        options = {}
    write_imported(import_checkpoint(file, "data2vec_fairseq", **options), tmp_path / "model")
    shutil.rmtree(published)
    shutil.rmtree(file.parent)  # a model directory is whole
    model = open_model(tmp_path / "model")
    assert model.frontend.config.tokenizer == str(tmp_path / "model/assets/tokenizer.json")
    ids = model.frontend.item([Clip("a", {"text": TEXTS[0]})], None).need("text").x[0].tolist()
    assert ids == [0, *tokens.ids(TEXTS[0]), 2][: len(ids)] and len(ids) == min(64, len(tokens.ids(TEXTS[0])) + 2)
    assert np.isfinite(model.embed(["the sentence"], modality="text")["text"]).all()


def test_a_hugging_face_model_has_its_own_tokenizer(published: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path, vocabulary_of(published), example.text(tmp_path))
    to_hugging_face.write(open_model(tmp_path / "made"), tmp_path / "hf")
    tokens = Trained(str(published))
    found = import_checkpoint(tmp_path / "hf", tokenizer=str(published))
    assert tokens_of(found.frontend["tokenizer"]).ids(TEXTS[1]) == tokens.ids(TEXTS[1])
    assert not (tmp_path / "hf" / "tokenizer.json").exists(), "a model that reads bytes has none"
    write_imported(found, tmp_path / "own")
    to_hugging_face.write(open_model(tmp_path / "own"), tmp_path / "out")
    again = import_checkpoint(tmp_path / "out")  # from what lies beside the weights
    assert tokens_of(again.frontend["tokenizer"]).ids(TEXTS[1]) == tokens.ids(TEXTS[1])


def test_text_is_refused_where_the_tokenizer_is_not_the_models(published: Path, tmp_path: Path) -> None:
    """Importing goes well for those who have ids; what a text would silently become is said at its first use."""
    file, size = checkpoint(tmp_path, 300, example.text(tmp_path)), vocabulary_of(published)
    write_imported(import_checkpoint(file, "data2vec_fairseq"), tmp_path / "model")
    said = f"the tokenizer bytes has 261 tokens, the model a vocabulary of 300 ({FIX.format(261, 260)})"
    with pytest.raises(UsageError) as caught:
        open_model(tmp_path / "model").embed(["Hello"], modality="text")
    assert str(caught.value) == said
    (tmp_path / "a.txt").write_text("Hello")
    ended = run(tmp_path / "logs", "embed", "a.txt", "--model", "model", "--out", "v.npz", folder=tmp_path)
    assert (ended.code, ended.stderr.splitlines()[-1]) == (2, f"error: {said}")
    rows = [Row(f"{i}", {"text": f"text {i}"}, labels=("ab"[i % 2],)) for i in range(8)]
    with pytest.raises(UsageError) as caught:
        finetune("data2vec/glue", tmp_path / "model", rows, tmp_path / "run", machine=Machine(workers=0))
    assert str(caught.value) == said
    with pytest.raises(UsageError) as caught:  # one that was asked for is refused at once
        import_checkpoint(file, "data2vec_fairseq", tokenizer=str(published))
    fix = FIX.format(size, size - 1)
    assert str(caught.value) == f"the tokenizer {published} has {size} tokens, the model a vocabulary of 300 ({fix})"


@pytest.mark.parametrize("writer", [to_fairseq, to_hugging_face])
def test_only_text_models_take_a_tokenizer(writer: Any, tmp_path: Path) -> None:
    tables = example.data2vec(tmp_path)
    tables["loss"]["name"] = "data2vec"
    loss = build_loss(tables, build_backbone(tables))
    write_imported(
        Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict()), tmp_path / "m"
    )
    out = writer.write(open_model(tmp_path / "m"), tmp_path / ("out.pt" if writer is to_fairseq else "hf"))
    path = out[0] if writer is to_fairseq else tmp_path / "hf"
    with pytest.raises(UsageError) as caught:
        import_checkpoint(path, tokenizer="x")
    assert str(caught.value) == f"{path} holds no text model: it has no tokenizer (leave out --option tokenizer)"


def test_fine_tuning_goes_on_with_the_tokenizer_of_its_model(published: Path, tmp_path: Path) -> None:
    file = checkpoint(tmp_path, vocabulary_of(published), example.text(tmp_path))
    write_imported(import_checkpoint(file, "data2vec_fairseq", tokenizer=str(published)), tmp_path / "model")
    rows = [Row(f"{i}", {"text": f"text {i}"}, labels=("ab"[i % 2],)) for i in range(8)]
    quick = ["train.updates=1", "data.batch_size=4", "train.precision=fp32"]
    machine = Machine(device="cpu", workers=0)
    finetune("data2vec/glue", tmp_path / "model", rows, tmp_path / "run", overrides=quick, machine=machine)
    shutil.rmtree(tmp_path / "model")
    assert open_model(tmp_path / "run").frontend.tokens.ids(TEXTS[0]) == Trained(str(published)).ids(TEXTS[0])


RECIPES = [e.name for e in registry().all("recipe") if e.name.startswith("data2vec/text") and e.tags & {"cpu"}]


@pytest.mark.parametrize("name", RECIPES)
def test_the_small_text_recipes_have_the_vocabulary_of_their_tokenizer(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe) and len(RECIPES) == 4
    frontend = build_frontend(recipe.plain(), Path())
    assert frontend.vocabulary == frontend.tokens.size == 261
    assert frontend.item([Clip("a", {"text": "text"})], None).need("text").x.shape == (1, 6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.json", "[]", "{0}/encoder.json: no table of tokens and their ids (restore it from a copy)"),
        ("encoder.json", "{", "{0}/encoder.json: Expecting property name enclosed in double quotes: "
         "line 1 column 2 (char 1) (restore it from a copy)"),
        ("dict.txt", "5 1\n5 1\n", "{0}/dict.txt: line 2 is no new word with its count (give fairseq's dict.txt)"),
        ("dict.txt", "word\n", "{0}/dict.txt: line 1 is no new word with its count (give fairseq's dict.txt)"),
        ("dict.txt", "a 1\nb 1\n",
         "{0}: a, b is a token of encoder.json and a word of dict.txt (give the files that belong together)"),
        ("dict.txt", "99999 1\n",
         "{0}: dict.txt has none of the ids of encoder.json (give the files that belong together)"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(name: str, content: str, message: str, published: Path) -> None:
    (published / name).write_text(content)
    with pytest.raises(DataError) as caught:
        Trained(str(published))
    assert str(caught.value) == message.format(published)


def test_what_is_no_tokenizer_is_said(published: Path, tmp_path: Path) -> None:
    (published / "dict.txt").unlink()
    (tmp_path / "odd.json").write_text("{}")
    (tmp_path / "bare.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}}))
    for path, message in (
        (published, f"{published} holds no tokenizer (give a folder with {KNOWN})"),
        (
            tmp_path / "nothing",
            f"{tmp_path}/nothing: no such tokenizer (give a tokenizer.json, or --set frontend.tokenizer=bytes)",
        ),
        (tmp_path / "bare.json", f"{tmp_path}/bare.json has no token '<s>' (make one with `avssl data tokenizer`)"),
    ):
        with pytest.raises(UsageError) as caught:
            tokens_of(str(path))
        assert str(caught.value) == message
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/odd.json: not a tokenizer: ")):
        tokens_of(str(tmp_path / "odd.json"))
