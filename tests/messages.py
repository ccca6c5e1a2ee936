"""Errors compared word for word: the sentence and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def says(error: type[Exception], text: str) -> Iterator[None]:
    """The block raises exactly this error (no subclass of it) with exactly this text."""
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error
    assert str(caught.value) == text
