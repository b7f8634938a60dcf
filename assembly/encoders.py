"""The encoder that a training begins with."""

from typing import Any

from transformers import AutoConfig

from modeling import ENCODERS
from modeling.convert_original import load_original
from nearfar.training_arguments import TrainArguments


def build_encoder(args: TrainArguments) -> Any:  # noqa: ANN401 - one of ENCODERS
    """Return the encoder that the recipe is made for."""
    due = args.encoder_type
    if due is not None and args.encoder_checkpoint is None and args.encoder_config is None:
        raise ValueError(
            f"This recipe takes a pre-trained encoder of type {due!r}, but encoder_checkpoint is "
            "missing. Give the authors' .pt file or a folder made by `python -m "
            "modeling.convert_original` (a noise-aware one: by distill.py); or encoder_config, for "
            "one from scratch."
        )
    encoder = load_encoder(args)
    if due is not None and encoder.config.model_type != due:
        raise ValueError(
            f"This recipe takes an encoder of type {due!r}, but encoder_checkpoint or "
            f"encoder_config gives a {encoder.config.model_type!r}. Give one of that type, or "
            "another recipe."
        )
    return encoder


def load_encoder(args: TrainArguments) -> Any:  # noqa: ANN401 - one of ENCODERS
    """Return the encoder: the authors' weights, those of a folder, or new ones."""
    path = args.encoder_checkpoint
    if path is None:
        assert not isinstance(args.encoder_config, str)  # JSON is read by now
        config = dict(args.encoder_config or {"model_type": "nearfar_beats"})
        name = config.pop("model_type", "nearfar_beats")
        if name not in ENCODERS:
            raise ValueError(
                f"encoder_config: model_type={name!r} is not one of {sorted(ENCODERS)}."
            )
        return ENCODERS[name](AutoConfig.for_model(name, **config))
    if not path.exists():
        raise FileNotFoundError(
            f"There is no encoder checkpoint {path}. Give the authors' .pt file or a folder made "
            "by `python -m modeling.convert_original`."
        )
    if args.encoder_config is not None:
        raise ValueError("Give encoder_checkpoint or encoder_config, not both.")
    if path.is_file():
        return load_original(path)
    model_type = AutoConfig.from_pretrained(path).model_type
    if model_type not in ENCODERS:
        raise ValueError(f"{path} holds a {model_type!r}, not one of {sorted(ENCODERS)}.")
    encoder_class: Any = ENCODERS[model_type]
    encoder, found = encoder_class.from_pretrained(path, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):  # transformers gives them random values
        raise ValueError(f"{path} lacks {len(missing)} weights, {missing[0]!r} the first of them.")
    encoder.config.name_or_path = ""  # else a run folder's config.json would name the path
    return encoder
