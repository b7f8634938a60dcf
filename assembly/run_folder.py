"""From a trained model to its run folder: reference bank, thresholds, figures, files."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from assembly.embedding import Embedder
from assembly.training_clips import TrainingClips
from modeling import (
    AsdForProxyClassification,
    AutoencoderModel,
    BandMeans,
    ReferenceBank,
    encoder_fingerprint,
)
from nearfar.accelerators import close
from nearfar.embeddings import EmbeddingTable
from nearfar.false_alarms import untouched_false_alarms
from nearfar.guard import GuardDecision
from nearfar.hub import write_run
from nearfar.splits import spread_rows
from nearfar.training_arguments import TrainArguments, resolved_recipe

if TYPE_CHECKING:
    from peft import PeftModel  # of the extra "train"


class System(NamedTuple):
    """What training made, before a bank is filled.

    Attributes:
        model: With its head, where it has one.
        embedder: Embeds clips as the model wants them.
        guard: The decision for each machine; empty without a guard.
        num_classes: Proxy classes; None where there are none.
        num_validation: Clips that only chose weights.
        adapter: With LoRA.
    """

    model: AsdForProxyClassification | AutoencoderModel
    embedder: Embedder
    guard: Mapping[str, GuardDecision]
    num_classes: int | None = None
    num_validation: int = 0
    adapter: "PeftModel | None" = None


def write_detector(
    args: TrainArguments,
    system: System,
    clips: TrainingClips,
    *,
    folds: Sequence[tuple[EmbeddingTable, EmbeddingTable]] = (),
) -> None:
    """Fill the reference bank, calibrate it, and write the run folder."""
    references, held_out = clips.references, clips.held_out
    model, embedder = system.model, system.embedder
    table = embedder(model.base_model, references, "references")
    calibrating = None
    if held_out is not None:
        calibrating = embedder(model.base_model, held_out, "calibration")
    profiles = None
    if args.kind == "model" and args.profile_clips:
        some = references.select(spread_rows(table.machines, per_machine=args.profile_clips))
        profiles = embedder(BandMeans(model), some, "profiles")
    model.to("cpu")  # type: ignore[arg-type] # transformers types it as if it took a dtype alone
    bank = ReferenceBank(
        model.config,
        fingerprint=encoder_fingerprint(model.base_model),
        extractor=embedder.feature_extractor,
        guard=embedder.strengths,
        threshold=args.threshold,
        threshold_quantile=args.threshold_quantile,
    ).fit(table, calibration=calibrating, folds=folds, frozen_encoder=args.no_training)
    if profiles is not None:
        bank.keep_profiles(profiles)
    num_held_out = 0 if held_out is None else len(held_out)
    calibrations = {name: bank.calibration(name) for name in bank.machines}
    if embedder.accelerator.is_main_process:
        write_run(
            args.output_dir,
            model=model,
            feature_extractor=embedder.feature_extractor,
            bank=bank,
            recipe=resolved_recipe(args),
            metrics={
                "official_score": None,  # score.py gives it
                "machines": {},
                "seed": args.seed,
                "recipe": args.recipe.stem if args.recipe else None,
                "frozen_encoder": args.no_training,
                "guard": {name: decision._asdict() for name, decision in system.guard.items()}
                or None,
                "num_classes": system.num_classes,
                "num_references": len(references),
                "num_validation": system.num_validation,
                "num_calibration": num_held_out + sum(len(held) for _, held in folds),
                "false_alarms": [row._asdict() for row in untouched_false_alarms(calibrations)],
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "embedding_shape": list(table.embedding.shape[1:]),  # views, bands, size
                "clips_digest": clips.digest(),
                "smoke": args.smoke,
            },
            thresholds={name: bank.threshold(name) for name in bank.machines},
            kind=args.kind,
            adapter=system.adapter,
        )
        print(f"{args.output_dir}: {len(bank.machines)} machines, {len(references)} references")  # noqa: T201 - the script's answer
    close(embedder.accelerator)
