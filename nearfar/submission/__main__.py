"""Command line of the submission package."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nearfar.files import read_json

from .meta import development_results, meta_template, read_meta
from .package import System, evaluation_clips, package_faults, package_notes, write_package


def main(argv: Sequence[str] | None = None) -> int:
    """Write, check or begin a submission; return 0, 1 where there are faults, 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m nearfar.submission")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="name each fault of a package")
    check.add_argument("path", type=Path, help="folder that holds task2/, or a zip of it")
    write = commands.add_parser("write", help="write a package of score folders, and check it")
    write.add_argument("--scores", type=Path, nargs="+", required=True, help="one per system")
    write.add_argument("--meta", type=Path, nargs="+", required=True, help="one, or one per system")
    write.add_argument(
        "--development", type=Path, nargs="+", help="score folders of the development set"
    )
    write.add_argument("--team", required=True, help="<Surname>_<INST>")
    write.add_argument("--report", type=Path, help="the technical report, a PDF")
    write.add_argument("--output_dir", type=Path, required=True, help="gets task2/ and the zip")
    for command in (check, write):
        command.add_argument(
            "--clips", type=Path, help="the evaluation set, whose test clips must all be there"
        )
    commands.add_parser("template", help="print meta data to fill in")
    args = parser.parse_args(argv)
    try:
        if args.command == "template":
            print(meta_template(), end="")  # noqa: T201 - the answer
            return 0
        expected = None if args.clips is None else evaluation_clips(args.clips)
        if args.command == "check":
            return _check(args.path, expected)
        path = write_package(
            args.output_dir,
            _systems(args.scores, args.meta, args.development),
            team=args.team,
            report=args.report,
            expected=expected,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's last words
        return 2
    print(f"written to {path}")  # noqa: T201 - the answer
    return 0


def _check(path: Path, expected: dict[tuple[str, int], list[str]] | None) -> int:
    faults = package_faults(path, expected=expected)
    lines = [*faults, *(f"note: {note}" for note in package_notes(path))]
    count = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}" if faults else "no fault"
    print("\n".join([*lines, count]))  # noqa: T201 - the answer
    return 1 if faults else 0


def _systems(
    scores: Sequence[Path], metas: Sequence[Path], development: Sequence[Path] | None
) -> list[System]:
    for name, given in (("meta", metas), ("development", development or scores)):
        if len(given) not in (1, len(scores)):
            raise ValueError(f"--{name} takes one or {len(scores)}, got {len(given)}.")
    systems = []
    for number, folder in enumerate(scores):
        meta = read_meta(metas[min(number, len(metas) - 1)])
        if development is not None:
            metrics = read_json(development[min(number, len(development) - 1)] / "metrics.json")
            meta["results"] = {"development_dataset": development_results(metrics)}
        systems.append(System(folder, meta))
    return systems


if __name__ == "__main__":
    sys.exit(main())
