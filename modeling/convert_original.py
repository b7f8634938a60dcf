"""The authors' checkpoints, turned into ours: `load_original`, and a command that saves the result.

Nothing else here reads pickled weights, and this unpickles only tensors and plain containers.
Scripts import it; a published checkpoint never needs it.
"""

import argparse
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from .configuration_asd import BeatsConfig
from .modeling_beats import BeatsForAudioClassification, BeatsModel

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


@dataclass(frozen=True)
class Converter:
    """How one encoder's original checkpoints are known and converted.

    Attributes:
        signature: A key that every checkpoint's state dict of this encoder has.
        convert: (checkpoint, head) -> model; raises ValueError without the file's name.
    """

    signature: str
    convert: Callable[[Mapping[str, Any], bool], PreTrainedModel]


def load_original(path: str | os.PathLike[str], *, head: bool = False) -> PreTrainedModel:
    """Read a checkpoint of an encoder's authors into our model, on the CPU, in float32.

    Args:
        path: The authors' file, say BEATs_iter3.pt. Nothing but tensors and plain containers is
            unpickled.
        head: Return the fine-tuned classifier instead of the bare encoder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint that can be converted whole.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    try:
        name = recognise(checkpoint)
        model = CONVERTERS[name].convert(checkpoint, head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    logger.info("%s: %s, %d parameters", path, type(model).__name__, model.num_parameters())
    model.eval()
    return model


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Unpickle a file safely, and check that it holds {"cfg", "model", ...}."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Give the file that the authors published.")
    if path.is_dir():
        hint = (
            "It has a config.json: load it with from_pretrained."
            if (path / "config.json").exists()
            else "Give the .pt file inside."
        )
        raise ValueError(f"{path} is a folder; an authors' checkpoint is one file. {hint}")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty. Download it again.")
    try:
        checkpoint = torch.load(  # noqa: TID251 the one reader of third-party files
            path, map_location="cpu", weights_only=True
        )
    except Exception as error:  # a damaged file can raise anything in the unpickler
        raise ValueError(f"{path} ({size:,} bytes) {_why_unreadable(path, error)}") from error
    if not isinstance(checkpoint, Mapping) or not {"cfg", "model"} <= set(checkpoint):
        raise ValueError(
            f"{path} holds {_describe(checkpoint)}; an authors' checkpoint is a dict with 'cfg' "
            "and 'model'. A bare state dict does not say which architecture it fits. Take the "
            "original file."
        )
    for key in ("cfg", "model"):
        if not isinstance(checkpoint[key], Mapping):
            raise ValueError(
                f"{path} holds {_describe(checkpoint[key])} under {key!r}, where a dict was due. "
                "Take the original file."
            )
    return checkpoint


def recognise(checkpoint: Mapping[str, Any]) -> str:
    """Return which encoder, a key of `CONVERTERS`, a checkpoint belongs to."""
    state = checkpoint["model"]
    for name, converter in CONVERTERS.items():
        if converter.signature in state:
            return name
    raise ValueError(
        f"The state dict is of no known encoder ({', '.join(CONVERTERS)}): it is "
        f"{_describe(state)}. Take the original file."
    )


def convert_beats(checkpoint: Mapping[str, Any], head: bool) -> PreTrainedModel:  # noqa: FBT001 as Converter.convert
    """Convert a BEATs checkpoint, pre-trained or fine-tuned.

    Every tensor is either used or refused; the 12 stored copies of the relative position bias must
    be equal, and become one. Without `head`, the predictor of a fine-tuned checkpoint is left out.
    """
    state = dict(checkpoint["model"])
    if tokenizer := [key for key in map(str, state) if key.startswith("quantize")]:
        raise ValueError(
            f"This is a BEATs tokenizer: it has {_listed(tokenizer)}. It turns sound into training "
            "targets; the encoder is in a file named like BEATs_iter3.pt."
        )
    _check_tensors(state)
    config = beats_config(checkpoint["cfg"])
    predictor = {key: state.pop(key) for key in list(state) if key.startswith("predictor.")}
    if head:
        if not predictor:
            raise ValueError(
                "head=True, but this checkpoint is pre-trained only: it has no predictor. Leave "
                "head out, or take a file named like BEATs_iter3_plus_AS2M_finetuned_on_AS2M.pt."
            )
        config.id2label = _labels(checkpoint.get("label_dict"), predictor)
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = "multi_label_classification"
    encoder = _beats_state(state, config)
    if not head:
        return _filled(BeatsModel(config), encoder)
    renamed = {f"beats.{name}": tensor for name, tensor in encoder.items()}
    return _filled(BeatsForAudioClassification(config), renamed | predictor)


def beats_config(cfg: Mapping[str, Any]) -> BeatsConfig:
    """Translate the authors' cfg. It is never filled up with defaults: theirs fit no checkpoint."""
    if missing := sorted((BEATS_FIELDS.keys() | BEATS_REQUIRED_VALUES.keys()) - cfg.keys()):
        raise ValueError(f"cfg lacks {_listed(missing)}; it has {_listed(sorted(map(str, cfg)))}.")
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
        logger.warning("cfg has fields that no BEATs encoder reads: %s.", _listed(unknown))
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
    with torch.device("meta"):
        due = {name: tensor.shape for name, tensor in BeatsModel(config).state_dict().items()}
    renamed, missing = {}, []
    for name, shape in due.items():
        stem, _, ending = name.rpartition(".")
        original = names[name] if name in names else f"{names[stem]}.{ending}"
        tensor = state.pop(original, None)
        if tensor is None:
            missing.append(original)
            continue
        if original.endswith("grep_a") and tensor.ndim == 4:
            tensor = tensor[0]  # stored with a batch axis
        if tensor.shape != shape:
            raise ValueError(
                f"{original} has the shape {tuple(tensor.shape)}; cfg asks for {tuple(shape)}."
            )
        renamed[name] = tensor
    if missing or state:
        raise ValueError(
            f"The state dict does not fit its cfg: {len(renamed)} of {len(due)} tensors are there, "
            f"missing {_listed(missing)}, unknown {_listed(list(state))}. Take the original file."
        )
    return renamed


