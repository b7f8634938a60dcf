"""Fine-tune an encoder on normal recordings and write a complete detector.

accelerate launch train.py --recipe recipes/quickstart.yaml --data_dir DATA --output_dir runs/mine
"""

import logging

from assembly.autoencoders import fit_autoencoders
from assembly.embedding import Embedder
from assembly.encoders import build_encoder
from assembly.fine_tuning import fine_tune
from assembly.guards import guard_machines
from assembly.labels import make_labels
from assembly.models import build_model
from assembly.run_folder import write_detector
from assembly.training_clips import training_clips
from modeling import AsdFeatureExtractor
from modeling.calibration import check_rule
from nearfar.accelerators import build_accelerator, seed_all
from nearfar.arguments import parse_arguments, script
from nearfar.splits import validation_rows
from nearfar.training_arguments import TrainArguments, check_arguments


def main() -> None:
    """Read clips, train, fill the reference bank, write the run folder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(TrainArguments)
    check_arguments(args)
    check_rule(args.threshold, args.threshold_quantile)  # before training, not after it
    if args.kind == "autoencoder":
        train_baseline(args)
    else:
        train_model(args)


def train_model(args: TrainArguments) -> None:
    """Train an encoder behind a head, and write its run folder."""
    accelerator = build_accelerator(args)
    seed_all(args)
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


def train_baseline(args: TrainArguments) -> None:
    """Train an official baseline, and write its run folder."""
    accelerator = build_accelerator(args)
    seed_all(args)
    clips = training_clips(args, accelerator)
    model, feature_extractor = fit_autoencoders(args, clips.references, clips.rows, accelerator)
    embedder = Embedder.of(args, feature_extractor, accelerator, strengths={})
    write_detector(args, model, clips, embedder, guard={})


if __name__ == "__main__":
    script(main)
