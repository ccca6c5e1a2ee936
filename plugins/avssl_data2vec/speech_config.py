"""Options of the recogniser's protocol; no torch here."""

from __future__ import annotations

from typing import Literal

from avssl.errors import check
from avssl.evaluation.configs import EvaluationConfig
from avssl.schema import config


@config
class SpeechConfig(EvaluationConfig):
    """Word and character error rates of a model that writes letters."""

    decoder: Literal["greedy", "beam"] = "greedy"
    beam: int = 50  # prefixes that are kept
    lm_order: int = 0  # beam: n-grams of symbols from the training transcripts; 0 = no language model
    lm_weight: float = 0.5
    symbol_score: float = 0.0  # added for each symbol, against the language model's taste for short outputs
    examples: int = 10  # transcripts that the report shows

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.beam > 0, f"beam is {self.beam}", fix="give at least 1")
        check(
            self.lm_order == 0 or self.decoder == "beam", "greedy decoding takes no language model", fix="decoder=beam"
        )
