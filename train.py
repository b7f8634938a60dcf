"""Fine-tune an encoder on normal recordings and write a complete detector.

accelerate launch train.py --recipe recipes/quickstart.yaml --data_dir DATA --output_dir runs/mine
accelerate launch train.py --recipe recipes/unis_3.yaml --data_dir DATA --output_dir runs/unis_3 \
    --encoder_checkpoints nearfar_eat=EAT.pt nearfar_beats=BEATs.pt --members_dir runs
python train.py --recipe recipes/unis_3.yaml --output_dir runs/smoke --smoke
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator, PartialState

from assembly.autoencoders import fit_autoencoders
from assembly.cross_fits import cross_fit
from assembly.embedding import Embedder
from assembly.encoders import build_encoder
from assembly.fine_tuning import fine_tune
from assembly.fusions import check_fusion, fuse_features, fuse_scores
from assembly.guards import guard_machines
from assembly.labels import make_labels
from assembly.members import is_finished, member_arguments
from assembly.models import build_model
from assembly.run_folder import System, write_detector
from assembly.smoke import prepare_smoke, score_smoke
from assembly.training_clips import Clips, training_clips
from modeling import AsdFeatureExtractor
from modeling.calibration import check_rule
from nearfar.accelerators import build_accelerator, seed_all
from nearfar.arguments import given_arguments, parse_arguments, script
from nearfar.hub import push_run
from nearfar.licenses import stated_license
from nearfar.publishing import open_repository
from nearfar.splits import validation_rows
from nearfar.training_arguments import FUSION_ARGUMENTS, TrainArguments, check_arguments


def main() -> None:
    """Read clips, train, fill the reference bank, write the run folder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(TrainArguments)
    given = given_arguments(TrainArguments)
    if args.smoke:
        args = prepare_smoke(args, given)
    check_arguments(args)
    pushing = args.push_to_hub and PartialState().is_main_process
    options = {"private": args.hub_private_repo, "token": args.hub_token}
    if pushing:  # before training, not after it
        open_repository(args.hub_name, **options)
    if args.kind in FUSION_ARGUMENTS:
        train_fusion(args, given)
    else:
        train_system(args)
    if args.smoke:
        score_smoke(args)
    if pushing:
        print(push_run(args.output_dir, args.hub_name, **options))  # noqa: T201 - the script's answer
    PartialState().destroy_process_group()


def train_system(args: TrainArguments) -> None:
    """Train a system that is no fusion, and write its run folder."""
    check_rule(args.threshold, args.threshold_quantile)  # before training, not after it
    accelerator = build_accelerator(args)
    seed_all(args)
    clips = training_clips(args, accelerator)
    fit_system = fit_baseline if args.kind == "autoencoder" else fit_model
    system = fit_system(args, clips.references, clips.rows, accelerator)
    folds = cross_fit(args, fit_system, system, clips)
    write_detector(args, system, clips, folds=folds)


def fit_model(
    args: TrainArguments,
    references: Clips,
    rows: Sequence[dict[str, Any]],
    accelerator: Accelerator,
) -> System:
    """Train an encoder behind a head."""
    encoder = build_encoder(args)
    args.encoder_license = args.encoder_license or stated_license(
        args.encoder_checkpoint, encoder.config.model_type
    )
    feature_extractor = AsdFeatureExtractor(
        sampling_rate=encoder.config.sampling_rate,
        min_num_samples=encoder.num_samples_per_patch,
        peak_normalize=args.peak_normalize,
        clip_seconds=args.clip_seconds,
    )
    guard = guard_machines(args, references, feature_extractor, accelerator)
    strengths = {machine: decision.strength for machine, decision in guard.items()}
    embedder = Embedder.of(args, feature_extractor, accelerator, strengths)
    labels = make_labels(args, encoder, references, rows, embedder)
    model = build_model(args, encoder, labels)
    if args.no_training:
        return System(model, embedder, guard, labels.num_classes)
    judging = validation_rows(
        labels.labels[: len(references)], share=args.validation_share, seed=args.seed
    )
    model, adapter = fine_tune(model, references, rows, labels, judging, embedder, args)
    return System(model, embedder, guard, labels.num_classes, int(judging.sum()), adapter)


def fit_baseline(
    args: TrainArguments,
    references: Clips,
    rows: Sequence[dict[str, Any]],
    accelerator: Accelerator,
) -> System:
    """Train an official baseline."""
    model, feature_extractor = fit_autoencoders(args, references, rows, accelerator)
    return System(model, Embedder.of(args, feature_extractor, accelerator, strengths={}), guard={})


def train_fusion(args: TrainArguments, given: Mapping[str, Any]) -> None:
    """Train the members that are missing, and write the run folder of their fusion.

    Args:
        args: The fusion's.
        given: What stands on the command line, which goes to its members.
    """
    members = member_arguments(args, given)
    check_fusion(args, members)
    for member in members:
        if not is_finished(member):
            train_system(member)
    accelerator = Accelerator()
    if args.kind == "fusion":
        fuse_scores(args, members, accelerator)
    else:
        fuse_features(args, members, accelerator)


if __name__ == "__main__":
    script(main)
