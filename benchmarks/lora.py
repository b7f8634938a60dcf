"""Does a LoRA fine-tune pay on factories that the encoder has never heard?

Each encoder is pre-trained in full on one large factory. Then, for each factory seed: score it as
it is, fine-tuned by LoRA, and fine-tuned in full, all by the quickstart's recipe. What is done is
not done again.

python -m benchmarks.lora --output_dir runs/lora
"""

import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare import compare, format_rows
from benchmarks.quickstart import FACTORY, ROOT, TRAIN, format_seeds, run_steps
from modeling import AsdModel
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.evaluation import METRICS_FILE
from nearfar.files import whole_folder

SMALL = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
# As in the quickstart's recipe, a spectrogram's mean lies about three times its unit below that of
# the clips, so that a patch keeps its level.
ENCODERS: dict[str, dict[str, Any]] = {
    "beats": SMALL
    | {
        "model_type": "nearfar_beats",
        "num_hidden_layers": 2,
        "patch_embedding_size": 128,
        "conv_position_kernel": 32,
        "spectrogram_mean": 9.0,
        "spectrogram_std": 1.2,
    },
    "eat": SMALL
    | {
        "model_type": "nearfar_eat",
        "num_hidden_layers": 2,
        "spectrogram_mean": -9.2,
        "spectrogram_std": 0.8,
    },
    "fisher": SMALL
    | {
        "model_type": "nearfar_fisher",
        "num_hidden_layers": 2,
        "spectrogram_mean": -4.9,
        "spectrogram_std": 0.4,
    },
}
# Nine machines of one of the quickstart's tuning factories; no test clip of them is ever scored.
PRETRAINING_SEED = 0
PRETRAINING_FACTORY = ["--machines", 9, "--source_train", 100, "--target_train", 10]
PRETRAINING_FACTORY += ["--test_per_group", 1, "--seconds", 6]
PRETRAINING = ["--max_steps", 600]
FINE_TUNING = ["--max_steps", 150, "--warmup_steps", 20]
SYSTEMS: dict[str, list[Any]] = {  # what the first is ahead of stands behind it
    "LoRA": [*FINE_TUNING, "--lora_rank", 8, "--lora_alpha", 16, "--learning_rate", 1e-3],
    "frozen": ["--no_training"],
    "full fine-tune": [*FINE_TUNING, "--learning_rate", 3e-4],
}
ENCODER_FILE = "config.json"  # the last of an encoder's folder


