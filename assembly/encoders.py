"""The encoder that a training begins with."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig

from modeling import ENCODERS
from modeling.convert_original import load_original
from nearfar.files import read_json
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
    if args.target_length is not None:
        set_target_length(encoder.config, args.target_length)
    if due is not None and encoder.config.model_type != due:
        raise ValueError(
            f"This recipe takes an encoder of type {due!r}, but encoder_checkpoint or "
            f"encoder_config gives a {encoder.config.model_type!r}. Give one of that type, or "
            "another recipe."
        )
    return encoder


def saved_type(path: Path) -> str | None:
    """Return the model_type of a folder's config.json; None of a file, or without one."""
    config = path / "config.json"
    if not config.is_file():
        return None
    described = read_json(config)
    found = described.get("model_type") if isinstance(described, dict) else None
    return found if isinstance(found, str) else None


def set_target_length(config: Any, target_length: int) -> None:  # noqa: ANN401 - of one of ENCODERS
    """Let an encoder hear so many frames of each clip, as its authors did.

    Raises:
        ValueError: It has no such setting, or not with this number.
    """
    if not hasattr(config, "target_length"):
        raise ValueError(
            f"target_length={target_length} is for EAT and FISHER; a {config.model_type!r} hears "
            "any number of frames. Leave it out, or cut the clips by clip_seconds."
        )
    config.target_length = target_length
    config.validate_target_length()


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
    model_type = saved_type(path)
    if model_type is None or not model_type.startswith("nearfar_"):
        return load_original(path)  # or it says why this is not an authors' checkpoint, either
    if model_type not in ENCODERS:
        raise ValueError(
            f"{path} holds a {model_type!r}, not one of {sorted(ENCODERS)}. Of a run folder give "
            "what AsdModel.from_pretrained(folder).encoder.save_pretrained(another) writes."
        )
    encoder_class: Any = ENCODERS[model_type]
    try:
        encoder, found = encoder_class.from_pretrained(path, output_loading_info=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"The weights in {path} are damaged, or of other sizes than its config.json. Copy both "
            f"anew. ({' '.join(str(error).split())[:300]})"
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers gives them random values
        raise ValueError(f"{path} lacks {len(missing)} weights, {missing[0]!r} the first of them.")
    encoder.config.name_or_path = ""  # else a run folder's config.json would name the path
    return encoder
