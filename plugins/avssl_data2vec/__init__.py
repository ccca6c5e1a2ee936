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


@hookimpl
def avssl_backbones() -> list[BackboneEntry]:
    audio = {
        "frontend": "avssl_data2vec.frontends.audio:AudioFrontend",
        "frontend_config": "avssl_data2vec.frontends.configs:AudioFrontendConfig",
    }
    vision = {
        "frontend": "avssl_data2vec.frontends.vision:VisionFrontend",
        "frontend_config": "avssl_data2vec.frontends.configs:VisionFrontendConfig",
    }
    text = {
        "frontend": "avssl_data2vec.frontends.text:TextFrontend",
        "frontend_config": "avssl_data2vec.frontends.configs:TextFrontendConfig",
    }
    return [
        BackboneEntry(
            name="data2vec_audio",
            example=f"{_E}:audio",
            cls="avssl_data2vec.audio:AudioEncoder",
            config=f"{_C}:AudioConfig",
            modalities={"audio"},
            supports=_SUPPORTS,
            **audio,
            summary="Waveform encoder of data2vec 1 (wav2vec 2.0 style)",
        ),
        BackboneEntry(
            name="data2vec_vision",
            example=f"{_E}:vision",
            cls="avssl_data2vec.vision:VisionEncoder",
            config=f"{_C}:VisionConfig",
            modalities={"vision"},
            supports=_SUPPORTS,
            **vision,
            summary="Image encoder of data2vec 1 (BEiT style)",
        ),
        BackboneEntry(
            name="data2vec_text",
            example=f"{_E}:text",
            cls="avssl_data2vec.text:TextEncoder",
            config=f"{_C}:TextConfig",
            modalities={"text"},
            supports=_SUPPORTS,
            **text,
            summary="Token encoder of data2vec 1 (RoBERTa style)",
        ),
        BackboneEntry(
            name="data2vec2_audio",
            example=f"{_E}:audio2",
            cls="avssl_data2vec.multi:AudioEncoder2",
            config=f"{_C}:Audio2Config",
            modalities={"audio"},
            supports=_SUPPORTS,
            **audio,
            summary="Waveform encoder of data2vec 2.0",
        ),
        BackboneEntry(
            name="data2vec2_vision",
            example=f"{_E}:vision2",
            cls="avssl_data2vec.multi:VisionEncoder2",
            config=f"{_C}:Vision2Config",
            modalities={"vision"},
            supports=_SUPPORTS,
            **vision,
            summary="Image encoder of data2vec 2.0",
        ),
        BackboneEntry(
            name="data2vec2_text",
            example=f"{_E}:text2",
            cls="avssl_data2vec.multi:TextEncoder2",
            config=f"{_C}:Text2Config",
            modalities={"text"},
            supports=_SUPPORTS,
            **text,
            summary="Token encoder of data2vec 2.0",
        ),
    ]


@hookimpl
def avssl_losses() -> list[LossEntry]:
    return [
        LossEntry(
            name="data2vec",
            example=f"{_E}:data2vec",
            cls="avssl_data2vec.loss:Data2Vec",
            config=f"{_C}:Data2VecConfig",
            requires={"hide", "layers:blocks"},
            summary="Regress a slow teacher's inner layers at hidden tokens, in any modality",
        ),
        LossEntry(
            name="data2vec2",
            example=f"{_E}:data2vec2",
            cls="avssl_data2vec.loss2:Data2Vec2",
            config=f"{_C}:Data2Vec2Config",
            backbones={"data2vec2_audio", "data2vec2_vision", "data2vec2_text"},
            requires={"keep"},
            summary="data2vec 2.0: many masks per item, one target, a convolutional decoder",
        ),
        LossEntry(
            name="ctc",
            cls="avssl_data2vec.ctc:Ctc",
            config=f"{_C}:CtcConfig",
            example=f"{_E}:ctc",
            supervised=True,
            backbones={"data2vec_audio", "data2vec2_audio"},
            modalities={"audio"},
            summary="Fine-tuning: speech recognition, letters by CTC",
        ),
        LossEntry(
            name="data2vec_audio_classify",
            cls="avssl_data2vec.tagging:AudioClassify",
            supervised=True,
            example=f"{_E}:audio_classify",
            config=f"{_C}:AudioClassifyConfig",
            backbones={"data2vec_audio", "data2vec2_audio"},
            modalities={"audio"},
            summary="Fine-tuning: tags of sounds, pooled over the frames",
        ),
        LossEntry(
            name="data2vec_text_classify",
            cls="avssl_data2vec.classify:TextClassify",
            supervised=True,
            example=f"{_E}:text_classify",
            config=f"{_C}:TextClassifyConfig",
            backbones={"data2vec_text", "data2vec2_text"},
            modalities={"text"},
            summary="Fine-tuning: sentences and pairs, RoBERTa's head; classes or a number",
        ),
        LossEntry(
            name="data2vec_image_classify",
            cls="avssl_data2vec.classify:ImageClassify",
            supervised=True,
            example=f"{_E}:image_classify",
            config=f"{_C}:ImageClassifyConfig",
            backbones={"data2vec_vision", "data2vec2_vision"},
            modalities={"vision"},
            summary="Fine-tuning: images, BEiT's head on pooled patches",
        ),
    ]


@hookimpl
def avssl_evaluations() -> list[EvaluationEntry]:
    return [
        EvaluationEntry(
            name="speech", cls="avssl_data2vec.speech:speech", config="avssl_data2vec.speech_config:SpeechConfig",
            modalities={"audio"}, summary="Word and character error rates of a model that writes letters",
        ),
    ]  # fmt: skip


@hookimpl
def avssl_formats() -> list[FormatEntry]:
    package = "avssl_data2vec.formats"
    return [
        FormatEntry(
            name="data2vec_fairseq",
            system="data2vec",
            read=f"{package}.fairseq:read",
            write=f"{package}.to_fairseq:write",
            detect=f"{package}.fairseq:detect",
            summary="fairseq .pt of data2vec 1 and 2.0, and of CTC fine-tuning",
        ),
        FormatEntry(
            name="data2vec_vision",
            system="data2vec",
            read=f"{package}.vision1:read",
            write=f"{package}.to_vision1:write",
            detect=f"{package}.vision1:detect",
            summary="checkpoint-N.pth of the data2vec_vision repository",
        ),
        FormatEntry(
            name="data2vec_hf",
            system="data2vec",
            read=f"{package}.hugging_face:read",
            write=f"{package}.to_hugging_face:write",
            detect=f"{package}.hugging_face:detect",
            summary="Hugging Face Data2VecAudio, -Text and -Vision folders",
        ),
    ]


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
