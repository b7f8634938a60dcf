"""What does distillation gain, on factories that neither teacher nor student has heard?

Each encoder is pre-trained in full on one large factory, as `benchmarks.lora` does (give the same
output_dir, and what that has pre-trained is taken), and made noise-aware by distill.py on the
simulated pairs of another. Then, for each factory seed, the frozen encoder is scored by 1-NN as the
quickstart's recipe pools it: on near, on near after complex least squares, and noise-aware. Beside
the official score stands how far hidden states lie from those of the clean clips. What is done is
not done again.

python -m benchmarks.noise_aware --output_dir runs/lora
"""

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import lora
from benchmarks.quickstart import FACTORY, ROOT, TRAIN, run_steps
from data_scripts.factory.presets import PresetName
from data_scripts.near_far import decoded, known, load_near_far
from modeling import FRONT_ENDS, AsdFeatureExtractor, NoiseAwareModel
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.checkpoints import latest_checkpoint
from nearfar.distillation import Distillation, PairCollator
from nearfar.evaluation import METRICS_FILE
from nearfar.files import read_json, write_json
from nearfar.training_clips import LabelledClips

# Nine machines of another of the quickstart's tuning factories, each clip with its clean one.
PAIRS_SEED = 1
DISTILLATION = ["--max_steps", 600, "--learning_rate", 1e-3, "--warmup_steps", 30]
DISTILLATION += ["--crop_seconds", 1.5, "--ema_decay", 0.99, "--num_attention_heads", 4]
SYSTEMS: dict[str, list[Any]] = {  # what the first is ahead of stands behind it
    "noise-aware": ["--front_end", "near"],
    "near": ["--front_end", "near"],
    "cancelled near": ["--front_end", "complex_least_squares"],
}
ERRORS_FILE = "hidden_state_errors.json"
EVERY = 5  # of a factory's training clips, every fifth is measured
BATCH_SIZE = 8


