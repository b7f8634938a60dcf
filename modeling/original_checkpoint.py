"""The authors' checkpoint files: read safely, and checked tensor by tensor.

What the converters of all encoders share; a published checkpoint never needs it.
"""

import argparse
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NUMPY_SCALAR = np.float64().__reduce__()[0]  # unpickles a scalar: type and bytes


# What fairseq's trainer stores beside tensors and plain containers; none of it runs code: the
# command line (older versions), and the best validation metric, which EAT's fine-tuning averages
# with numpy. numpy 1 wrote another module name.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    *((NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read an authors' file or Hub folder safely as {"cfg", "model", ...}."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Give the file that the authors published.")
    if path.is_dir():
        return _read_folder(path)
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty. Download it again.")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
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


def _read_folder(path: Path) -> Mapping[str, Any]:
    """Read what the authors put on the Hub: config.json as "cfg", model.safetensors as "model"."""
    config, weights = path / "config.json", path / "model.safetensors"
    if not config.exists():
        raise ValueError(
            f"{path} is a folder without a config.json. Give the .pt file inside, or a folder with "
            "the config.json and the model.safetensors that the authors put on the Hub."
        )
    try:
        cfg = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is no JSON. Download it again. ({error})") from error
    if not isinstance(cfg, Mapping):
        raise ValueError(f"{config} holds {describe(cfg)}, where a dict was due.")
    if str(cfg.get("model_type")).startswith("nearfar_"):
        raise ValueError(
            f"{path} is a folder of ours, converted already. It has a config.json: load it with "
            "from_pretrained."
        )
    if not weights.exists():
        raise ValueError(
            f"{path} has no model.safetensors; it has "
            f"{listed(sorted(file.name for file in path.iterdir()))}. Download all of the folder."
        )
    try:
        return {"cfg": cfg, "model": load_file(weights)}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} cannot be read. Download it again. ({error})") from error


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


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], model: PreTrainedModel
) -> dict[str, Tensor]:
    """Return an authors' state dict under our names, whole, or raise ValueError.

    Args:
        state: Theirs; it may hold nothing that the model has no place for.
        names: Our name -> theirs, of a tensor, or of a module without ".weight" and ".bias".
        model: Which tensors are due, and in which shapes.
    """
    state, found, missing = dict(state), {}, []
    due = model.state_dict()
    for name, own in due.items():
        stem, _, ending = name.rpartition(".")
        original = names[name] if name in names else f"{names[stem]}.{ending}"
        tensor = state.pop(original, None)
        if tensor is None:
            missing.append(original)
        elif tensor.shape != own.shape:
            raise ValueError(
                f"{original} has the shape {tuple(tensor.shape)}; cfg asks for {tuple(own.shape)}."
            )
        else:
            found[name] = tensor
    if missing or state:
        raise ValueError(
            f"The state dict does not fit its cfg: {len(found)} of {len(due)} tensors are there, "
            f"missing {listed(missing)}, unknown {listed(list(state))}. Take the original file."
        )
    return found


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
            "is no checkpoint of tensors and plain values: it is refused, because unpickling "
            f"anything else can run code. {_refused_globals(path) or _first_line(error)} Take the "
            "original file, a dict with 'cfg' and 'model', or the folder with a model.safetensors "
            "if the authors have put one on the Hub."
        )
    return (
        "cannot be read as a checkpoint. Is it a web page? Download it again. "
        f"({_first_line(error)})"
    )


def _refused_globals(path: Path) -> str:
    """Say what a file would have imported, without importing it; empty if it cannot be told."""
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 older files cannot be scanned, and this one is suspect
        return ""
    return f"It holds {listed(sorted(found))}." if found else ""


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:160]}"


__all__ = [
    "check_tensors",
    "describe",
    "filled",
    "labels_of",
    "listed",
    "read_checkpoint",
    "renamed",
]
