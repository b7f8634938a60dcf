"""Ground truth of evaluation sets, from the files that the organisers publish after a challenge.

Two forms: the evaluator's folders ground_truth_data and ground_truth_domain, or the baseline's
eval_data_list_<year>.csv.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from nearfar.schema import CONDITIONS, DOMAINS, GroundTruth, machine_name

from .clip_names import ClipName

Truth = dict[str, dict[str, GroundTruth]]

_FILE = re.compile(r"ground_truth_(?P<machine_type>.+)_section_(?P<section>[0-9]{2})_test\.csv")
_FLAGS = ("0", "1")


def read_ground_truth(path: str | Path, *, year: int) -> Truth:
    """Return machine ("2026/fan/00") -> file name -> what it does not tell.

    Args:
        path: The folder that holds ground_truth_data and ground_truth_domain, each with
            ground_truth_<machine>_section_<nn>_test.csv and lines `<clip>.wav,<0 or 1>` without a
            header (1 = anomaly, 1 = target); or an eval_data_list_<year>.csv, whose lines are a
            machine alone, then `<clip>.wav,<its full name>.wav` (2020: with a last column 0 or 1).
        year: Of the recordings. 2020 has no domains.

    Raises:
        FileNotFoundError: There is no such file, or the folder holds none.
        ValueError: A line is not as it should be, a clip comes twice, or the two folders do not
            tell the same clips; the file is named.
    """
    path = Path(path)
    if path.is_file():
        return _read_list(path, year)
    files = sorted((path / "ground_truth_data").glob("ground_truth_*_test.csv"))
    if not files:
        raise FileNotFoundError(
            f"{path} holds no ground_truth_data/ground_truth_<machine>_section_00_test.csv. Give "
            "the folder above ground_truth_data, or an eval_data_list_<year>.csv."
        )
    truth: Truth = {}
    for file in files:
        match = _FILE.fullmatch(file.name)
        if match is None:
            raise ValueError(f"{file}: expected a name ground_truth_<machine>_section_00_test.csv.")
        machine = machine_name(year, match["machine_type"], int(match["section"]))
        conditions = _read_flags(file)
        domains: dict[str, int | None] = dict.fromkeys(conditions)
        if year != 2020:
            domains |= _read_flags(path / "ground_truth_domain" / file.name)
        if odd := sorted(conditions.keys() ^ domains.keys()):
            raise ValueError(
                f"{file}: ground_truth_data and ground_truth_domain tell {len(odd)} clips apart, "
                f"such as {odd[0]}. Fetch both again."
            )
        truth[machine] = {
            name: _known(conditions[name], domains[name]) for name in sorted(conditions)
        }
    return truth


def _known(condition: int, domain: int | None) -> GroundTruth:
    return GroundTruth(CONDITIONS[condition], None if domain is None else DOMAINS[domain])


def _read_flags(path: Path) -> dict[str, int]:
    """Return file name -> 0 or 1."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Fetch the evaluator's folder again.")
    flags: dict[str, int] = {}
    for number, row in _rows(path):
        if len(row) != 2 or row[1] not in _FLAGS:
            raise ValueError(f"{path}, line {number}: {row} is not a clip's name and 0 or 1.")
        name = row[0]
        if name in flags:
            raise ValueError(f"{path}, line {number}: {name} comes a second time.")
        flags[name] = int(row[1])
    return flags


def _read_list(path: Path, year: int) -> Truth:
    """Read an eval_data_list: machines, and below each its clips with their full names."""
    truth: Truth = {}
    machine_type = None
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        if len(row) == 1:
            machine_type = row[0]
            continue
        if machine_type is None or len(row) > 3 or (len(row) == 3 and row[2] not in _FLAGS):
            raise ValueError(
                f"{where}: {row} is not a machine alone, nor a clip's name and its full name "
                "below one."
            )
        try:
            clip, full = ClipName.parse(row[0]), ClipName.parse(row[1])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        condition = CONDITIONS[int(row[2])] if len(row) == 3 else full.condition
        if condition is None:
            raise ValueError(f"{where}: {row[1]} does not tell the condition.")
        clips = truth.setdefault(machine_name(year, machine_type, clip.section), {})
        if row[0] in clips:
            raise ValueError(f"{where}: {row[0]} comes a second time.")
        clips[row[0]] = GroundTruth(condition, full.domain)
    return truth


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and cells, without empty lines and empty last cells."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text. Fetch it again.") from error
    for number, row in enumerate(csv.reader(lines), start=1):
        cells = [cell.strip() for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield number, cells
