"""Saved states of the training of autoencoders: where each is found, and whose it is."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nearfar.checkpoints import nothing_saved
from nearfar.files import whole_file
from nearfar.training_options import TrainingOptions

STATE_PREFIX = "autoencoder_"

# Options on which an autoencoder's weights depend.
USED_OPTIONS = (
    "num_train_epochs",
    "train_batch_size",
    "learning_rate",
    "validation_share",
    "seed",
)


@dataclass(frozen=True)
class UnfinishedState:
    """Where the training of one network is saved between epochs, and resumed.

    Attributes:
        read: File to go on from, if it is there; None to start anew.
        write: File to save to.
        digest: Of all that the network depends on.
    """

    read: Path | None
    write: Path
    digest: str


def training_digest(
    rows: Sequence[Mapping[str, Any]],
    config: Any,  # noqa: ANN401 - an AutoencoderConfig, which nearfar must not import
    options: TrainingOptions,
    *,
    sound: str,
) -> str:
    """Return a digest of all that a machine's weights depend on; `sound` is that of its clips."""
    described = {
        "sound": sound,
        "clips": [(row["file_name"], row["domain"]) for row in rows],
        "config": {
            name: value
            for name, value in config.to_dict().items()
            if name in type(config).__annotations__ and name not in ("machines", "scoring")
        },
        "options": {name: getattr(options, name) for name in USED_OPTIONS},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def write_state(path: Path, digest: str, state: Mapping[str, Tensor]) -> None:
    """Write tensors, whole or not at all, with a digest of all that they depend on."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"digest": digest})


def read_state(path: Path, digest: str) -> dict[str, Tensor] | None:
    """Return what `write_state` wrote; None if there is no such file.

    Raises:
        ValueError: It was trained on other clips or with other options.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if file.metadata()["digest"] != digest:
            raise ValueError(
                f"{path} was trained on other clips, or with other sizes or options. Give the same "
                "ones, or train anew without --resume_from_checkpoint."
            )
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def finished_path(folder: Path, machine: str) -> Path:
    """Return the file of a finished machine's networks; two machines never share one."""
    return folder / f"{STATE_PREFIX}{quote(machine, safe='')}.safetensors"


def unfinished_path(folder: Path, machine: str, channel: str) -> Path:
    """Return the file of an unfinished network."""
    return finished_path(folder, machine).with_suffix(f".{channel}.unfinished")


def saved_states(state_dir: Path, asked: str | None) -> Path | None:
    """Return the folder to resume from: None for none, `state_dir` for "latest", or the one asked.

    Raises:
        FileNotFoundError: It holds no state.
    """
    if asked is None:
        return None
    folder = state_dir if asked == "latest" else Path(asked)
    if not any(folder.glob(f"{STATE_PREFIX}*")):
        raise nothing_saved(asked, folder)
    return folder
