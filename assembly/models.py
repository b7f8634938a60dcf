"""The model that a recipe describes, and the adapters that LoRA puts into it."""

import copy
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from modeling import (
    HEADS,
    LORA_MODULES_TO_SAVE,
    POOLINGS,
    AsdConfig,
    AsdForProxyClassification,
    lora_target_modules,
)
from nearfar.proxy_labels import ProxyLabels
from nearfar.training_arguments import TrainArguments

if TYPE_CHECKING:
    from peft import PeftModel  # of the extra "train"


def asd_config(
    args: TrainArguments,
    encoder: Any,  # noqa: ANN401 - one of ENCODERS
    labels: ProxyLabels,
) -> AsdConfig:
    """Return the model's configuration."""
    shared = {f.name for f in dataclasses.fields(args)} & {
        f.name for f in dataclasses.fields(AsdConfig)
    }
    values = {name: getattr(args, name) for name in sorted(shared - {"encoder_config"})}
    if args.subcenters_without_attributes is not None:
        values["head_options"] = subcenter_options(args, labels)
    return AsdConfig(
        encoder_config=encoder.config,
        sampling_rate=encoder.config.sampling_rate,
        id2label=dict(enumerate(labels.class_names)),
        label2id={name: index for index, name in enumerate(labels.class_names)},
        **values,
    )


def subcenter_options(args: TrainArguments, labels: ProxyLabels) -> dict[str, Any]:
    """Return the head's options with a number of sub-centres for each class.

    Raises:
        ValueError: The head has no sub-centres, or the options already give them class by class.
    """
    if "num_subcenters" not in inspect.signature(HEADS[args.head]).parameters:
        able = sorted(
            name for name in HEADS if "num_subcenters" in inspect.signature(HEADS[name]).parameters
        )
        raise ValueError(
            f"subcenters_without_attributes={args.subcenters_without_attributes} came with "
            f"head={args.head!r}, which has no num_subcenters. Take one of {able}, or leave it out."
        )
    options: Any = args.head_options or {}
    usual = options.get("num_subcenters", 1)
    if not isinstance(usual, int):
        raise ValueError(
            f"subcenters_without_attributes={args.subcenters_without_attributes} and head_options' "
            f"num_subcenters={usual} both count class by class. Give one of them."
        )
    bare = labels.without_attributes.tolist()
    counts = [args.subcenters_without_attributes if is_bare else usual for is_bare in bare]
    return dict(options) | {"num_subcenters": counts}


def untrained(config: AsdConfig) -> AsdConfig:
    """Return the configuration under which an encoder is embedded as it is, by no random weights.

    What would have to be trained is left out: the pooled embedding is scored, without a projection,
    and a pooling that has weights becomes the mean over the same bands. All else stays, also a
    `scored_pooling`, which never has weights.
    """
    config = copy.deepcopy(config)
    config.adversaries, config.adversary_options = (), None
    config.projection, config.projection_size, config.scored_embedding = "none", None, "pooled"
    options = config.pooling_options or {}
    if any(True for _ in POOLINGS[config.pooling](1, **options).parameters()):
        config.pooling = "mean"
        config.pooling_options = {"keep_bands": options.get("keep_bands", False)}
    return config


def build_model(
    args: TrainArguments,
    encoder: Any,  # noqa: ANN401 - one of ENCODERS
    labels: ProxyLabels,
) -> AsdForProxyClassification:
    """Return encoder and head."""
    config = asd_config(args, encoder, labels)
    model = AsdForProxyClassification(untrained(config) if args.no_training else config)
    model.asd.load_encoder(encoder)
    model.asd.freeze_layers(args.trainable_layers)
    return model


def with_lora(model: AsdForProxyClassification, args: TrainArguments) -> "PeftModel":
    """Return the model with adapters; they train, and what is new (`LORA_MODULES_TO_SAVE`).

    `trainable_layers` k puts adapters on the last k layers up to the deepest one scored.

    Raises:
        ValueError: A target is no linear map of the encoder's layers.
    """
    from peft import LoraConfig, get_peft_model  # an extra; `check_lora` has found it

    encoder: Any = model.asd.encoder
    targets = args.lora_target_modules or lora_target_modules(encoder.config)
    maps = {name for name, part in encoder.layers.named_modules() if isinstance(part, nn.Linear)}
    if unknown := [t for t in targets if not any(f".{m}".endswith(f".{t}") for m in maps)]:
        raise ValueError(
            f"lora_target_modules {unknown} are no linear maps of this encoder's layers, which "
            f"are {sorted({name.rpartition('.')[2] for name in maps})}."
        )
    assert args.lora_rank is not None  # or there would be no adapters
    built, last = len(encoder.layers), args.trainable_layers
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha or args.lora_rank,
        lora_dropout=args.lora_dropout,
        target_modules=list(targets),
        layers_to_transform=None if last is None else list(range(built - last, built)),
        layers_pattern=None if last is None else "layers",
        modules_to_save=list(LORA_MODULES_TO_SAVE),
    )
    return get_peft_model(model, config)
