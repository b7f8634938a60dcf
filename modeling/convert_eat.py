"""The authors' EAT checkpoints, of fairseq or of their Hugging Face port, turned into ours."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from .configuration_asd import EatConfig, FisherConfig
from .modeling_eat import EatForAudioClassification, EatModel
from .original_checkpoint import check_tensors, filled, listed, renamed

logger = logging.getLogger(__name__)

Config = TypeVar("Config", EatConfig, FisherConfig)

# Field of the port's config.json -> its counterpart in the cfg of fairseq's `data2vec_multi`.
EAT_PORT_FIELDS = {
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "norm_eps": "norm_eps",
    "layer_norm_first": "layer_norm_first",
    "drop_rate": "encoder_dropout",
    "attn_drop_rate": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "post_mlp_drop": "post_mlp_drop",
}
# What has no counterpart there, and the one value that the architecture here has.
EAT_PORT_REQUIRED_VALUES = {
    "stride": 16,
    "patch_size": 16,
    "in_chans": 1,
    "mel_bins": 128,
    "qkv_bias": True,
    "norm_affine": True,
    "fixed_positions": True,
}
# Field of the fairseq cfg -> field of EatConfig.
EAT_FIELDS = {
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
EAT_DUE_FIELDS = {*EAT_FIELDS, "mlp_ratio", "norm_eps", "layer_norm_first"}
# The same, for what acts in training only: a cfg without the field means 0. Stochastic depth
# ("drop_path") has no counterpart: the rates are of one training run, and change no output.
EAT_TRAINING_FIELDS = {
    "encoder_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "input_dropout",
    "layerdrop": "layerdrop",
}
# The one value that the architecture here has; a cfg may leave out all but the first.
EAT_REQUIRED_VALUES = {"layer_norm_first": False, "norm_affine": True}
EAT_MODALITY_REQUIRED_VALUES = {
    "patch_size": 16,
    "in_chans": 1,
    "num_extra_tokens": 1,
    "prenet_depth": 0,
    "fixed_positions": True,
    "use_alibi_encoder": False,
}
EAT_HEAD_REQUIRED_VALUES = {"use_fc_norm": True, "prediction_mode": "CLS_TOKEN"}

# Our name -> theirs, without ".weight" and ".bias"; the first three follow EAT_MODALITY in fairseq.
EAT_NAMES = {
    "embedding.convolution": "local_encoder.proj",
    "embedding.class_token": "extra_tokens",
    "embedding.positions": "fixed_positional_encoder.positions",
}
EAT_MODALITY = "modality_encoders.IMAGE."  # the spectrogram is their image
EAT_LAYER_NAMES = {
    "attention.qkv": "attn.qkv",
    "attention.out_proj": "attn.proj",
    "attention_norm": "norm1",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "output_norm": "norm2",
}
EAT_HEAD_NAMES = {"head_norm": "fc_norm", "head": "head"}

# Pre-training alone needs them: the averaged teacher, a dict of its own, and the decoder.
EAT_TEACHER = "_ema"
EAT_DECODER = f"{EAT_MODALITY}decoder."


def is_eat(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of an EAT, in any of the three layouts.

    FISHER's tensors have the same names; its cfg says how wide a sub-band is.
    """
    if _is_port(checkpoint["cfg"]):
        return True
    model = _model_cfg(checkpoint["cfg"])
    return "band_width" not in {*model, *_image_modality(model)} and any(
        f"{prefix}{EAT_MODALITY}extra_tokens" in checkpoint["model"] for prefix in ("", "model.")
    )


def convert_eat(checkpoint: Mapping[str, Any], head: bool) -> PreTrainedModel:  # noqa: FBT001 as Converter.convert
    """Convert an EAT checkpoint, pre-trained or fine-tuned, from fairseq or the port.

    Of a pre-trained one the student is used, as the authors do, not the teacher that averages it.
    Every tensor of it is either used or refused, but for the decoder of pre-training. Without
    `head`, the head of a fine-tuned checkpoint is left out. The files hold no label names.
    """
    state = {key: value for key, value in checkpoint["model"].items() if key != EAT_TEACHER}
    check_tensors(state)
    config = eat_config(checkpoint["cfg"])
    port = _is_port(checkpoint["cfg"])
    names, head_names = _original_names(state, config.num_hidden_layers, port=port)
    config.max_length = _table_length(state, names["embedding.positions"], config)
    head_keys = {f"{name}.{end}" for name in head_names.values() for end in ("weight", "bias")}
    left_out = EAT_DECODER if head else (EAT_DECODER, *head_keys)
    if head and (missing := sorted(head_keys - state.keys())):
        if len(missing) < len(head_keys):
            raise ValueError(f"The head lacks {listed(missing)}. Take the original file.")
        raise ValueError(
            "head=True, but this checkpoint is pre-trained only: it has no head. Leave head out, "
            "or take a fine-tuned one, say EAT-base_epoch30_finetune_AS2M."
        )
    state = {key: value for key, value in state.items() if not key.startswith(left_out)}
    model: PreTrainedModel
    if head:
        config.num_labels = state[f"{head_names['head']}.bias"].numel()
        config.problem_type = "multi_label_classification"
        names = {f"eat.{ours}": theirs for ours, theirs in names.items()} | head_names
        model = EatForAudioClassification(config)
    else:
        model = EatModel(config)
    return filled(model, renamed(state, names, model))


