"""The tensors' names in the published files."""

from __future__ import annotations

from avssl_data2vec.formats.names import Names, Rule


def _three(template: str) -> tuple[str, ...]:
    return tuple(template.replace("@", x) for x in "qkv")


# -- fairseq, data2vec 1 ---------------------------------------------------------------------------------------------
_BLOCK = (
    Rule("layers.{i}.attn.qkv.{w}", _three("layers.{i}.self_attn.@_proj.{w}")),
    Rule("layers.{i}.attn.proj.{w}", "layers.{i}.self_attn.out_proj.{w}"),
    Rule("layers.{i}.norm1.{w}", "layers.{i}.self_attn_layer_norm.{w}"),
    Rule("layers.{i}.fc1.{w}", "layers.{i}.fc1.{w}"),
    Rule("layers.{i}.fc2.{w}", "layers.{i}.fc2.{w}"),
    Rule("layers.{i}.norm2.{w}", "layers.{i}.final_layer_norm.{w}"),
)
AUDIO_ENCODER = Names((  # below `encoder.`, and the teacher
    Rule("positions.convs.{i}.{w}", "pos_conv.{i}.0.{w}"),
    Rule("positions.g", "pos_conv.0.weight_g"),
    Rule("positions.v", "pos_conv.0.weight_v"),
    Rule("positions.bias", "pos_conv.0.bias"),
    Rule("norm.{w}", "layer_norm.{w}"),
    *_BLOCK,
))  # fmt: skip


def _extractor(mode: str, theirs: str) -> tuple[Rule, ...]:
    norm = (
        Rule("extractor.norms.{i}.{w}", f"{theirs}.conv_layers.{{i}}.2.1.{{w}}")
        if mode == "layer_norm"
        else Rule("extractor.norms.0.{w}", f"{theirs}.conv_layers.0.2.{{w}}")
    )
    return Rule("extractor.convs.{i}.{w}", f"{theirs}.conv_layers.{{i}}.0.{{w}}"), norm


def audio_local(mode: str) -> Names:
    """What comes before the encoder; mode: of the extractor."""
    return Names(
        (
            Rule("mask_token", "mask_emb"),
            *_extractor(mode, "feature_extractor"),
            Rule("feature_norm.{w}", "layer_norm.{w}"),
            Rule("project.{w}", "post_extract_proj.{w}"),
        )
    )


TEXT_ENCODER = Names((  # below `encoder.sentence_encoder.`, and the teacher
    Rule("embed.tokens.weight", "embed_tokens.weight"),
    Rule("embed.positions.weight", "embed_positions.weight"),
    Rule("embed.norm.{w}", "layernorm_embedding.{w}"),
    Rule("norm.{w}", "layer_norm.{w}"),
    *_BLOCK,
))  # fmt: skip

SENTENCE = Names((Rule("dense.{w}", "dense.{w}"), Rule("linear.{w}", "out_proj.{w}")))  # below a head's name

# -- data2vec_vision -------------------------------------------------------------------------------------------------
VISION = Names((
    Rule("class_token", "cls_token"),
    Rule("mask_token", "mask_token"),
    Rule("absolute", "pos_embed"),
    Rule("patch.{w}", "patch_embed.proj.{w}"),
    Rule("relative.table", "rel_pos_bias.relative_position_bias_table"),
    Rule("layers.{i}.relative.table", "blocks.{i}.attn.relative_position_bias_table"),
    Rule("layers.{i}.gamma1", "blocks.{i}.gamma_1"),
    Rule("layers.{i}.gamma2", "blocks.{i}.gamma_2"),
    Rule("layers.{i}.norm1.{w}", "blocks.{i}.norm1.{w}"),
    Rule("layers.{i}.norm2.{w}", "blocks.{i}.norm2.{w}"),
    Rule("layers.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.weight"),
    Rule("layers.{i}.attn.q_bias", "blocks.{i}.attn.q_bias"),
    Rule("layers.{i}.attn.v_bias", "blocks.{i}.attn.v_bias"),
    Rule("layers.{i}.attn.proj.{w}", "blocks.{i}.attn.proj.{w}"),
    Rule("layers.{i}.fc1.{w}", "blocks.{i}.mlp.fc1.{w}"),
    Rule("layers.{i}.fc2.{w}", "blocks.{i}.mlp.fc2.{w}"),
    Rule("norm.{w}", "norm.{w}"),
))  # fmt: skip

