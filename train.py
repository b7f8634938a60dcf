"""Fine-tune an encoder on normal recordings and write a complete detector.

accelerate launch train.py --recipe recipes/quickstart.yaml --data_dir DATA --output_dir runs/mine
accelerate launch train.py --recipe recipes/unis_3.yaml --data_dir DATA --output_dir runs/unis_3 \
    --encoder_checkpoints nearfar_eat=EAT.pt nearfar_beats=BEATs.pt --members_dir runs
python train.py --recipe recipes/unis_3.yaml --output_dir runs/smoke --smoke
"""

import logging
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator, PartialState

from assembly.autoencoders import fit_autoencoders
from assembly.embedding import Embedder
from assembly.encoders import build_encoder
from assembly.fine_tuning import fine_tune
from assembly.fusions import check_fusion, fuse_features, fuse_scores
from assembly.guards import guard_machines
from assembly.labels import make_labels
from assembly.members import is_finished, member_arguments
from assembly.models import build_model
from assembly.run_folder import write_detector
from assembly.smoke import prepare_smoke, score_smoke
from assembly.training_clips import training_clips
from modeling import AsdFeatureExtractor
from modeling.calibration import check_rule
from nearfar.accelerators import build_accelerator, seed_all
from nearfar.arguments import given_arguments, parse_arguments, script
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
    if args.kind in FUSION_ARGUMENTS:
        train_fusion(args, given)
    else:
        train_system(args)
    if args.smoke:
        score_smoke(args)
    PartialState().destroy_process_group()


def train_system(args: TrainArguments) -> None:
    """Train a system that is no fusion, and write its run folder."""
    check_rule(args.threshold, args.threshold_quantile)  # before training, not after it
    accelerator = build_accelerator(args)
    seed_all(args)
    if args.kind == "autoencoder":
        train_baseline(args, accelerator)
    else:
        train_model(args, accelerator)


def train_model(args: TrainArguments, accelerator: Accelerator) -> None:
    """Train an encoder behind a head, and write its run folder."""
    clips = training_clips(args, accelerator)
    encoder = build_encoder(args)
    feature_extractor = AsdFeatureExtractor(
        sampling_rate=encoder.config.sampling_rate,
        min_num_samples=encoder.num_samples_per_patch,
        peak_normalize=args.peak_normalize,
    )
    guard = guard_machines(args, clips.references, feature_extractor, accelerator)
    strengths = {machine: decision.strength for machine, decision in guard.items()}
    embedder = Embedder.of(args, feature_extractor, accelerator, strengths)
    labels = make_labels(args, encoder, clips.references, clips.rows, embedder)
    model = build_model(args, encoder, labels)
    validation_share = 0.0 if args.no_training else args.validation_share
    judging = validation_rows(
        labels.labels[: len(clips.references)], share=validation_share, seed=args.seed
    )
    adapter = None
    if not args.no_training:
        model, adapter = fine_tune(
            model, clips.references, clips.rows, labels, judging, embedder, args
        )
    write_detector(
        args,
        model,
        clips,
        embedder,
        guard=guard,
        num_classes=labels.num_classes,
        num_validation=int(judging.sum()),
        adapter=adapter,
    )


def train_baseline(args: TrainArguments, accelerator: Accelerator) -> None:
    """Train an official baseline, and write its run folder."""
    clips = training_clips(args, accelerator)
    model, feature_extractor = fit_autoencoders(args, clips.references, clips.rows, accelerator)
    embedder = Embedder.of(args, feature_extractor, accelerator, strengths={})
    write_detector(args, model, clips, embedder, guard={})


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
