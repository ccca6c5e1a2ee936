"""Label codecs."""

from __future__ import annotations

import numpy as np
import pytest

from avssl.data.clip import Row
from avssl.data.targets import Codec, fit_codec
from avssl.errors import DataError


def row(*labels: str, id: str = "clip") -> Row:
    return Row(id=id, parts={}, labels=labels)


def test_classes_come_in_natural_order() -> None:
    codec = fit_codec([row("class 10"), row("class 2"), row("class 1")], "index")
    assert codec is not None and codec.classes == ("class 1", "class 2", "class 10")
    assert codec.encode(row("class 10")) == 2
    exponents = fit_codec([row("²"), row("10"), row("2")], "index")  # a digit to Unicode, not to int()
    assert exponents is not None and exponents.classes == ("2", "10", "²")


def test_multi_hot_marks_every_label() -> None:
    codec = fit_codec([row("a", "b"), row("c")], "multi_hot")
    assert codec is not None and codec.encode(row("c", "a")).tolist() == [1, 0, 1]


def test_characters_begin_with_the_blank() -> None:
    codec = fit_codec([row("ab"), row("ba c")], "characters")
    assert codec is not None and codec.classes == ("<blank>", " ", "a", "b", "c")
    assert codec.encode(row("cab")).tolist() == [4, 2, 3]


def test_a_label_outside_the_set_is_named() -> None:
    codec = Codec("index", ("dog", "rain"))
    with pytest.raises(DataError) as caught:
        codec.encode(row("dig", id="clip 7"))
    assert str(caught.value) == "clip 7: label 'dig' is not among the 2 known ones (did you mean 'dog'?)"


def test_wrong_targets_are_named() -> None:
    with pytest.raises(DataError, match="clip: 2 labels where one class is expected"):
        Codec("index", ("a", "b")).encode(row("a", "b"))
    for text in ("x", "nan", "inf"):
        with pytest.raises(DataError, match=f"label '{text}' is no number"):
            Codec("float").encode(row(text))
    with pytest.raises(DataError, match="no row has a label"):
        fit_codec([row()], "index")
    with pytest.raises(DataError, match="clip: no label"):
        Codec("index", ("a",)).encode(row())


def test_a_codec_survives_its_state() -> None:
    codec = Codec("multi_hot", ("a", "b"))
    assert Codec.load(codec.state()) == codec
    assert np.array_equal(Codec.load(codec.state()).encode(row("b")), [0, 1])


def test_one_class_each_is_kept_with_the_codec() -> None:
    mixed = Codec("multi_hot", ("a", "b"), exclusive=True)
    assert Codec.load(mixed.state()) == mixed and Codec.load(mixed.state()).exclusive
    assert Codec("index", ("a",)).exclusive and not Codec("multi_hot", ("a",)).exclusive
    older = {"kind": "multi_hot", "classes": ["a", "b"]}
    assert not Codec.load(older).exclusive and Codec.load(older, exclusive=True).exclusive
    several = Codec("multi_hot", ("a", "b")).state()
    assert not Codec.load(several, exclusive=True).exclusive, "what is written is not overruled"
