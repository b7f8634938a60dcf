"""How fast the factory simulates: seconds of sound per second of one core, for each family.

python -m benchmarks.factory --preset challenge
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_scripts.factory import (
    PRESETS,
    FactoryArguments,
    PlannedClip,
    machine_of,
    scene_of,
    simulate_clip,
    simulate_factory,
)
from data_scripts.factory.presets import PresetName
from nearfar.arguments import parse_arguments, script

SECONDS = 10.0


@dataclass(kw_only=True)
class SpeedArguments:
    """Arguments of benchmarks.factory."""

    preset: PresetName = field(default="challenge", metadata={"help": "What is simulated."})
    clips: int = field(default=10, metadata={"help": "Clips timed per family."})
    seed: int = field(default=0, metadata={"help": "Of the factory."})


def main() -> None:
    """Time every family, then a small factory as it is written to disk; print the ratios."""
    args = parse_arguments(SpeedArguments)
    families = PRESETS[args.preset].families
    arguments = FactoryArguments(len(families), args.seed, seconds=SECONDS, preset=args.preset)
    print(f"preset {args.preset}, {args.clips} clips of {SECONDS:g} s each; core seconds")
    print(f"{'machine':<14}{'place (s)':>10}{'clip (s)':>10}{'x real time':>13}")
    per_clip = []
    for number in range(len(families)):
        start = time.process_time()
        scene_of(args.seed, number, "source", args.preset)
        place = time.process_time() - start
        simulate_clip(arguments, planned(number, 0))  # fills what is kept for a place
        start = time.process_time()
        for index in range(1, 1 + args.clips):
            simulate_clip(arguments, planned(number, index))
        per_clip.append((time.process_time() - start) / args.clips)
        name = machine_of(args.seed, number, args.preset).machine_type
        print(f"{name:<14}{place:>10.2f}{per_clip[-1]:>10.3f}{SECONDS / per_clip[-1]:>13.0f}")
    print(f"{'mean':<14}{'':>10}{np.mean(per_clip):>10.3f}{SECONDS / np.mean(per_clip):>13.0f}")
    print(f"with rooms and files: {written_ratio(args):.0f} x real time per core")


def planned(number: int, index: int) -> PlannedClip:
    """Return a clip with a fault, which costs the most."""
    return PlannedClip(number, "test", "source", "anomaly", index)


def written_ratio(args: SpeedArguments) -> float:
    """Write one machine's clips as the command does; return seconds of sound per core second."""
    counts = {"source_train": 8 * args.clips, "target_train": args.clips, "test_per_group": 1}
    num_clips = 9 * args.clips + 4
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        simulate_factory(
            Path(folder),
            num_machines=1,
            seed=args.seed + 1,  # another factory: nothing is kept from above
            seconds=SECONDS,
            preset=args.preset,
            **counts,
        )
        return num_clips * SECONDS / (time.process_time() - start)


if __name__ == "__main__":
    script(main)
