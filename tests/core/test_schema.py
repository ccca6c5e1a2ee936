"""What a configuration may say is what a saved model can say again."""

from __future__ import annotations

import pytest

from avssl.schema import config


def test_a_field_whose_none_would_come_back_as_its_default_is_refused() -> None:
    with pytest.raises(TypeError) as error:

        @config
        class Sound:
            seconds: float | None = 5.0

    assert str(error.value) == "Sound.seconds: None cannot be saved; let another value, 0 say, mean it"

    @config
    class Fine:
        seconds: float | None = None
        rate: int = 16000

    assert Fine().seconds is None