# -- Hugging Face ----------------------------------------------------------------------------------------------------
HF_AUDIO = Names((
    Rule("mask_token", "masked_spec_embed"),
    Rule("extractor.convs.{i}.{w}", "feature_extractor.conv_layers.{i}.conv.{w}"),
    Rule("extractor.norms.{i}.{w}", "feature_extractor.conv_layers.{i}.layer_norm.{w}"),
    Rule("feature_norm.{w}", "feature_projection.layer_norm.{w}"),
    Rule("project.{w}", "feature_projection.projection.{w}"),
    Rule("positions.convs.{i}.{w}", "encoder.pos_conv_embed.layers.{i}.conv.{w}"),
    Rule("norm.{w}", "encoder.layer_norm.{w}"),
    Rule("layers.{i}.attn.qkv.{w}", _three("encoder.layers.{i}.attention.@_proj.{w}")),
    Rule("layers.{i}.attn.proj.{w}", "encoder.layers.{i}.attention.out_proj.{w}"),
    Rule("layers.{i}.norm1.{w}", "encoder.layers.{i}.layer_norm.{w}"),
    Rule("layers.{i}.fc1.{w}", "encoder.layers.{i}.feed_forward.intermediate_dense.{w}"),
    Rule("layers.{i}.fc2.{w}", "encoder.layers.{i}.feed_forward.output_dense.{w}"),
    Rule("layers.{i}.norm2.{w}", "encoder.layers.{i}.final_layer_norm.{w}"),
))  # fmt: skip
_BERT = "encoder.layer.{i}."
HF_TEXT = Names((
    Rule("embed.tokens.weight", "embeddings.word_embeddings.weight"),
    Rule("embed.positions.weight", "embeddings.position_embeddings.weight"),
    Rule("embed.norm.{w}", "embeddings.LayerNorm.{w}"),
    Rule("layers.{i}.attn.qkv.{w}", tuple(f"{_BERT}attention.self.{x}.{{w}}" for x in ("query", "key", "value"))),
    Rule("layers.{i}.attn.proj.{w}", _BERT + "attention.output.dense.{w}"),
    Rule("layers.{i}.norm1.{w}", _BERT + "attention.output.LayerNorm.{w}"),
    Rule("layers.{i}.fc1.{w}", _BERT + "intermediate.dense.{w}"),
    Rule("layers.{i}.fc2.{w}", _BERT + "output.dense.{w}"),
    Rule("layers.{i}.norm2.{w}", _BERT + "output.LayerNorm.{w}"),
))  # fmt: skip
HF_SENTENCE = Names((Rule("dense.{w}", "classifier.dense.{w}"), Rule("linear.{w}", "classifier.out_proj.{w}")))
HF_VISION = Names((
    Rule("class_token", "embeddings.cls_token"),
    Rule("mask_token", "embeddings.mask_token"),
    Rule("absolute", "embeddings.position_embeddings"),
    Rule("patch.{w}", "embeddings.patch_embeddings.projection.{w}"),
    Rule("relative.table", "encoder.relative_position_bias.relative_position_bias_table"),
    Rule("layers.{i}.relative.table",
         _BERT + "attention.attention.relative_position_bias.relative_position_bias_table"),
    Rule("layers.{i}.gamma1", _BERT + "lambda_1"),
    Rule("layers.{i}.gamma2", _BERT + "lambda_2"),
    Rule("layers.{i}.norm1.{w}", _BERT + "layernorm_before.{w}"),
    Rule("layers.{i}.norm2.{w}", _BERT + "layernorm_after.{w}"),
    Rule("layers.{i}.attn.qkv.weight",
         tuple(f"{_BERT}attention.attention.{x}.weight" for x in ("query", "key", "value"))),
    Rule("layers.{i}.attn.q_bias", _BERT + "attention.attention.query.bias"),
    Rule("layers.{i}.attn.v_bias", _BERT + "attention.attention.value.bias"),
    Rule("layers.{i}.attn.proj.{w}", _BERT + "attention.output.dense.{w}"),
    Rule("layers.{i}.fc1.{w}", _BERT + "intermediate.dense.{w}"),
    Rule("layers.{i}.fc2.{w}", _BERT + "output.dense.{w}"),
    Rule("norm.{w}", "layernorm.{w}"),
))  # fmt: skip

