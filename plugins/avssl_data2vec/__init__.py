"""data2vec 1 and 2.0: one objective for audio, vision and text (Baevski et al., arXiv:2202.03555, arXiv:2212.07525)."""

from __future__ import annotations

from avssl import (
    BackboneEntry,
    EvaluationEntry,
    FormatEntry,
    LayoutEntry,
    LossEntry,
    RecipeEntry,
    hookimpl,
    recipes_in,
)

_SUPPORTS = frozenset({"hide", "keep", "layers:blocks", "layers:ffn"})
_C = "avssl_data2vec.config"
_E = "avssl_data2vec.example"
_F = "avssl_data2vec.frontends"


def _backbone(name: str, cls: str, example: str, modality: str, summary: str) -> BackboneEntry:
    """An encoder: the classes of its config and frontend bear its names."""
    kind = modality.capitalize()
    return BackboneEntry(
        name=name,
        cls=f"avssl_data2vec.{cls}",
        config=f"{_C}:{cls.rpartition(':')[2].replace('Encoder', '')}Config",
        example=f"{_E}:{example}",
        modalities=frozenset({modality}),
        supports=_SUPPORTS,
        frontend=f"{_F}.{modality}:{kind}Frontend",
        frontend_config=f"{_F}.configs:{kind}FrontendConfig",
        summary=summary,
    )


@hookimpl
def avssl_backbones() -> list[BackboneEntry]:
    return [
        _backbone("data2vec_audio", "audio:AudioEncoder", "audio", "audio",
                  "Waveform encoder of data2vec 1 (wav2vec 2.0 style)"),
        _backbone("data2vec_vision", "vision:VisionEncoder", "vision", "vision",
                  "Image encoder of data2vec 1 (BEiT style)"),
        _backbone("data2vec_text", "text:TextEncoder", "text", "text",
                  "Token encoder of data2vec 1 (RoBERTa style)"),
        _backbone("data2vec2_audio", "multi:AudioEncoder2", "audio2", "audio", "Waveform encoder of data2vec 2.0"),
        _backbone("data2vec2_vision", "multi:VisionEncoder2", "vision2", "vision", "Image encoder of data2vec 2.0"),
        _backbone("data2vec2_text", "multi:TextEncoder2", "text2", "text", "Token encoder of data2vec 2.0"),
    ]  # fmt: skip


def _head(name: str, cls: str, modality: str, summary: str) -> LossEntry:
    """A loss of fine-tuning, for the encoders of one modality."""
    return LossEntry(
        name=name,
        cls=f"avssl_data2vec.{cls}",
        config=f"{_C}:{cls.rpartition(':')[2]}Config",
        example=f"{_E}:{name.removeprefix('data2vec_')}",
        supervised=True,
        backbones=frozenset({f"data2vec_{modality}", f"data2vec2_{modality}"}),
        modalities=frozenset({modality}),
        summary=summary,
    )


@hookimpl
def avssl_losses() -> list[LossEntry]:
    return [
        LossEntry(
            name="data2vec",
            example=f"{_E}:data2vec",
            cls="avssl_data2vec.loss:Data2Vec",
            config=f"{_C}:Data2VecConfig",
            requires=frozenset({"hide", "layers:blocks"}),
            average="teacher.",
            summary="Regress a slow teacher's inner layers at hidden tokens, in any modality",
        ),
        LossEntry(
            name="data2vec2",
            example=f"{_E}:data2vec2",
            cls="avssl_data2vec.loss2:Data2Vec2",
            config=f"{_C}:Data2Vec2Config",
            backbones=frozenset({"data2vec2_audio", "data2vec2_vision", "data2vec2_text"}),
            requires=frozenset({"keep"}),
            average="teacher.",
            summary="data2vec 2.0: many masks per item, one target, a convolutional decoder",
        ),
        _head("ctc", "ctc:Ctc", "audio", "Fine-tuning: speech recognition, letters by CTC"),
        _head("data2vec_audio_classify", "tagging:AudioClassify", "audio",
              "Fine-tuning: tags of sounds, pooled over the frames"),
        _head("data2vec_text_classify", "classify:TextClassify", "text",
              "Fine-tuning: sentences and pairs, RoBERTa's head; classes or a number"),
        _head("data2vec_image_classify", "classify:ImageClassify", "vision",
              "Fine-tuning: images, BEiT's head on pooled patches"),
    ]  # fmt: skip


@hookimpl
def avssl_evaluations() -> list[EvaluationEntry]:
    return [
        EvaluationEntry(
            name="speech", cls="avssl_data2vec.speech:speech", config="avssl_data2vec.speech_config:SpeechConfig",
            modalities=frozenset({"audio"}), summary="Word and character error rates of a model that writes letters",
        ),
    ]  # fmt: skip


def _format(name: str, reader: str, writer: str, summary: str) -> FormatEntry:
    package = "avssl_data2vec.formats"
    return FormatEntry(
        name=name,
        system="data2vec",
        read=f"{package}.{reader}:read",
        write=f"{package}.{writer}:write",
        detect=f"{package}.{reader}:detect",
        summary=summary,
    )


@hookimpl
def avssl_formats() -> list[FormatEntry]:
    return [
        _format("data2vec_fairseq", "fairseq", "to_fairseq",
                "fairseq .pt of data2vec 1 and 2.0, pretrained or fine-tuned"),
        _format("data2vec_vision", "vision1", "to_vision1", "checkpoint-N.pth of the data2vec_vision repository"),
        _format("data2vec_hf", "hugging_face", "to_hugging_face",
                "Hugging Face Data2VecAudio, -Text and -Vision folders"),
    ]  # fmt: skip


@hookimpl
def avssl_layouts() -> list[LayoutEntry]:
    return [
        LayoutEntry(
            name="glue",
            detect="avssl_data2vec.glue:detect",
            read="avssl_data2vec.glue:read",
            summary="GLUE: the train.tsv, dev.tsv and test.tsv of a task",
        )
    ]


@hookimpl
def avssl_recipes() -> list[RecipeEntry]:
    return recipes_in(__name__)
