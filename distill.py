"""Teach an encoder to use the far microphone, from simulated pairs, before it is fine-tuned.

python -m data_scripts.factory --output_dir PAIRS --machines 9 --components
accelerate launch distill.py --data_dir PAIRS --encoder_checkpoint ENCODER --output_dir runs/na
accelerate launch train.py --recipe recipes/beyond_na.yaml --encoder_checkpoint runs/na ...
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import Accelerator
from torch import nn

from assembly.encoders import load_encoder, saved_type
from data_scripts.near_far import decoded, known, load_near_far
from modeling import (
    AsdConfig,
    AsdFeatureExtractor,
    AsdModel,
    NoiseAwareConfig,
    NoiseAwareModel,
)
from nearfar.accelerators import build_accelerator, seed_all
from nearfar.arguments import parse_arguments, script
from nearfar.checkpoints import asked_checkpoint
from nearfar.distillation import (
    Distillation,
    PairCollator,
    check_distillation,
    validate_distillation,
)
from nearfar.files import whole_folder, write_json
from nearfar.splits import held_out_rows
from nearfar.training import train
from nearfar.training_clips import LabelledClips
from nearfar.training_options import TrainingOptions, check_training

ENCODER_FILE = "config.json"  # the last of an encoder's folder
RESULT = "distillation.json"
LOCAL_ARGUMENTS = ("data_dir", "output_dir", "resume_from_checkpoint", "report_to", "num_proc")


@dataclass(kw_only=True)
class DistillArguments(TrainingOptions):
    """Arguments of distill.py."""

    data_dir: Path = field(metadata={"help": "A simulated factory, written with --components."})
    encoder_checkpoint: Path = field(
        metadata={"help": "The teacher: the authors' .pt, an encoder's folder, or a run folder."}
    )
    output_dir: Path = field(metadata={"help": "The encoder's folder to write."})
    machine_types: list[str] | None = field(default=None, metadata={"help": "None takes all."})
    num_attention_heads: int = field(default=8, metadata={"help": "With which near hears far."})
    feed_forward_factor: int = field(default=3, metadata={"help": "Of what follows, in sizes."})
    fusion_dropout: float = field(default=0.1, metadata={"help": "After both, in training."})
    ema_decay: float = field(default=0.999, metadata={"help": "Moving average of the weights."})
    validation_share: float = field(
        default=0.1,
        metadata={"help": "Of each machine's training clips, held out to judge by."},
    )
    selection_metric: Literal["hidden_state_error"] = "hidden_state_error"
    num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare data."})
    deterministic: bool = field(
        default=False, metadata={"help": "Refuse what a GPU does not do twice in the same way."}
    )
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Trade time for memory in training."}
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    report_to: list[str] = field(
        default_factory=lambda: ["jsonl"], metadata={"help": "jsonl, and accelerate's trackers."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "'latest', or a folder under trainer_state."}
    )

    encoder_config = None  # never from scratch: a random teacher teaches nothing

    @property
    def state_dir(self) -> Path:
        """Where training states are saved."""
        return self.output_dir / "trainer_state"


def main() -> None:
    """Read pairs, teach, write the noise-aware encoder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(DistillArguments)
    check_training(args)
    check_distillation(args)
    accelerator = build_accelerator(args)
    seed_all(args)
    clips = load_pairs(args, accelerator)
    model = Distillation(build_student(args))
    feature_extractor = AsdFeatureExtractor(
        sampling_rate=model.student.config.sampling_rate,
        min_num_samples=model.student.num_samples_per_patch,
    )
    training_clips, held_out = split_pairs(args, clips)
    collator = PairCollator(feature_extractor)
    train(
        model,
        training_clips,
        feature_extractor,
        args,
        accelerator,
        state_dir=args.state_dir,
        validation=held_out,
        collator=collator,
        validator=validate_distillation,
        resume_from=asked_checkpoint(args.state_dir, args.resume_from_checkpoint),
    )
    errors = validate_distillation(
        model, held_out, collator, accelerator, batch_size=args.train_batch_size
    )
    if accelerator.is_main_process:
        write_encoder(args, model.student, errors)
        print(  # noqa: T201 - the script's answer
            f"{args.output_dir}: held-out hidden-state error {errors['hidden_state_error']:.4f}, "
            f"of near alone {errors['near_error']:.4f}"
        )
    accelerator.end_training()


def load_pairs(args: DistillArguments, accelerator: Accelerator) -> Any:  # noqa: ANN401 - a Dataset
    """Return the training clips with their clean ones; the main process prepares the cache."""
    with accelerator.main_process_first():
        return load_near_far(
            args.data_dir,
            machine_types=args.machine_types,
            subsets=["dev"],
            num_proc=args.num_proc,
            clean=True,
        )["train"]


def build_student(args: DistillArguments) -> NoiseAwareModel:
    """Return the noise-aware encoder around the teacher, which it still equals."""
    teacher = load_teacher(args)
    if isinstance(teacher, NoiseAwareModel):
        raise ValueError(
            f"{args.encoder_checkpoint} holds an encoder that is noise-aware already. Give the one "
            "that it was made of."
        )
    config = NoiseAwareConfig(
        encoder_config=teacher.config,
        num_attention_heads=args.num_attention_heads,
        feed_forward_factor=args.feed_forward_factor,
        fusion_dropout=args.fusion_dropout,
    )
    student = NoiseAwareModel(config)
    student.load_encoder(teacher)
    if args.activation_checkpointing:
        student.activation_checkpointing_enable()
    return student


def load_teacher(args: DistillArguments) -> Any:  # noqa: ANN401 - one of ENCODERS
    """Return the pre-trained encoder: as train.py takes it, or that of a detector's run folder."""
    path = args.encoder_checkpoint
    if saved_type(path) == AsdConfig.model_type:
        return AsdModel.from_pretrained(path).encoder
    return load_encoder(args)


def split_pairs(
    args: DistillArguments,
    clips: Any,  # noqa: ANN401 - a Dataset
) -> tuple[LabelledClips, LabelledClips]:
    """Return the pairs that teach, and those that are held out to be judged by."""
    rows = known(clips)
    held_out = held_out_rows(
        [row["machine"] for row in rows],
        [row["domain"] for row in rows],
        share=args.validation_share,
        seed=args.seed,
    )
    if not held_out.any():
        raise ValueError(
            f"validation_share={args.validation_share} holds no clip out. Give a larger share, or "
            "a factory with 4 clips or more of each machine and domain."
        )
    pairs = LabelledClips(decoded(clips), np.zeros(len(rows), dtype=np.int64), rows)
    return pairs.take(~held_out), pairs.take(held_out)


def write_encoder(args: DistillArguments, student: nn.Module, errors: dict[str, float]) -> None:
    """Write the encoder's folder, whole or not at all."""
    values = {
        f.name: getattr(args, f.name)
        for f in dataclasses.fields(args)
        if f.name not in LOCAL_ARGUMENTS
    }
    values["encoder_checkpoint"] = args.encoder_checkpoint.name
    with whole_folder(args.output_dir, last=ENCODER_FILE) as partial:
        student.save_pretrained(partial)
        write_json(partial / RESULT, {"held_out": errors, "arguments": values})


if __name__ == "__main__":
    script(main)
