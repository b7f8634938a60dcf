"""The authors' FISHER checkpoints, turned into ours."""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from .configuration_asd import FisherConfig
from .convert_eat import (
    EAT_DUE_FIELDS,
    EAT_LAYER_NAMES,
    EAT_TRAINING_FIELDS,
    check_values,
    described_config,
)
from .modeling_fisher import FisherModel
from .original_checkpoint import check_tensors, describe, filled, listed, renamed

logger = logging.getLogger(__name__)

# Field of cfg["model"] -> field of FisherConfig, besides EAT's; "image." stands for
# ["modalities"]["image"].
FISHER_FIELDS = {
    "band_width": "band_width",
    "image.patch_size": "patch_size",
    "image.max_length": "max_length",
    "image.max_freq": "max_freq",
    "image.flatten": "flatten",
}
# The one value that the architecture here has, where cfg names the field. The state dict would
# show most of the others, by tensors that are unknown or missing.
FISHER_REQUIRED_VALUES = {
    "layer_norm_first": False,
    "norm_affine": True,
    "image.type": "IMAGE",
    "image.prenet_depth": 0,
    "image.num_extra_tokens": 1,
    "image.in_chans": 1,
    "image.fixed_positions": True,
}
# Without a counterpart here. target_length is what the authors trained with; their recipe for use
# cuts there, but pads nothing. Their attention does not read the alibi switch.
FISHER_UNUSED_FIELDS = (
    "clone_batch",
    "end_of_block_targets",
    "max_band_per_sample",
    "modalities",
    "image.init_extra_token_zero",
    "image.target_length",
    "image.use_alibi_encoder",
)

# Our name -> theirs, without ".weight" and ".bias".
FISHER_NAMES = {
    "embedding.class_token": "modality_encoders.IMAGE.extra_tokens",
    "embedding.positions": "modality_encoders.IMAGE.fixed_positional_encoder.positions",
    "embedding.convolution": "modality_encoders.IMAGE.local_encoder.proj",
    "embedding.norm": "modality_encoders.IMAGE.context_encoder.norm",
}


def is_fisher(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of a FISHER.

    EAT's tensors have the same names; FISHER's cfg says how wide a sub-band is.
    """
    cfg = checkpoint["cfg"].get("model")
    named = FISHER_NAMES["embedding.class_token"] in checkpoint["model"]
    return named and isinstance(cfg, Mapping) and "band_width" in cfg


def convert_fisher(checkpoint: Mapping[str, Any], head: bool) -> PreTrainedModel:  # noqa: FBT001 as Converter.convert
    """Convert a FISHER checkpoint, {"cfg": {"model": {...}}, "model": state dict}.

    Every tensor is either used or refused. FISHER has no head, so asking for one raises ValueError.
    """
    if head:
        raise ValueError(
            "head=True, but FISHER has no head: it was only ever pre-trained. Leave head out."
        )
    state = dict(checkpoint["model"])
    check_tensors(state)
    config = fisher_config(checkpoint["cfg"])
    names = dict(FISHER_NAMES)
    for layer in range(config.num_hidden_layers):
        for ours, theirs in EAT_LAYER_NAMES.items():
            names[f"layers.{layer}.{ours}"] = f"blocks.{layer}.{theirs}"
    model = FisherModel(config)
    return filled(model, renamed(state, names, model))


def fisher_config(cfg: Mapping[str, Any]) -> FisherConfig:
    """Translate the authors' cfg. It is never filled up with defaults: theirs have changed."""
    given = _flat(cfg)
    if missing := sorted((EAT_DUE_FIELDS | FISHER_FIELDS.keys()) - given.keys()):
        raise ValueError(
            f"cfg lacks {listed(missing)} ('image.' stands for modalities.image); it has "
            f"{listed(sorted(given))}."
        )
    check_values(given, FISHER_REQUIRED_VALUES, encoder="FISHER")
    for field in ("band_width", "embed_dim"):
        repeated = given.get(f"image.{field}", given[field])
        if repeated != given[field]:
            raise ValueError(
                f"cfg says {field}={given[field]!r}, but {repeated!r} in modalities.image. Take "
                "the original file."
            )
    known = {*EAT_DUE_FIELDS, *EAT_TRAINING_FIELDS, "post_mlp_drop"}
    known |= {*FISHER_FIELDS, *FISHER_REQUIRED_VALUES, *FISHER_UNUSED_FIELDS}
    known |= {"image.band_width", "image.embed_dim"}
    if unknown := sorted(given.keys() - known):
        # The authors' own class ignores them, too.
        logger.warning("cfg has fields that no FISHER encoder reads: %s.", listed(unknown))
    fields = {ours: given[theirs] for theirs, ours in FISHER_FIELDS.items()}
    return described_config(FisherConfig, FisherModel, "a FISHER", given, fields)


def _flat(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return cfg["model"] with the fields of its one modality as "image.<field>"."""
    model = cfg.get("model")
    modalities = model.get("modalities") if isinstance(model, Mapping) else None
    image = modalities.get("image") if isinstance(modalities, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(image, Mapping):
        raise ValueError(
            f"cfg is {describe(cfg)}; FISHER's has the fields of the encoder under 'model', and "
            "those of its patches under 'modalities', 'image' in there. Take the original file."
        )
    flat = {str(field): value for field, value in model.items()}
    return flat | {f"image.{field}": value for field, value in image.items()}


__all__ = ["convert_fisher", "fisher_config", "is_fisher"]