def eat_config(cfg: Mapping[str, Any]) -> EatConfig:
    """Translate the authors' cfg, or their port's config. It is never filled up with defaults."""
    fields: dict[str, Any] = {}
    if _is_port(cfg):
        check_values(cfg, EAT_PORT_REQUIRED_VALUES)
        model = {theirs: cfg[name] for name, theirs in EAT_PORT_FIELDS.items() if name in cfg}
        fields["head_norm_eps"] = 1e-5  # the port's own; fairseq has 1e-6
    else:
        outer = cfg.get("model")
        model = dict(_model_cfg(cfg))
        if isinstance(outer, Mapping) and "pretrained_model_args" in outer:
            check_values(outer, EAT_HEAD_REQUIRED_VALUES)
            # What acted in fine-tuning, not in the training before.
            acted = {*EAT_TRAINING_FIELDS, "post_mlp_drop"} & outer.keys()
            model |= {name: outer[name] for name in acted}
        check_values(_image_modality(model), EAT_MODALITY_REQUIRED_VALUES)
    if missing := sorted(EAT_DUE_FIELDS - model.keys()):
        raise ValueError(f"cfg lacks {listed(missing)}; it has {listed(sorted(map(str, model)))}.")
    check_values(model, EAT_REQUIRED_VALUES)
    return described_config(EatConfig, EatModel, "an EAT", model, fields)


def described_config(
    config_class: type[Config],
    model_class: Callable[[Config], PreTrainedModel],
    encoder: str,
    model: Mapping[str, Any],
    fields: dict[str, Any],
) -> Config:
    """Return the configuration of an EAT or a FISHER: their authors describe both alike.

    Args:
        config_class: Of the encoder.
        model_class: The encoder.
        encoder: Its name with the article, for the error.
        model: The authors' cfg of the encoder, with all of EAT_DUE_FIELDS.
        fields: What this encoder alone has.

    Raises:
        ValueError: No encoder can be made of it.
    """
    dropped, hidden = (model.get(name, 0.0) for name in ("post_mlp_drop", "encoder_dropout"))
    if dropped != hidden:
        logger.warning(
            "post_mlp_drop=%s is not kept: hidden_dropout=%s acts there, too.", dropped, hidden
        )
    fields |= {ours: model[theirs] for theirs, ours in EAT_FIELDS.items()}
    try:
        for theirs, ours in EAT_TRAINING_FIELDS.items():
            fields[ours] = float(model.get(theirs, 0.0))
        fields["layer_norm_eps"] = float(model["norm_eps"])
        fields["intermediate_size"] = int(model["embed_dim"] * model["mlp_ratio"])
        if fields["num_hidden_layers"] < 1:
            raise ValueError("depth is at least 1.")
        config = config_class(**fields)
        with torch.device("meta"):
            model_class(config)  # what no layer can be made of
    except (RuntimeError, StrictDataclassError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"cfg does not describe {encoder} encoder. {error}") from error
    return config


def check_values(
    cfg: Mapping[str, Any], required: Mapping[str, Any], *, encoder: str = "EAT"
) -> None:
    """Raise ValueError if a cfg gives a field another value than the encoder's one."""
    for field, value in required.items():
        if cfg.get(field, value) != value:
            raise ValueError(
                f"cfg says {field}={cfg[field]!r}; only {field}={value!r}, as in every released "
                f"{encoder}, is supported."
            )


def _is_port(cfg: Mapping[str, Any]) -> bool:
    """Return whether a cfg is the config.json of the authors' Hugging Face port."""
    return bool(cfg.get("model_type") == "eat")


def _model_cfg(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the encoder's part of a fairseq cfg; empty if there is none."""
    model = cfg.get("model")
    if isinstance(model, Mapping) and "pretrained_model_args" in model:
        inner = model["pretrained_model_args"]
        model = inner.get("model") if isinstance(inner, Mapping) else None
    return model if isinstance(model, Mapping) else {}


def _image_modality(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an encoder's cfg says of spectrograms; empty if nothing."""
    modalities = model.get("modalities")
    image = modalities.get("image") if isinstance(modalities, Mapping) else None
    return image if isinstance(image, Mapping) else {}


def _original_names(
    state: Mapping[str, Any], depth: int, *, port: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Return our name -> theirs in the layout at hand, of the encoder and of the head."""
    prefix = "model." if any(key.startswith("model.") for key in state) else ""  # not pre-training
    own = prefix if port else prefix + EAT_MODALITY
    names = {ours: own + theirs for ours, theirs in EAT_NAMES.items()}
    names["embedding.norm"] = own + ("pre_norm" if port else "context_encoder.norm")
    for layer in range(depth):
        for ours, theirs in EAT_LAYER_NAMES.items():
            names[f"layers.{layer}.{ours}"] = f"{prefix}blocks.{layer}.{theirs}"
    head_names = {ours: f"model.{name}" if port else name for ours, name in EAT_HEAD_NAMES.items()}
    return names, head_names


def _table_length(state: Mapping[str, Tensor], name: str, config: EatConfig) -> int:
    """Return the time patches of the stored position table: its size varied, no cfg says it."""
    table = state.get(name)
    band = config.num_mel_bins // config.patch_size
    if table is None:
        raise ValueError(f"The state dict lacks {name!r}. Take the original file.")
    if table.ndim != 3 or not table.shape[1] or table.shape[1] % band:
        raise ValueError(
            f"{name} has the shape {tuple(table.shape)}; (1, time * {band}, "
            f"{config.hidden_size}) was due. Take the original file."
        )
    return table.shape[1] // band


__all__ = ["check_values", "convert_eat", "described_config", "eat_config", "is_eat"]