# -- data2vec 2.0: names below `modality_encoders.X.`, with the shared blocks beside them ---
_BLOCK2 = tuple(
    Rule(f"{ours}.{{i}}.{a}", f"{theirs}.{{i}}.{b}")
    for ours, theirs in (("prenet", "context_encoder.blocks"), ("layers", "shared.blocks"))
    for a, b in (
        ("norm1.{w}", "norm1.{w}"),
        ("norm2.{w}", "norm2.{w}"),
        ("attn.qkv.{w}", "attn.qkv.{w}"),
        ("attn.proj.{w}", "attn.proj.{w}"),
        ("fc1.{w}", "mlp.fc1.{w}"),
        ("fc2.{w}", "mlp.fc2.{w}"),
    )
)
_COMMON2 = (
    Rule("alibi.scale", "alibi_scale"),
    Rule("extra_tokens", "extra_tokens"),
    Rule("context_norm.{w}", "context_encoder.norm.{w}"),
    Rule("norm.{w}", "shared.norm.{w}"),
    *_BLOCK2,
)


def audio2(mode: str, positions_depth: int, positions_norm: bool) -> Names:
    """Waveform encoder; the positional convolutions count from 1 because a transposition has number 0."""
    below = "relative_positional_encoder" + (".1" if positions_norm else "")
    return Names(
        (
            *_extractor(mode, "local_encoder"),
            Rule("feature_norm.{w}", "project_features.1.{w}"),
            Rule("project.{w}", "project_features.2.{w}"),
            *(Rule(f"positions.convs.{n}.{{w}}", f"{below}.{n + 1}.0.{{w}}") for n in range(positions_depth)),
            Rule("positions_norm.{w}", "relative_positional_encoder.0.{w}"),
            *_COMMON2,
        )
    )


def vision2(projected: bool) -> Names:
    """Image encoder; projected: a Linear follows the patch embedding."""
    return Names(
        (
            Rule("patch.{w}", "local_encoder.0.proj.{w}" if projected else "local_encoder.proj.{w}"),
            Rule("project.{w}", "local_encoder.1.{w}"),
            Rule("sincos", "fixed_positional_encoder.positions"),
            *_COMMON2,
        )
    )


TEXT2 = Names(
    (
        Rule("embed.tokens.weight", "local_encoder.embed_tokens.weight"),
        Rule("embed.positions.weight", "local_encoder.embed_positions.weight"),
        Rule("embed.norm.{w}", "local_encoder.layernorm_embedding.{w}"),
        *_COMMON2,
    )
)


def decoder2(projection_layers: int) -> Names:
    """Decoder; a single projection has no number in the official files."""
    theirs = "decoder.proj.{w}" if projection_layers == 1 else "decoder.proj.{i}.{w}"
    return Names(
        (
            Rule("convs.{i}.{w}", "decoder.blocks.{i}.0.{w}"),
            Rule("project.0.{w}" if projection_layers == 1 else "project.{i}.{w}", theirs),
        )
    )
