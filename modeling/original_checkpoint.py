"""The authors' checkpoint files: read safely, and checked tensor by tensor.

What the converters of all encoders share; a published checkpoint never needs it.
"""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


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
            f"{path} holds {describe(checkpoint)}; an authors' checkpoint is a dict with 'cfg' "
            "and 'model'. A bare state dict does not say which architecture it fits. Take the "
            "original file."
        )
    for key in ("cfg", "model"):
        if not isinstance(checkpoint[key], Mapping):
            raise ValueError(
                f"{path} holds {describe(checkpoint[key])} under {key!r}, where a dict was due. "
                "Take the original file."
            )
    return checkpoint


def check_tensors(state: Mapping[Any, Any]) -> None:
    """Raise ValueError unless a state dict holds dense, finite floating-point tensors alone."""
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"The state dict has {describe(value)} under {key!r}, where a tensor was due. "
                "Take the original file."
            )
        if value.layout != torch.strided or not value.is_floating_point() or value.is_meta:
            raise ValueError(
                f"{key} is a {value.layout} tensor of {value.dtype} on {value.device}; a dense "
                "floating-point one was due. Take the original file."
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} holds values that are not finite. Download the file again.")


def filled(model: PreTrainedModel, state: dict[str, Tensor]) -> PreTrainedModel:
    """Return a model with the weights of a renamed state dict, or raise ValueError."""
    try:
        model.load_state_dict(state)  # copies, so the file's dtype does not matter
    except RuntimeError as error:
        raise ValueError(f"The predictor does not fit: {error}") from error
    return model


def labels_of(label_dict: object, predictor: dict[str, Tensor]) -> dict[int, str]:
    """Return index -> label, for as many classes as the predictor has."""
    if predictor.keys() != {"predictor.weight", "predictor.bias"}:
        raise ValueError(
            f"The predictor has {listed(list(predictor))}; a weight and a bias are due."
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
            f"label_dict is {describe(label_dict)}; the predictor's {count} classes need the "
            f"indices 0 to {count - 1}."
        )
    return labels


def describe(value: object) -> str:
    """Say in a few words what came in place of what was due."""
    if isinstance(value, Mapping):
        return f"a dict of {len(value)} with the keys {listed([str(key) for key in value])}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def listed(names: list[str], limit: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    if not names:
        return "none"
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest


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


__all__ = ["check_tensors", "describe", "filled", "labels_of", "listed", "read_checkpoint"]
