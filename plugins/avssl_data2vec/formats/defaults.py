"""The defaults of the official configuration classes, for keys that a fairseq file or a config.json leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LAYERS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"

ROOT: dict[str, Any] = {"optimization": {"max_update": 0}}
_OBJECTIVE: dict[str, Any] = {
    "loss_beta": 0, "loss_scale": None, "average_top_k_layers": 8, "layer_norm_target_layer": False,
    "instance_norm_target_layer": False, "batch_norm_target_layer": False, "instance_norm_targets": False,
    "layer_norm_targets": False, "ema_decay": 0.999, "ema_end_decay": 0.9999,
    "ema_anneal_end_step": "${optimization.max_update}",
}  # fmt: skip
_GUARD = {"min_target_var": 0.1, "min_pred_var": 0.01}
_MASKS: dict[str, Any] = {
    "mask_length": 10, "mask_selection": "static", "mask_other": 0, "no_mask_overlap": False, "mask_min_space": 1,
    "require_same_masks": True, "mask_dropout": 0.0, "mask_channel_length": 10, "mask_channel_prob": 0.0,
    "mask_channel_before": False, "mask_channel_selection": "static", "mask_channel_other": 0,
    "no_mask_channel_overlap": False, "mask_channel_min_space": 1,
}  # fmt: skip

AUDIO1: dict[str, Any] = {
    **_OBJECTIVE, **_GUARD, **_MASKS,
    "extractor_mode": "default", "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12, "activation_fn": "gelu", "layer_type": "transformer", "dropout": 0.1,
    "attention_dropout": 0.1, "activation_dropout": 0.0, "encoder_layerdrop": 0.0, "dropout_input": 0.0,
    "layer_norm_first": False, "conv_feature_layers": _LAYERS, "conv_bias": False, "feature_grad_mult": 1.0,
    "mask_prob": 0.65, "conv_pos": 128, "conv_pos_groups": 16, "pos_conv_depth": 1, "pos_enc_type": "abs",
    "group_norm_target_layer": False, "ema_transformer_only": True, "ema_layers_only": True,
}  # fmt: skip
AUDIO_TASK = {"sample_rate": 16000, "normalize": False}

TEXT1: dict[str, Any] = {
    **_OBJECTIVE, "head_layers": 1, "ema_transformer_layers_only": True,
    "transformer": {
        "activation_fn": "relu", "dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0,
        "max_source_positions": 1024, "no_token_positional_embeddings": False, "no_scale_embedding": False,
        "encoder": {"embed_dim": 512, "ffn_embed_dim": 2048, "layers": 6, "attention_heads": 8,
                    "normalize_before": False, "layerdrop": 0},
    },
}  # fmt: skip
TEXT_TASK = {
    "mask_prob": 0.15, "leave_unmasked_prob": 0.1, "random_token_prob": 0.1, "mask_multiple_length": 1,
    "mask_stdev": 0.0,
}  # fmt: skip

DECODER: dict[str, Any] = {
    "decoder_dim": 384, "decoder_groups": 16, "decoder_kernel": 5, "decoder_layers": 5, "input_dropout": 0.1,
    "add_positions_masked": False, "add_positions_all": False, "decoder_residual": True, "projection_layers": 1,
    "projection_ratio": 2.0,
}  # fmt: skip
_MODALITY: dict[str, Any] = {
    "prenet_depth": 4, "prenet_layerdrop": 0, "prenet_dropout": 0, "start_drop_path_rate": 0,
    "end_drop_path_rate": 0, "num_extra_tokens": 0, "init_extra_token_zero": True, "mask_noise_std": 0.01,
    "mask_prob_min": None, "mask_prob": 0.7, "inverse_mask": False, "mask_prob_adjust": 0, "keep_masked_pct": 0,
    "mask_length": 5, "add_masks": False, "mask_dropout": 0.0, "encoder_zero_mask": True, "mask_channel_prob": 0.0,
    "mask_channel_length": 64, "ema_local_encoder": False, "local_grad_mult": 1.0, "use_alibi_encoder": False, "alibi_scale": 1.0,
    "learned_alibi": False, "learned_alibi_scale": False, "learned_alibi_scale_per_head": False,
    "learned_alibi_scale_per_layer": False, "decoder": DECODER,
}  # fmt: skip
MULTI: dict[str, Any] = {
    **_OBJECTIVE, **_GUARD,
    "depth": 8, "start_drop_path_rate": 0, "end_drop_path_rate": 0, "num_heads": 12, "norm_eps": 1e-6,
    "norm_affine": True, "encoder_dropout": 0.1, "post_mlp_drop": 0.1, "attention_dropout": 0.1,
    "activation_dropout": 0.0, "dropout_input": 0.0, "layerdrop": 0.0, "embed_dim": 768, "mlp_ratio": 4,
    "layer_norm_first": False, "end_of_block_targets": False, "clone_batch": 1, "ema_encoder_only": True,
    "shared_decoder": None, "mae_init": False, "cls_loss": 0, "recon_loss": 0, "d2v_loss": 1,
    "modalities": {
        "audio": {
            **_MODALITY, "extractor_mode": "layer_norm", "feature_encoder_spec": _LAYERS, "conv_pos_width": 95,
            "conv_pos_groups": 16, "conv_pos_depth": 5, "conv_pos_pre_ln": False,
        },
        "image": {
            **_MODALITY, "input_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 768,
            "alibi_distance": "manhattan", "fixed_positions": True, "transformer_decoder": False,
        },
        "text": {
            **_MODALITY, "max_source_positions": 512, "dropout": 0.1, "no_scale_embedding": True,
            "layernorm_embedding": True, "no_token_positional_embeddings": False,
        },
    },
}  # fmt: skip

FINE_TUNED_AUDIO: dict[str, Any] = {  # letters and tags
    **_MASKS, "mask_prob": 0.5, "apply_mask": False, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "dropout_input": 0.0, "layerdrop": 0.0, "feature_grad_mult": 0.0,
    "final_dropout": 0.0, "prediction_mode": "lin_softmax",
}  # fmt: skip
FINE_TUNED_IMAGE = {"prediction_mode": "MEAN_POOLING", "label_smoothing": 0.1}
FINE_TUNED_TEXT = {"pooler_dropout": 0.0, "pooler_activation_fn": "tanh", "spectral_norm_classification_head": False}

MODELS: dict[str, Mapping[str, Any]] = {  # by the name of the official class
    "data2vec_audio": AUDIO1,
    "data2vec_text": {**TEXT1, **FINE_TUNED_TEXT},  # whose classification heads have no options of their own
    "data2vec_multi": MULTI,
    "wav2vec_ctc": FINE_TUNED_AUDIO,
    "audio_classification": FINE_TUNED_AUDIO,
    "mae_image_classification": FINE_TUNED_IMAGE,
    "data2vec_text_classification": FINE_TUNED_TEXT,
}

HUGGING_FACE: dict[str, dict[str, Any]] = {  # by model_type
    "data2vec-audio": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "hidden_dropout": 0.1, "activation_dropout": 0.1, "attention_dropout": 0.1,
        "feat_proj_dropout": 0.0, "final_dropout": 0.1, "layerdrop": 0.1, "layer_norm_eps": 1e-5,
        "conv_dim": [512] * 7, "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_bias": False, "num_conv_pos_embedding_groups": 16, "conv_pos_kernel_size": 19,
        "num_conv_pos_embeddings": 5, "pad_token_id": 0, "apply_spec_augment": True, "mask_time_prob": 0.05,
        "mask_time_length": 10, "mask_time_min_masks": 2, "mask_feature_prob": 0.0, "mask_feature_length": 10,
        "mask_feature_min_masks": 0,
    },
    "data2vec-text": {
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
        "pad_token_id": 1, "classifier_dropout": None,
    },
    "data2vec-vision": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
        "use_absolute_position_embeddings": False, "use_relative_position_bias": False,
        "use_shared_relative_position_bias": False, "layer_scale_init_value": 0.1, "drop_path_rate": 0.1,
    },
}  # fmt: skip


def full(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, over the defaults, in nested tables too."""
    out = {**defaults, **given}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(out[key], Mapping):
            out[key] = full(out[key], value)
    return out