def _filled(model: PreTrainedModel, state: dict[str, Tensor]) -> PreTrainedModel:
    try:
        model.load_state_dict(state)  # copies, so the file's dtype does not matter
    except RuntimeError as error:
        raise ValueError(f"The predictor does not fit: {error}") from error
    return model


def _labels(label_dict: object, predictor: dict[str, Tensor]) -> dict[int, str]:
    """Return index -> label, for as many classes as the predictor has."""
    if predictor.keys() != {"predictor.weight", "predictor.bias"}:
        raise ValueError(
            f"The predictor has {_listed(list(predictor))}; a weight and a bias are due."
        )
    count = len(predictor["predictor.bias"])
    if label_dict is None:
        logger.warning("No label_dict: the %d classes are called LABEL_0 and so on.", count)
        return {index: f"LABEL_{index}" for index in range(count)}
    labels = (
        {int(index): str(label) for index, label in label_dict.items()}
        if isinstance(label_dict, Mapping)
        else {}
    )
    if sorted(labels) != list(range(count)):
        raise ValueError(
            f"label_dict is {_describe(label_dict)}; the predictor's {count} classes need the "
            f"indices 0 to {count - 1}."
        )
    return labels


def _check_tensors(state: Mapping[Any, Any]) -> None:
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"The state dict has {_describe(value)} under {key!r}, where a tensor was due. "
                "Take the original file."
            )
        if value.layout != torch.strided or not value.is_floating_point() or value.is_meta:
            raise ValueError(
                f"{key} is a {value.layout} tensor of {value.dtype} on {value.device}; a dense "
                "floating-point one was due. Take the original file."
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} holds values that are not finite. Download the file again.")


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" and not zipfile.is_zipfile(path):
        return "is cut off. Download it again."
    if "weights_only" in str(error).lower():
        return (
            "is no checkpoint of tensors and plain containers: it is refused, because unpickling "
            f"anything else can run code. Take the original file. ({_first_line(error)})"
        )
    return (
        "cannot be read as a checkpoint. Is it a web page? Download it again. "
        f"({_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:160]}"


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {len(value)} with the keys {_listed([str(key) for key in value])}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _listed(names: list[str], limit: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    if not names:
        return "none"
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest


CONVERTERS = {"beats": Converter("encoder.pos_conv.0.weight_g", convert_beats)}


def save_converted(checkpoint: Path, output_dir: Path, *, head: bool = False) -> PreTrainedModel:
    """Convert a checkpoint and save the model, its configuration and its code: whole or not at all.

    Raises:
        FileExistsError: `output_dir` is there and not an empty folder.
    """
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(
            f"{output_dir} exists and is not an empty folder. Choose another one."
        )
    model = load_original(checkpoint, head=head)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    try:
        folder = unfinished / output_dir.name  # a plain mkdir: mkdtemp hides its folder from others
        model.save_pretrained(folder)
        if output_dir.exists():
            output_dir.rmdir()
        folder.rename(output_dir)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return model


def main() -> None:
    """Convert one checkpoint on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling.convert_original",
        description="Turn an authors' checkpoint into a folder for from_pretrained.",
    )
    parser.add_argument("checkpoint", type=Path, help="the authors' file, say BEATs_iter3.pt")
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder that is not there")
    parser.add_argument("--head", action="store_true", help="keep the fine-tuned classifier")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        model = save_converted(args.checkpoint, args.output_dir, head=args.head)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    parameters = f"{model.num_parameters():,} parameters"
    print(f"{args.output_dir}: {type(model).__name__}, {parameters}")  # noqa: T201 a script's last line


if __name__ == "__main__":
    main()

__all__ = ["CONVERTERS", "Converter", "load_original", "save_converted"]
