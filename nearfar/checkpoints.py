"""Saved states of a training: where it stands, whole or not at all, and how to find the last."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

CHECKPOINT_PREFIX = "step_"


@dataclass
class Progress:
    """Where training stands; saved and restored with the optimiser.

    Attributes:
        epoch: Passes begun, counted from 0.
        batch: Batches of this epoch already used.
        step: Optimiser updates done.
        data_digest: Of the clips and their labels, to notice another data set on resume.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    data_digest: str = ""

    def state_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all fields.

        Raises:
            ValueError: The state belongs to other training clips.
        """
        if state["data_digest"] != self.data_digest:
            raise ValueError(
                "The training clips or their classes differ from those that the saved state was "
                "trained on. Give the same data_dir, seed and labels, or train anew without "
                "--resume_from_checkpoint."
            )
        vars(self).update(state)


def save_checkpoint(accelerator: Accelerator, state_dir: Path, step: int) -> None:
    """Save the training state as `step_<step>` in place of the one before, whole or not at all."""
    folder = state_dir / f"{CHECKPOINT_PREFIX}{step:06d}"
    partial = state_dir / f".{folder.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        state_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        for older in state_dir.glob(f"{CHECKPOINT_PREFIX}*"):
            if older != folder:
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def latest_checkpoint(state_dir: Path) -> Path | None:
    """Return the newest saved state, or None."""
    return max(state_dir.glob(f"{CHECKPOINT_PREFIX}*"), default=None)


def asked_checkpoint(state_dir: Path, asked: str | None) -> Path | None:
    """Return the saved state to resume from: None for none, the newest for "latest", or a folder.

    Raises:
        FileNotFoundError: It is not there.
    """
    if asked is None:
        return None
    folder = latest_checkpoint(state_dir) if asked == "latest" else Path(asked)
    if folder is None or not folder.is_dir():
        raise nothing_saved(asked, state_dir)
    return folder


def nothing_saved(asked: str, folder: Path) -> FileNotFoundError:
    """Return the error where there is nothing to resume from.

    Args:
        asked: As the user gave it.
        folder: Where it was looked for.
    """
    return FileNotFoundError(
        f"There is no saved state to resume from: {asked} ({folder}). Leave out "
        "--resume_from_checkpoint to start anew."
    )
