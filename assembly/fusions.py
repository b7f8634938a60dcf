"""From trained members to a fusion's run folder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator

from assembly.scorers import ModelScorer, calibrate, load_scorer, load_test_clips
from assembly.training_clips import Clips, training_clips
from data_scripts.near_far import decoded
from modeling import DETECTORS, ReferenceBank
from modeling.calibration import check_rule
from modeling.configuration_asd import check_options
from nearfar.embeddings import EmbeddingTable
from nearfar.feature_fusion import joined_fingerprint, joined_table
from nearfar.fused_folders import searched_fusion
from nearfar.fused_scores import paired_tables
from nearfar.fusion import ScoreFusion
from nearfar.fusion_options import stated_weights
from nearfar.fusion_run import write_feature_fusion_run, write_fusion_run
from nearfar.scorers import FusionScorer
from nearfar.training_arguments import FUSION_ARGUMENTS, TrainArguments, resolved_recipe

# What members must have in common for their embeddings of a clip to be joined.
_SAME_CLIPS = (
    *("year", "train_subsets", "machine_types", "resample", "held_out_share", "seed"),
    "no_training",
)


def check_fusion(args: TrainArguments, members: Sequence[TrainArguments]) -> None:
    """Raise ValueError where trained members could not be fused; before they are trained.

    Raises:
        ValueError: There is not one weight for each, or embeddings would be of different clips.
    """
    precisions = [member.mixed_precision for member in members]
    if len(set(precisions)) > 1:
        raise ValueError(
            f"Members that train in one process share a precision, but have mixed_precision="
            f"{precisions}. Give all the same, or train one of them alone into members_dir."
        )
    if args.kind == "fusion":
        stated_weights(args, len(members))
        return
    check_rule(args.threshold, args.threshold_quantile)
    check_options("detector", args.detector, args.detector_options, DETECTORS)  # type: ignore[arg-type] # no str: read as JSON
    if any(member.calibration == "cross_fitted" for member in members):
        raise ValueError(
            "A feature_fusion is calibrated by clips that its members kept back, but a member has "
            "calibration='cross_fitted', which keeps none back. Give 'held_out'."
        )
    for name in _SAME_CLIPS:
        values = [getattr(member, name) for member in members]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"A feature_fusion joins embeddings of the same clips, but its members have "
                f"{name}={values}. Give all the same."
            )


def fuse_scores(
    args: TrainArguments, members: Sequence[TrainArguments], accelerator: Accelerator
) -> None:
    """Weigh trained members, and write the run folder of their fusion."""
    folders = [member.output_dir for member in members]
    fusion, search = stated_weights(args, len(members)), None
    if fusion is None:
        fusion, search = search_on_development_clips(args, members, accelerator)
    if accelerator.is_main_process:
        scorer = FusionScorer([load_scorer(folder) for folder in folders], fusion, calibrate)
        write_fusion_run(
            args.output_dir,
            folders,
            fusion,
            search=search,
            recipe=fusion_recipe(args),
            metrics=shared_metrics(args, members),
            calibrations={name: scorer.calibration(name) for name in scorer.machines},
        )
        print(f"{args.output_dir}: {len(members)} members, weights {list(fusion.weights)}")  # noqa: T201 - the script's answer


def search_on_development_clips(
    args: TrainArguments, members: Sequence[TrainArguments], accelerator: Accelerator
) -> tuple[ScoreFusion, dict[str, Any]]:
    """Return the fusion with the weights that score best on labelled development clips.

    Raises:
        ValueError: There are none, or of one machine only.
    """
    first = members[0]
    try:
        clips = load_test_clips(
            args.data_dir,
            accelerator,
            year=first.year,
            machine_types=first.machine_types,
            num_proc=args.num_proc,
            resample=first.resample,
        )
    except ValueError as error:
        raise ValueError(
            f"search_weights needs labelled test clips, but {error} The members are trained and "
            "stay; state --weights, one per member."
        ) from error
    scorers = {member.output_dir.name: load_scorer(member.output_dir) for member in members}
    sizes = {"batch_size": first.extraction_batch_size, "num_workers": first.dataloader_num_workers}
    tables = paired_tables(
        {
            name: scorer.score(decoded(clips), accelerator, **sizes)
            for name, scorer in scorers.items()
        }
    )
    scores = {
        machine: [np.asarray(s.calibration(machine).anomaly_scores) for s in scorers.values()]
        for machine in tables[0].machine_names
    }
    return searched_fusion(args, tables, scores)


def fuse_features(
    args: TrainArguments, members: Sequence[TrainArguments], accelerator: Accelerator
) -> None:
    """Join the members' embeddings, fill a bank with them, and write the run folder."""
    first = members[0]
    scorers = [load_scorer(member.output_dir) for member in members]
    models = [scorer for scorer in scorers if isinstance(scorer, ModelScorer)]
    clips = training_clips(first, accelerator)

    def joined(part: Clips, description: str) -> EmbeddingTable:
        options = {
            "batch_size": first.extraction_batch_size,
            "num_workers": first.dataloader_num_workers,
            "description": description,
        }
        return joined_table([m.embed(part, accelerator, **options) for m in models])

    references = joined(clips.references, "references")
    held_out = None if clips.held_out is None else joined(clips.held_out, "calibration")
    choice: Any = args  # its detector and that detector's options
    bank = ReferenceBank(
        choice,
        fingerprint=joined_fingerprint([model.bank.fingerprint for model in models]),
        threshold=args.threshold,
        threshold_quantile=args.threshold_quantile,
    ).fit(references, calibration=held_out, frozen_encoder=first.no_training)
    if accelerator.is_main_process:
        metrics = shared_metrics(args, members) | {
            "num_references": len(clips.references),
            "num_calibration": 0 if clips.held_out is None else len(clips.held_out),
            "embedding_shape": list(references.embedding.shape[1:]),
            "clips_digest": clips.digest(),
        }
        write_feature_fusion_run(
            args.output_dir,
            [member.output_dir for member in members],
            bank,
            recipe=fusion_recipe(args),
            metrics=metrics,
            thresholds={name: bank.threshold(name) for name in bank.machines},
        )
        print(f"{args.output_dir}: {len(members)} members, {len(bank.machines)} machines")  # noqa: T201 - the script's answer


def shared_metrics(args: TrainArguments, members: Sequence[TrainArguments]) -> dict[str, Any]:
    """Return what metrics.json says of a fusion of any kind."""
    seeds = {member.seed for member in members}
    return {
        "official_score": None,  # score.py gives it
        "machines": {},
        "seed": seeds.pop() if len(seeds) == 1 else None,
        "recipe": args.recipe.stem if args.recipe else None,
        "frozen_encoder": all(member.no_training for member in members),
        "smoke": args.smoke,
    }


def fusion_recipe(args: TrainArguments) -> dict[str, Any]:
    """Return a fusion's own arguments; those of its members are in their folders."""
    resolved = resolved_recipe(args)
    return {name: resolved[name] for name in (*FUSION_ARGUMENTS[args.kind], "smoke")}
