"""The demo, and the same over many factories: does fine-tuning pay?

For each factory seed: simulate three machines, fine-tune the quickstart system, score it, the same
encoder untrained, and log-mel 1-NN on the same clips: of the near channel, and after the same front
end. A seed that is done is not done again.

python -m benchmarks.quickstart --seeds 100 101 102 --output_dir runs/quickstart
"""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare import METRICS, compare, format_rows
from nearfar.arguments import parse_arguments, script
from nearfar.files import read_json, whole_folder, write_json
from nearfar.hub import RUN_FILE
from nearfar.intervals import mean_interval

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
FACTORY = [
    "--machines",
    "3",
    "--source_train",
    "100",
    "--target_train",
    "10",
    "--test_per_group",
    "25",
    "--seconds",
    "6",
]
TRAIN = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1]
TRAIN += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
TRAIN += ["--num_cpu_threads_per_process", torch.get_num_threads()]  # the launcher sets 1
TRAIN += [ROOT / "train.py", "--recipe", RECIPE]
SYSTEMS = ("fine-tuned", "untrained encoder", "log-mel 1-NN", "cancelled log-mel 1-NN")
RESULT = "result.json"


@dataclass(kw_only=True)
class QuickstartArguments:
    """Arguments of benchmarks.quickstart."""

    seeds: list[int] = field(metadata={"help": "Factory seeds; the training seed is the same."})
    output_dir: Path = field(metadata={"help": "Holds one folder per seed."})
    demo_dir: Path | None = field(
        default=None, metadata={"help": "Also keep the first seed's run folder here."}
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep the simulated recordings."})


def main() -> None:
    """Work through the seeds, then print the table."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(QuickstartArguments)
    results = []
    for seed in args.seeds:
        folder = args.output_dir.resolve() / f"seed_{seed:03d}"
        demo_dir = args.demo_dir if seed == args.seeds[0] else None
        done = (folder / RESULT).is_file() and (demo_dir is None or (demo_dir / RUN_FILE).is_file())
        if not done:
            evaluate_seed(seed, folder, demo_dir=demo_dir)
            if not (args.keep_data or args.demo_dir):
                shutil.rmtree(folder / "data")
        results.append(read_json(folder / RESULT))
    if len(results) == 1:
        print(format_rows(results[0]["systems"]))
        print(f"factory seed {args.seeds[0]}, {results[0]['seconds']:.0f} s in all")
    else:
        print(format_seeds(args.seeds, results))


def evaluate_seed(seed: int, folder: Path, *, demo_dir: Path | None) -> None:
    """Simulate, train, score and compare one factory; write `result.json` last."""
    start = time.monotonic()
    data, cache = folder / "data", folder / "cache"
    run_dir = demo_dir.resolve() if demo_dir else folder / "fine_tuned"
    scores = {name: folder / "scores" / name.replace(" ", "_") for name in SYSTEMS}
    python = [sys.executable]
    untrained = folder / "untrained"
    log_mel = [*python, "-m", "benchmarks.log_mel", "--data_dir", data]
    log_mel_of = {"log-mel 1-NN": "near", "cancelled log-mel 1-NN": "complex_least_squares"}
    train = [*TRAIN, "--data_dir", data, "--seed", seed]
    score = [*python, ROOT / "score.py", "--data_dir", data]
    steps: list[list[Any]] = [
        [*python, "-m", "data_scripts.factory", "--output_dir", data, "--seed", seed, *FACTORY],
        [*train, "--output_dir", run_dir],
        [*score, "--model", run_dir, "--output_dir", scores["fine-tuned"]],
        [*train, "--no_training", "--output_dir", untrained],
        [*score, "--model", untrained, "--output_dir", scores["untrained encoder"]],
        *(
            [*log_mel, "--front_end", front_end, "--output_dir", scores[name]]
            for name, front_end in log_mel_of.items()
        ),
    ]
    run_steps(steps, cache)
    with whole_folder(folder, last=RESULT) as partial:
        result = {"seed": seed, "seconds": time.monotonic() - start, "systems": compare(scores)}
        write_json(partial / RESULT, result)


def run_steps(steps: Sequence[Sequence[Any]], cache: Path) -> None:
    """Run commands one after the other, with a private cache of `datasets` that is removed."""
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache.resolve())}
    for step in steps:
        command = [str(word) for word in step]
        print("$", " ".join(word.replace(sys.executable, "python") for word in command), flush=True)
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
    shutil.rmtree(cache, ignore_errors=True)


def format_seeds(seeds: Sequence[int], results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table over seeds: mean and spread of each system, and how far the first is ahead.

    Args:
        seeds: Of the factories.
        results: One for each seed; its `systems` are rows of `compare`.
    """
    names = [row["system"] for row in results[0]["systems"]]
    official = np.array(
        [[row["official_score"] for row in result["systems"]] for result in results]
    )  # (seeds, systems)
    lines = ["official score".ljust(16) + "".join(f"{name:>24}" for name in names)]
    for seed, values in zip(seeds, official, strict=True):
        lines.append(f"factory {seed:<8}" + "".join(f"{100 * value:>24.2f}" for value in values))
    mean, deviation = 100 * official.mean(axis=0), 100 * official.std(axis=0, ddof=1)
    cells = [f"{m:.2f} ({d:.2f})" for m, d in zip(mean, deviation, strict=True)]
    lines.append(f"{'mean (std)':<16}" + "".join(f"{cell:>24}" for cell in cells))
    for key in METRICS:
        values = np.array([[row[key] for row in result["systems"]] for result in results])
        cells = [f"{100 * value:.2f}" for value in values.mean(axis=0)]
        lines.append(f"{key:<16}" + "".join(f"{cell:>24}" for cell in cells))
    for index, name in enumerate(names[1:], start=1):
        difference = 100 * (official[:, 0] - official[:, index])
        mean_ahead, half = mean_interval(difference)
        lines.append(
            f"{names[0]} minus {name}: {mean_ahead:+.2f}, paired 95 % interval over "
            f"{len(difference)} factories {mean_ahead - half:+.2f} to "
            f"{mean_ahead + half:+.2f}; ahead on {(difference > 0).sum()}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    script(main)
