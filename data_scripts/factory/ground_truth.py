"""What the names of an evaluation set do not tell, in the files of the official evaluator."""

from collections.abc import Sequence
from pathlib import Path

from nearfar.schema import CONDITIONS, DOMAINS

from ..whole_files import whole_file  # noqa: TID252 - a wheel renames the parent
from .machines import Machine
from .plan import PlannedClip


def write_ground_truth(output_dir: Path, machine: Machine, tests: Sequence[PlannedClip]) -> None:
    """Write ground_truth_{data,domain,attributes}/ground_truth_<machine>_section_00_test.csv.

    The files have no header. Each line has a clip's anonymous name and 1 for an anomaly, 1 for the
    target domain, or the name that tells all, without ".wav".

    Args:
        output_dir: Gets the three folders.
        machine: Who is heard.
        tests: Its test clips.
    """
    columns = {
        "data": [str(CONDITIONS.index(clip.condition)) for clip in tests],
        "domain": [str(DOMAINS.index(clip.domain)) for clip in tests],
        "attributes": [clip.name(machine).format().removesuffix(".wav") for clip in tests],
    }
    for kind, values in columns.items():
        folder = output_dir / f"ground_truth_{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"ground_truth_{machine.machine_type}_section_00_test.csv"
        rows = sorted(
            f"{clip.file_name(machine)},{value}" for clip, value in zip(tests, values, strict=True)
        )
        with whole_file(path) as partial:
            partial.write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")
