"""The recordings that a recipe trains on, and what each of them is for."""

import hashlib
import json
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from accelerate import Accelerator, PartialState
from datasets import Dataset
from numpy.typing import NDArray

from data_scripts.near_far import decode_row, decoded, known, load_near_far
from data_scripts.streamed import stream_published
from nearfar.clip_streams import ClipStream
from nearfar.splits import fold_numbers, held_out_rows
from nearfar.training_arguments import TrainArguments
from nearfar.training_clips import sound_digest

Clips: TypeAlias = Dataset | ClipStream  # decoded when they are read


class TrainingClips(NamedTuple):
    """Normal clips: those that train and fill the bank, and those kept back.

    Attributes:
        references: They train and fill the bank.
        rows: What is known of each reference, without sound.
        held_out: For thresholds: of neither training nor bank; None where none is kept back.
        folds: (references,) which fold holds each out, of calibration "cross_fitted"; else None.
    """

    references: Clips
    rows: list[dict[str, Any]]
    held_out: Clips | None
    folds: NDArray[np.int64] | None

    def digest(self) -> str:
        """Return a digest of which clips there are, how they sound, and which are kept back.

        Of a stream's sound nothing is heard, as to hear some of it is to read all.
        """
        kept = [] if self.held_out is None else rows_of(self.held_out)
        names = [[(row["machine"], row["file_name"]) for row in rows] for rows in (self.rows, kept)]
        digest = hashlib.sha256(json.dumps(names).encode())
        if isinstance(self.references, Dataset):
            digest.update(sound_digest(self.references, range(len(self.rows))).encode())
        return digest.hexdigest()


def training_clips(args: TrainArguments, accelerator: Accelerator | PartialState) -> TrainingClips:
    """Return the clips of a data folder, split as the arguments want it."""
    clips = load_clips(args, accelerator)
    rows = rows_of(clips)
    machines, domains = [row["machine"] for row in rows], [row["domain"] for row in rows]
    if args.calibration == "cross_fitted":
        folds = fold_numbers(machines, domains, num_folds=args.num_folds, seed=args.seed)
        return TrainingClips(clips, rows, None, folds)
    held_out = held_out_rows(
        machines,
        domains,
        share=args.held_out_share,
        seed=args.seed,
        attributes=[row["attributes"] for row in rows],
    )
    kept = held_out.nonzero()[0]
    return TrainingClips(
        clips.select((~held_out).nonzero()[0]),
        [row for row, held in zip(rows, held_out, strict=True) if not held],
        clips.select(kept) if len(kept) else None,
        None,
    )


def rows_of(clips: Clips) -> list[dict[str, Any]]:
    """Return what is known of each clip, without sound."""
    return clips.rows if isinstance(clips, ClipStream) else known(clips)


def load_clips(args: TrainArguments, accelerator: Accelerator | PartialState) -> Clips:
    """Return the training clips; the main process prepares the cache, the others wait for it."""
    assert args.data_dir is not None  # check_arguments
    options: dict[str, Any] = {
        "year": args.year,
        "machine_types": args.machine_types,
        "subsets": args.train_subsets,
    }
    if args.streaming:
        stream, rows = stream_published(args.data_dir, split="train", **options)
        return ClipStream(stream, rows, decode_row)
    with accelerator.main_process_first():
        clips = load_near_far(
            args.data_dir, num_proc=args.num_proc, resample=args.resample, **options
        )
    return decoded(clips["train"])