@dataclass(kw_only=True)
class NoiseAwareArguments:
    """Arguments of benchmarks.noise_aware."""

    output_dir: Path = field(metadata={"help": "Holds what is simulated, trained and scored."})
    seeds: list[int] = field(
        default_factory=lambda: list(range(200, 205)),
        metadata={"help": "Factory seeds; the training seed is the same. 0 to 7 are for tuning."},
    )
    encoders: list[str] = field(
        default_factory=lambda: list(lora.ENCODERS),
        metadata={"help": f"Any of {', '.join(lora.ENCODERS)}."},
    )
    preset: PresetName = field(
        default="easy", metadata={"help": "Of the pairs and of what is scored."}
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep the simulated recordings."})


def main() -> None:
    """Pre-train, distil, work through the seeds, then print a table for each encoder."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(NoiseAwareArguments)
    check_names("encoders", args.encoders, lora.ENCODERS)
    folder = args.output_dir.resolve()
    untrained = [name for name in args.encoders if not is_done(lora.encoder_folder(folder, name))]
    if untrained:
        lora.pretrain(untrained, folder, factory=lora.PRETRAINING_FACTORY, keep_data=args.keep_data)
    untaught = [
        name for name in args.encoders if not is_done(student_folder(folder, name, args.preset))
    ]
    if untaught:
        distil(untaught, folder, args)
    for seed in args.seeds:
        pending = [
            name
            for name in args.encoders
            if not (seed_folder(folder, name, seed, args.preset) / ERRORS_FILE).is_file()
        ]
        if pending:
            evaluate(pending, seed, folder, args)
    for name in args.encoders:
        print(f"\n{name}\n{format_encoder(name, args.seeds, folder, args.preset)}")


def distil(names: Sequence[str], folder: Path, args: NoiseAwareArguments) -> None:
    """Make encoders noise-aware, all of them by the same pairs."""
    data = folder / "data" / f"pairs_{args.preset}"
    size = [*lora.PRETRAINING_FACTORY, "--preset", args.preset, "--components"]
    steps = [lora.simulation(data, PAIRS_SEED, size)]
    for name in names:
        student = student_folder(folder, name, args.preset)
        steps.append(distillation(data, lora.encoder_folder(folder, name), student, PAIRS_SEED))
    run_steps(steps, folder / "cache")
    if not args.keep_data:
        shutil.rmtree(data)


def distillation(data: Path, teacher: Path, student: Path, seed: int) -> list[Any]:
    """Return the command that makes an encoder noise-aware; it goes on where it was interrupted."""
    command = [sys.executable, ROOT / "distill.py", "--data_dir", data, *DISTILLATION]
    command += ["--encoder_checkpoint", teacher, "--output_dir", student, "--seed", seed]
    if latest_checkpoint(student / "trainer_state"):
        command += ["--resume_from_checkpoint", "latest"]
    return command


def evaluate(names: Sequence[str], seed: int, folder: Path, args: NoiseAwareArguments) -> None:
    """Score the systems of some encoders on one factory, then measure their hidden states."""
    data = folder / "data" / f"seed_{seed:03d}_{args.preset}"
    size = [*FACTORY, "--preset", args.preset, "--components"]
    steps, runs = [lora.simulation(data, seed, size)], []
    for name in names:
        for system, options in SYSTEMS.items():
            scores = score_folder(folder, name, seed, args.preset, system)
            if (scores / METRICS_FILE).is_file():
                continue
            run = scores.with_name(f"{scores.name}_run")
            student = student_folder(folder, name, args.preset)
            encoder = student if system == "noise-aware" else lora.encoder_folder(folder, name)
            train = [*TRAIN, "--data_dir", data, "--output_dir", run, "--seed", seed, *options]
            train += ["--no_training", "--encoder_config", "none", "--encoder_checkpoint", encoder]
            score = [sys.executable, ROOT / "score.py", "--model", run, "--data_dir", data]
            steps += [train, [*score, "--output_dir", scores]]
            runs.append(run)
    run_steps(steps, folder / "cache")
    for name in names:
        student = NoiseAwareModel.from_pretrained(student_folder(folder, name, args.preset))
        errors = hidden_state_errors(student, data, folder / "cache")
        write_json(seed_folder(folder, name, seed, args.preset) / ERRORS_FILE, errors)
    for used in runs if args.keep_data else [*runs, data, folder / "cache"]:
        shutil.rmtree(used, ignore_errors=True)


@torch.no_grad()
def hidden_state_errors(student: NoiseAwareModel, data: Path, cache: Path) -> dict[str, float]:
    """Return how far each system's hidden states are from those of the clean clips.

    Args:
        student: Noise-aware; without far it is the encoder that the other systems have.
        data: A factory with its components; its training clips are measured.
        cache: Of `datasets`.
    """
    loaded = load_near_far(data, clean=True, cache_dir=cache)["train"]
    rows = known(loaded)
    clips = LabelledClips(decoded(loaded), np.zeros(len(rows), dtype=np.int64), rows)
    collate = PairCollator(AsdFeatureExtractor(min_num_samples=student.num_samples_per_patch))
    model = Distillation(student).eval()
    cancel = FRONT_ENDS["complex_least_squares"]()
    errors: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    chosen = list(range(0, len(clips), EVERY))
    for first in range(0, len(chosen), BATCH_SIZE):
        batch = collate([clips[i] for i in chosen[first : first + BATCH_SIZE]])
        near, far, mask = batch["near_values"], batch["far_values"], batch["attention_mask"]
        clean = model.hear(batch["clean_values"], mask)
        heard = {
            "noise-aware": student(
                near, far, attention_mask=mask, output_hidden_states=True
            ).hidden_states,
            "near": model.hear(near, mask),
            "cancelled near": model.hear(cancel(near, far, mask.sum(dim=1)), mask),
        }
        for name, states in heard.items():
            errors[name] += model.errors(states, clean, mask).mean(dim=1).tolist()
    return {name: float(np.mean(values)) for name, values in errors.items()}


def is_done(encoder: Path) -> bool:
    """Return whether an encoder's folder is whole."""
    return (encoder / lora.ENCODER_FILE).is_file()


def student_folder(folder: Path, name: str, preset: str) -> Path:
    """Return where a noise-aware encoder is."""
    return folder / name / f"noise_aware_{preset}"


def seed_folder(folder: Path, name: str, seed: int, preset: str) -> Path:
    """Return where the results on one factory are."""
    return student_folder(folder, name, preset) / f"seed_{seed:03d}"


def score_folder(folder: Path, name: str, seed: int, preset: str, system: str) -> Path:
    """Return where the scores of a system are."""
    return seed_folder(folder, name, seed, preset) / system.replace(" ", "_")


def format_encoder(name: str, seeds: Sequence[int], folder: Path, preset: str) -> str:
    """Return the table of an encoder: official scores, then hidden-state errors."""
    scores = [
        {system: score_folder(folder, name, seed, preset, system) for system in SYSTEMS}
        for seed in seeds
    ]
    errors = [read_json(seed_folder(folder, name, seed, preset) / ERRORS_FILE) for seed in seeds]
    return f"{lora.format_folders(seeds, scores)}\n{format_errors(errors)}"


def format_errors(errors: Sequence[Mapping[str, float]]) -> str:
    """Return a line: the mean error of each system over factories, and its share of near's."""
    means = {name: float(np.mean([found[name] for found in errors])) for name in SYSTEMS}
    cells = [f"{name} {mean:.4f} ({mean / means['near']:.0%})" for name, mean in means.items()]
    return f"hidden-state error (of near's): {', '.join(cells)}"


if __name__ == "__main__":
    script(main)
