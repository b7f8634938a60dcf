"""Command line of the simulated factory."""

import argparse
import os
import sys
from collections.abc import Sequence

from .presets import PRESETS
from .simulate import simulate_factory


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate a factory; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.factory",
        description="Simulate machines that two microphones hear, in the layout of DCASE Task 2. "
        "An interrupted run is finished by the same command.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", required=True, help="folder of the factory")
    parser.add_argument("--machines", type=int, default=3, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of machines, rooms and clips")
    parser.add_argument(
        "--source_train", type=int, default=990, help="training clips, source domain"
    )
    parser.add_argument(
        "--target_train", type=int, default=10, help="training clips, target domain"
    )
    parser.add_argument(
        "--test_per_group", type=int, default=50, help="test clips per domain and condition"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="length of a clip; without it 10 in easy, and 6 to 16 by machine in challenge",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="easy", help="how hard it is")
    parser.add_argument(
        "--eval_machines",
        type=int,
        default=0,
        help="further machines, with anonymous test clips and their ground truth",
    )
    parser.add_argument("--noise_dir", help="folder of recordings to be heard as noise")
    parser.add_argument(
        "--quieter_db", type=float, default=0.0, help="the noise is quieter by so much"
    )
    parser.add_argument(
        "--components",
        action="store_true",
        help="also write what near hears of the machine alone and of the noise alone",
    )
    parser.add_argument(
        "--num_proc",
        "--num_workers",
        dest="num_workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; the result does not depend on it",
    )
    args = parser.parse_args(argv)
    try:
        folder = simulate_factory(
            args.output_dir,
            num_machines=args.machines,
            seed=args.seed,
            source_train=args.source_train,
            target_train=args.target_train,
            test_per_group=args.test_per_group,
            seconds=args.seconds,
            preset=args.preset,
            eval_machines=args.eval_machines,
            noise_dir=args.noise_dir,
            quieter_db=args.quieter_db,
            components=args.components,
            num_workers=args.num_workers,
            show_progress=True,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's last words
        return 2
    machines = args.machines + args.eval_machines
    print(f"Simulated {machines} machine(s) in {folder}")  # noqa: T201 - the last line
    return 0


if __name__ == "__main__":
    sys.exit(main())
