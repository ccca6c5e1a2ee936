"""BEATs: audio pre-training with acoustic tokenizers (Chen et al., ICML 2023, arXiv:2212.09058)."""

from __future__ import annotations

from avssl.entries import BackboneEntry, FormatEntry, LossEntry, RecipeEntry, recipes_in
from avssl.hookspecs import hookimpl


@hookimpl
def avssl_backbones() -> list[BackboneEntry]:
    return [
        BackboneEntry(
            name="beats",
            summary="Patch transformer with gated relative position bias, for sound",
            cls="avssl_beats.backbone:Beats",
            config="avssl_beats.config:BeatsConfig",
            frontend="avssl_beats.frontend:BeatsFrontend",
            frontend_config="avssl_beats.config:BeatsFrontendConfig",
            modalities=frozenset({"audio"}),
            supports=frozenset({"hide", "keep", "layers:blocks", "layers:ffn"}),
            example="avssl_beats.example:backbone",
        )
    ]


@hookimpl
def avssl_losses() -> list[LossEntry]:
    def entry(name: str, cls: str, config: str, summary: str, example: str = "", supervised: bool = False) -> LossEntry:
        return LossEntry(
            name=name,
            summary=summary,
            cls=f"avssl_beats.{cls}",
            config=f"avssl_beats.config:{config}",
            backbones=frozenset({"beats"}),
            modalities=frozenset({"audio"}),
            supervised=supervised,
            example=example and f"avssl_beats.example:{example}",
        )

    return [
        entry(
            "beats_random",
            "masked:RandomLabels",
            "BeatsRandomConfig",
            "Iteration 1: predict the random-projection labels of hidden patches",
            "random_labels",
        ),
        entry(
            "beats",
            "masked:TokenizerLabels",
            "BeatsLossConfig",
            "Iteration 2 and later: predict a trained tokenizer's labels of hidden patches",
            "labels",
        ),
        entry(
            "beats_tokenizer",
            "distill:TokenizerDistillation",
            "TokenizerConfig",
            "Train the tokenizer of the next iteration: a codebook that explains a teacher",
            "tokenizer",
        ),
        entry(
            "beats_classify",
            "classify:BeatsClassify",
            "ClassifyConfig",
            "Fine-tuning with the authors' head, a linear layer on every patch",
            supervised=True,
        ),
    ]


@hookimpl
def avssl_formats() -> list[FormatEntry]:
    return [
        FormatEntry(
            name="beats",
            summary="The authors' .pt files: encoder, fine-tuned classifier, tokenizer",
            read="avssl_beats.checkpoint:read",
            write="avssl_beats.checkpoint:write",
            detect="avssl_beats.checkpoint:detect",
            system="beats",
        )
    ]


@hookimpl
def avssl_recipes() -> list[RecipeEntry]:
    return recipes_in("avssl_beats")
