"""The authors' BEATs checkpoints, pre-trained or fine-tuned, turned into ours."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from .configuration_asd import BeatsConfig
from .modeling_beats import BeatsForAudioClassification, BeatsModel
from .original_checkpoint import check_tensors, filled, labels_of, listed, renamed

logger = logging.getLogger(__name__)

# Field of the authors' BEATs cfg -> field of BeatsConfig.
BEATS_FIELDS = {
    "encoder_embed_dim": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_embed_dim": "intermediate_size",
    "input_patch_size": "patch_size",
    "embed_dim": "patch_embedding_size",
    "conv_bias": "conv_bias",
    "conv_pos": "conv_position_kernel",
    "conv_pos_groups": "conv_position_groups",
    "num_buckets": "num_buckets",
    "max_distance": "max_distance",
    "gru_rel_pos": "gated_position_bias",
    "deep_norm": "deep_norm",
}
# The same, for what acts in training only: a cfg without the field means 0.
BEATS_TRAINING_FIELDS = {
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "input_dropout",
    "encoder_layerdrop": "layerdrop",
}
# The one value that the architecture here has.
BEATS_REQUIRED_VALUES = {
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "relative_position_embedding": True,
}
# Without a counterpart here. The gradient decay changed the authors' training, not what comes out;
# the predictor's fields are read off its weights.
BEATS_UNUSED_FIELDS = (
    "finetuned_model",
    "layer_wise_gradient_decay_ratio",
    "predictor_class",
    "predictor_dropout",
)

# Our name -> theirs, without ".weight" and ".bias".
BEATS_NAMES = {
    "patch_embedding.convolution": "patch_embedding",
    "patch_embedding.norm": "layer_norm",
    "patch_embedding.projection": "post_extract_proj",
    "position.magnitude": "encoder.pos_conv.0.weight_g",
    "position.direction": "encoder.pos_conv.0.weight_v",
    "position": "encoder.pos_conv.0",
    "norm": "encoder.layer_norm",
    "relative_bias": "encoder.layers.0.self_attn.relative_attention_bias",
}
BEATS_LAYER_NAMES = {
    "attention.gate": "self_attn.grep_linear",
    "attention.gate_scale": "self_attn.grep_a",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.out_proj": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "fc1": "fc1",
    "fc2": "fc2",
    "output_norm": "final_layer_norm",
}


def is_beats(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of a BEATs, by a tensor that no other encoder has."""
    return "encoder.pos_conv.0.weight_g" in checkpoint["model"]


def convert_beats(checkpoint: Mapping[str, Any], head: bool) -> PreTrainedModel:  # noqa: FBT001 as Converter.convert
    """Convert a BEATs checkpoint, pre-trained or fine-tuned.

    Every tensor is either used or refused; the 12 stored copies of the relative position bias must
    be equal, and become one. Without `head`, the predictor of a fine-tuned checkpoint is left out.
    """
    state = dict(checkpoint["model"])
    if tokenizer := [key for key in map(str, state) if key.startswith("quantize")]:
        raise ValueError(
            f"This is a BEATs tokenizer: it has {listed(tokenizer)}. It turns sound into training "
            "targets; the encoder is in a file named like BEATs_iter3.pt."
        )
    check_tensors(state)
    config = beats_config(checkpoint["cfg"])
    predictor = {key: state.pop(key) for key in list(state) if key.startswith("predictor.")}
    if head:
        if not predictor:
            raise ValueError(
                "head=True, but this checkpoint is pre-trained only: it has no predictor. Leave "
                "head out, or take a file named like BEATs_iter3_plus_AS2M_finetuned_on_AS2M.pt."
            )
        config.id2label = labels_of(checkpoint.get("label_dict"), predictor)
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = "multi_label_classification"
    encoder = _beats_state(state, config)
    if not head:
        return filled(BeatsModel(config), encoder)
    renamed = {f"beats.{name}": tensor for name, tensor in encoder.items()}
    return filled(BeatsForAudioClassification(config), renamed | predictor)


def beats_config(cfg: Mapping[str, Any]) -> BeatsConfig:
    """Translate the authors' cfg. It is never filled up with defaults: theirs fit no checkpoint."""
    if missing := sorted((BEATS_FIELDS.keys() | BEATS_REQUIRED_VALUES.keys()) - cfg.keys()):
        raise ValueError(f"cfg lacks {listed(missing)}; it has {listed(sorted(map(str, cfg)))}.")
    for field, value in BEATS_REQUIRED_VALUES.items():
        if cfg[field] != value:
            raise ValueError(
                f"cfg says {field}={cfg[field]!r}; only {field}={value!r}, as in every released "
                "BEATs, is supported."
            )
    if cfg.get("predictor_dropout"):
        logger.warning("predictor_dropout=%s is not kept.", cfg["predictor_dropout"])
    known = {*BEATS_FIELDS, *BEATS_TRAINING_FIELDS, *BEATS_REQUIRED_VALUES, *BEATS_UNUSED_FIELDS}
    if unknown := sorted(map(str, cfg.keys() - known)):
        # The authors' own class ignores them, too.
        logger.warning("cfg has fields that no BEATs encoder reads: %s.", listed(unknown))
    fields: dict[str, Any] = {ours: cfg[theirs] for theirs, ours in BEATS_FIELDS.items()}
    try:
        for theirs, ours in BEATS_TRAINING_FIELDS.items():
            fields[ours] = float(cfg.get(theirs, 0.0))
        if min(fields["num_hidden_layers"], fields["patch_size"]) < 1:
            raise ValueError("encoder_layers and input_patch_size are at least 1.")
        config = BeatsConfig(**fields)
        with torch.device("meta"):
            BeatsModel(config)  # what no layer can be made of
    except (RuntimeError, StrictDataclassError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"cfg does not describe a BEATs encoder. {error}") from error
    return config


def _beats_state(state: dict[str, Tensor], config: BeatsConfig) -> dict[str, Tensor]:
    """Rename the encoder's tensors; `state` may hold nothing else."""
    state = dict(state)
    first = f"{BEATS_NAMES['relative_bias']}.weight"
    for layer in range(1, config.num_hidden_layers):
        copy = state.pop(first.replace(".0.", f".{layer}.", 1), None)
        if copy is not None and first in state and not torch.equal(copy, state[first]):
            raise ValueError(
                f"The relative position bias of layer {layer} differs from that of layer 0, but "
                "BEATs shares one among all layers. Take the original file."
            )
    names = dict(BEATS_NAMES)
    for layer in range(config.num_hidden_layers):
        for ours, theirs in BEATS_LAYER_NAMES.items():
            names[f"layers.{layer}.{ours}"] = f"encoder.layers.{layer}.{theirs}"
        scale = names[f"layers.{layer}.attention.gate_scale"]
        if scale in state and state[scale].ndim == 4:
            state[scale] = state[scale][0]  # stored with a batch axis
    with torch.device("meta"):
        due = BeatsModel(config)
    return renamed(state, names, due)


__all__ = ["beats_config", "convert_beats", "is_beats"]