@dataclass(kw_only=True)
class LoraArguments:
    """Arguments of benchmarks.lora."""

    output_dir: Path = field(metadata={"help": "Holds what is simulated, trained and scored."})
    seeds: list[int] = field(
        default_factory=lambda: list(range(200, 210)),
        metadata={"help": "Factory seeds; the training seed is the same. 0 to 7 are for tuning."},
    )
    encoders: list[str] = field(
        default_factory=lambda: list(ENCODERS), metadata={"help": f"Any of {', '.join(ENCODERS)}."}
    )
    systems: list[str] = field(
        default_factory=lambda: list(SYSTEMS),
        metadata={"help": f"Any of {', '.join(SYSTEMS)}; the first is compared with the others."},
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep the simulated recordings."})


def main() -> None:
    """Pre-train the encoders, work through the seeds, then print a table for each encoder."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(LoraArguments)
    check_names("encoders", args.encoders, ENCODERS)
    check_names("systems", args.systems, SYSTEMS)
    folder = args.output_dir.resolve()
    untrained = [
        name
        for name in args.encoders
        if not (encoder_folder(folder, name) / ENCODER_FILE).is_file()
    ]
    if untrained:
        pretrain(untrained, folder, factory=PRETRAINING_FACTORY, keep_data=args.keep_data)
    for seed in args.seeds:
        pending = [
            (name, system)
            for name in args.encoders
            for system in args.systems
            if not (score_folder(folder, name, seed, system) / METRICS_FILE).is_file()
        ]
        if pending:
            evaluate(pending, seed, folder, keep_data=args.keep_data)
    for name in args.encoders:
        print(f"\n{name}\n{format_encoder(name, args.seeds, args.systems, folder)}")


def pretrain(
    names: Sequence[str],
    folder: Path,
    *,
    factory: Sequence[Any],
    training: Sequence[Any] = PRETRAINING,
    keep_data: bool,
) -> None:
    """Train encoders from scratch, all of them, and save each as a folder of its own.

    Args:
        names: Of `ENCODERS`.
        folder: Gets the encoders, see `encoder_folder`.
        factory: Options of data_scripts.factory for the machines that are heard.
        training: Options of train.py that win over the quickstart's recipe.
        keep_data: Keep the simulated recordings.
    """
    data = folder / "data" / "pretraining"
    run_steps([simulation(data, PRETRAINING_SEED, factory)], folder / "cache")
    for name in names:
        run = folder / name / "pretraining"
        train = [*TRAIN, "--data_dir", data, "--output_dir", run, *training]
        train += ["--encoder_config", json.dumps(ENCODERS[name]), "--seed", PRETRAINING_SEED]
        if any((run / "trainer_state").glob("step_*")):  # it was interrupted
            train += ["--resume_from_checkpoint", "latest"]
        run_steps([train], folder / "cache")
        with whole_folder(encoder_folder(folder, name), last=ENCODER_FILE) as partial:
            AsdModel.from_pretrained(run).encoder.save_pretrained(partial)
    if not keep_data:
        shutil.rmtree(data)


def evaluate(
    pending: Sequence[tuple[str, str]], seed: int, folder: Path, *, keep_data: bool
) -> None:
    """Train and score some systems of some encoders on one factory."""
    data = folder / "data" / f"seed_{seed:03d}"
    steps, runs = [simulation(data, seed, FACTORY)], []
    for name, system in pending:
        scores = score_folder(folder, name, seed, system)
        run = scores.with_name(f"{scores.name}_run")
        train = [*TRAIN, "--data_dir", data, "--output_dir", run, "--seed", seed]
        train += ["--encoder_config", "none", "--encoder_checkpoint", encoder_folder(folder, name)]
        score = [sys.executable, ROOT / "score.py", "--model", run, "--data_dir", data]
        steps += [[*train, *SYSTEMS[system]], [*score, "--output_dir", scores]]
        runs.append(run)
    run_steps(steps, folder / "cache")
    for used in runs if keep_data else [*runs, data]:
        shutil.rmtree(used)


def simulation(data: Path, seed: int, size: Sequence[Any]) -> list[Any]:
    """Return the command that simulates a factory; what is there is not simulated again."""
    command = [sys.executable, "-m", "data_scripts.factory", "--output_dir", data]
    return [*command, "--seed", seed, *size]


def encoder_folder(folder: Path, name: str) -> Path:
    """Return where a pre-trained encoder is."""
    return folder / name / "encoder"


def score_folder(folder: Path, name: str, seed: int, system: str) -> Path:
    """Return where the scores of a system are."""
    return folder / name / f"seed_{seed:03d}" / system.replace(" ", "_")


def format_encoder(name: str, seeds: Sequence[int], systems: Sequence[str], folder: Path) -> str:
    """Return the table of an encoder: over the seeds, or of the only one."""
    folders = [{s: score_folder(folder, name, seed, s) for s in systems} for seed in seeds]
    return format_folders(seeds, folders)


def format_folders(seeds: Sequence[int], folders: Sequence[Mapping[str, Path]]) -> str:
    """Return the table of systems over the seeds, or of the only one.

    Args:
        seeds: Of the factories.
        folders: For each of them, system -> its score folder.
    """
    results = [{"systems": compare(scored)} for scored in folders]
    return format_rows(results[0]["systems"]) if len(seeds) == 1 else format_seeds(seeds, results)


if __name__ == "__main__":
    script(main)
