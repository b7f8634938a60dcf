"""Systems made without a part of the clips, so that one that never saw a clip scores it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator

from assembly.run_folder import System
from assembly.training_clips import Clips, TrainingClips
from nearfar.accelerators import build_accelerator, close, seed_all
from nearfar.cross_fitting import Fold, cross_fitted_tables
from nearfar.embeddings import EmbeddingTable
from nearfar.training_arguments import TrainArguments

# (arguments, references, what is known of each, accelerator) -> what training makes of them.
FitSystem = Callable[[TrainArguments, Clips, Sequence[dict[str, Any]], Accelerator], System]


def cross_fit(
    args: TrainArguments, fit_system: FitSystem, system: System, clips: TrainingClips
) -> list[tuple[EmbeddingTable, EmbeddingTable]]:
    """Return the references and the held-out clips of each fold, embedded without the latter.

    Nothing that is learned sees a fold's clips: classes, guard, encoder and bank are made anew
    without them. A frozen encoder without a guard learns nothing, so one embedding does for all.

    Args:
        args: Of the run.
        fit_system: Makes a system of a part of the clips.
        system: Made of all clips.
        clips: All are references; without folds there is nothing to do.
    """
    if clips.folds is None:
        return []
    rows, references = clips.rows, clips.references
    resume = args.resume_from_checkpoint is not None
    system.model.to("cpu")  # type: ignore[arg-type] # transformers types it as if it took a dtype alone
    table = None
    if args.no_training and args.guard == "none":
        table = system.embedder(system.model.base_model, references, "folds")

    def embed_fold(fold: Fold) -> EmbeddingTable:
        if table is not None:
            return table
        own = dataclasses.replace(args, output_dir=fold.folder, num_classes=None)
        begun = resume and any(own.state_dir.glob("[!.]*_*"))  # a state that is whole
        own = dataclasses.replace(own, resume_from_checkpoint="latest" if begun else None)
        seed_all(own)
        accelerator = build_accelerator(own)
        chosen = np.flatnonzero(~fold.held_out)
        made = fit_system(own, references.select(chosen), [rows[i] for i in chosen], accelerator)
        embedded = made.embedder(made.model.base_model, references, f"fold {fold.number}")
        close(accelerator)
        return embedded

    return cross_fitted_tables(
        rows,
        clips.folds,
        embed_fold,
        folder=args.state_dir,
        resume=resume,
        is_main_process=system.embedder.accelerator.is_main_process,
    )
