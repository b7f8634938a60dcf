"""The recordings that a recipe trains on, and what each of them is for."""

import hashlib
import json
from typing import Any, NamedTuple

from accelerate import Accelerator, PartialState
from datasets import Dataset

from data_scripts.near_far import known, load_near_far
from nearfar.splits import held_out_rows
from nearfar.training_arguments import TrainArguments


class TrainingClips(NamedTuple):
    """Normal clips: those that train and fill the bank, and those kept back.

    Attributes:
        references: They train and fill the bank.
        rows: What is known of each reference, without sound.
        held_out: For thresholds: of neither training nor bank; None where none is kept back.
    """

    references: Dataset
    rows: list[dict[str, Any]]
    held_out: Dataset | None

    def digest(self) -> str:
        """Return a digest of which clips there are, and which of them are kept back."""
        kept = [] if self.held_out is None else known(self.held_out)
        names = [[(row["machine"], row["file_name"]) for row in rows] for rows in (self.rows, kept)]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def training_clips(args: TrainArguments, accelerator: Accelerator | PartialState) -> TrainingClips:
    """Return the clips of a data folder, split as the arguments want it."""
    clips = load_clips(args, accelerator)
    rows = known(clips)
    held_out = held_out_rows(
        [row["machine"] for row in rows],
        [row["domain"] for row in rows],
        share=args.held_out_share if args.calibration == "held_out" else 0.0,
        seed=args.seed,
        attributes=[row["attributes"] for row in rows],
    )
    kept = held_out.nonzero()[0]
    return TrainingClips(
        clips.select((~held_out).nonzero()[0]),
        [row for row, held in zip(rows, held_out, strict=True) if not held],
        clips.select(kept) if len(kept) else None,
    )


def load_clips(args: TrainArguments, accelerator: Accelerator | PartialState) -> Dataset:
    """Return the training clips; the main process prepares the cache, the others wait for it."""
    assert args.data_dir is not None  # check_arguments
    with accelerator.main_process_first():
        return load_near_far(
            args.data_dir,
            year=args.year,
            machine_types=args.machine_types,
            subsets=args.train_subsets,
            num_proc=args.num_proc,
            resample=args.resample,
        )["train"]
