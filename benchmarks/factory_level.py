"""How hard a preset is: the yardsticks that are published for 2026, on factories by seed.

For each seed: simulate a factory and score nearest neighbours on log-mels and the organisers'
autoencoder on it, trained as its recipe says. Then a line per yardstick: official score, source
AUC, target AUC and pAUC, the mean over machines, with its standard deviation over factories; below
it each factory, and the lowest and the highest machine. What is done is not done again; several of
these commands may run at once, and each takes the seeds that are free.

python -m benchmarks.factory_level --output_dir runs/factory_level
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.objective_tables import Row, read_tables
from benchmarks.objectives import ObjectivesArguments, result_file, work
from benchmarks.quickstart import ROOT
from data_scripts.factory.presets import PresetName
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.files import read_json

YARDSTICKS = ROOT / "benchmarks" / "factory_level.yaml"
# Development set of 2026, harmonic means over its seven machines, in per cent, as the organisers
# publish them with their baseline: official, source AUC, target AUC, pAUC.
PUBLISHED = {
    "baseline MSE": (56.66, 67.18, 50.85, 54.37),
    "baseline MAHALA": (57.66, 66.46, 54.24, 53.91),
}


@dataclass(kw_only=True)
class LevelArguments:
    """Arguments of benchmarks.factory_level."""

    output_dir: Path = field(metadata={"help": "Holds one folder per seed."})
    seeds: list[int] = field(
        default_factory=lambda: [80, 81, 82], metadata={"help": "Factory seeds."}
    )
    yardsticks: list[str] = field(
        default_factory=lambda: ["log-mel 1-NN", "baseline MSE"],
        metadata={"help": "Rows of factory_level.yaml."},
    )
    preset: PresetName = field(default="challenge", metadata={"help": "What is simulated."})
    machines: int = field(default=3, metadata={"help": "Per factory."})
    source_train: int = field(default=990, metadata={"help": "Training clips, source domain."})
    target_train: int = field(default=10, metadata={"help": "Training clips, target domain."})
    test_per_group: int = field(
        default=50, metadata={"help": "Test clips per domain and condition."}
    )
    seconds: float | None = field(
        default=None, metadata={"help": "Length of a clip; None: the preset's."}
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep the simulated recordings."})
    print_only: bool = field(default=False, metadata={"help": "Only print what is done."})


def main() -> None:
    """Work through seeds and yardsticks, then print the table."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(LevelArguments)
    _, rows = read_tables([YARDSTICKS])
    check_names("yardsticks", args.yardsticks, rows)
    rows = {name: rows[name] for name in args.yardsticks}
    sizes = {key: value for key, value in asdict(args).items() if key != "yardsticks"}
    factories = ObjectivesArguments(**sizes)
    failures = [] if args.print_only else work(rows, factories)
    print("\n".join(format_level(rows, factories)))
    if failures:
        raise ValueError("These have no score: " + "; ".join(failures))


def format_level(rows: dict[str, Row], args: ObjectivesArguments) -> list[str]:
    """Return the lines of the table; a yardstick counts over the factories on which it is done."""
    length = "the preset's seconds" if args.seconds is None else f"{args.seconds:g} s"
    lines = [
        f"preset {args.preset}: factories {', '.join(map(str, args.seeds))} of {args.machines} "
        f"machines, {args.source_train} + {args.target_train} references, {args.test_per_group} "
        f"test clips a group, {length}; per cent (standard deviation over factories)",
        f"{'yardstick':<24}"
        + "".join(f"{head:>16}" for head in ("official", "source AUC", "target AUC", "pAUC")),
    ]
    for name in rows:
        done = {
            seed: read_json(path)
            for seed in args.seeds
            if (path := result_file(args, seed, name)).is_file()
        }
        if not done:
            lines.append(f"{name:<24}{'-':>16}")
            continue
        machines = {seed: 100 * np.array([*of["machines"].values()]) for seed, of in done.items()}
        values = np.array(
            [[100 * of["official_score"], *machines[seed].mean(0)] for seed, of in done.items()]
        )
        spread = values.std(0, ddof=1) if len(values) > 1 else [None] * values.shape[1]
        cells = [
            f"{mean:.2f}" + ("" if deviation is None else f" ({deviation:.2f})")
            for mean, deviation in zip(values.mean(0), spread, strict=True)
        ]
        lines.append(f"{name:<24}" + "".join(f"{cell:>16}" for cell in cells))
        for seed, row in zip(done, values, strict=True):
            lines.append(f"{f'  factory {seed}':<24}" + "".join(f"{v:>16.2f}" for v in row))
        every = np.concatenate([*machines.values()])
        for label, row in (("lowest", every.min(0)), ("highest", every.max(0))):
            cells = [f"{value:.2f}" for value in row]
            lines.append(f"{f'  {label} machine':<24}{'':>16}" + "".join(f"{c:>16}" for c in cells))
        if name in PUBLISHED:
            published = "".join(f"{value:>16.2f}" for value in PUBLISHED[name])
            lines.append(f"{'  2026, harmonic means':<24}{published}")
    return lines


if __name__ == "__main__":
    script(main)
