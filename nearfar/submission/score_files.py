"""The challenge's two CSV files per machine: write them, read them, and check a folder of them.

`anomaly_score_<machine>_section_00_test.csv` has one row `file name,score` per test clip and no
header, `decision_result_<machine>_section_00_test.csv` one row `file name,0 or 1`. The official
evaluator sorts the rows and compares only their number, so it takes wrong names in silence;
`check_scores` does not.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from nearfar.files import whole_file

_SCORES, _DECISIONS = "anomaly_score", "decision_result"
_MACHINE_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FILE_NAME = re.compile(r'[^/\\,"\x00-\x1f\x7f]+')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_FILE = re.compile(
    rf"(?P<kind>{_SCORES}|{_DECISIONS})_(?P<machine_type>[A-Za-z0-9][A-Za-z0-9_-]*)"
    r"_section_(?P<section>[0-9]{2})_test\.csv"
)


def write_anomaly_scores(
    folder: Path,
    machine_type: str,
    section: int,
    file_names: Sequence[str],
    anomaly_scores: ArrayLike,
) -> Path:
    """Write one section's anomaly scores, sorted by file name, and return the file's path.

    Args:
        folder: Made if it does not exist.
        machine_type: Such as "fan".
        section: 0..99.
        file_names: N base names of the test clips.
        anomaly_scores: (N,) finite, higher is more anomalous. They read back bit for bit.

    Raises:
        ValueError: A name could not be a file's base name or comes twice, a score is not finite, or
            names and scores differ in number.
    """
    scores = np.asarray(anomaly_scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{machine_type}: {int(np.sum(~np.isfinite(scores)))} of {scores.size} anomaly scores "
            "are NaN or infinite, which the evaluator cannot rank."
        )
    path = _path(folder, _SCORES, machine_type, section)
    return _write(path, file_names, [repr(score) for score in scores.ravel().tolist()])


def write_decisions(
    folder: Path, machine_type: str, section: int, file_names: Sequence[str], decisions: ArrayLike
) -> Path:
    """Write one section's decisions, sorted by file name, and return the file's path.

    Args:
        folder: Made if it does not exist.
        machine_type: Such as "fan".
        section: 0..99.
        file_names: N base names of the test clips.
        decisions: (N,) bool or 0/1, 1 = called anomalous.

    Raises:
        ValueError: A name could not be a file's base name or comes twice, a decision is neither 0
            nor 1, or names and decisions differ in number.
    """
    values = np.asarray(decisions).ravel().tolist()
    odd = [value for value in values if value not in (0, 1)]
    if odd:
        raise ValueError(f"{machine_type}: a decision is 0 or 1, but {odd[0]!r} is among these.")
    path = _path(folder, _DECISIONS, machine_type, section)
    return _write(path, file_names, [str(int(value)) for value in values])


def read_anomaly_scores(path: Path) -> dict[str, float]:
    """Return {file name: anomaly score}, in the file's order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is not a name and a finite number, or a name comes twice.
    """
    rows, faults = _parse(path, _SCORES)
    _raise_if(faults)
    return dict(rows)


def read_decisions(path: Path) -> dict[str, int]:
    """Return {file name: 0 or 1}, in the file's order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is not a name and a 0 or 1, or a name comes twice.
    """
    rows, faults = _parse(path, _DECISIONS)
    _raise_if(faults)
    return {name: int(value) for name, value in rows}


def check_scores(folder: Path, expected: Mapping[tuple[str, int], Sequence[str]]) -> None:
    """Check that a folder holds exactly the scores and decisions that were asked for.

    Args:
        folder: What `write_anomaly_scores` and `write_decisions` were given.
        expected: Per (machine type, section), the base names of its test clips.

    Raises:
        ValueError: Something is wrong; the message lists every fault, one a line.
    """
    _raise_if(list_faults(folder, expected))


def score_files(folder: Path) -> dict[tuple[str, int], set[str]]:
    """Return (machine type, section) -> the kinds of file there are, by the files' names."""
    found: dict[tuple[str, int], set[str]] = {}
    for path in sorted(Path(folder).glob("*.csv")):
        if path.is_file() and (match := _FILE.fullmatch(path.name)):
            key = (match["machine_type"], int(match["section"]))
            found.setdefault(key, set()).add(match["kind"])
    return found


def clip_names(folder: Path, machine_type: str, section: int) -> set[str]:
    """Return the clips that a machine's files name, readable or not."""
    names: set[str] = set()
    for kind in (_SCORES, _DECISIONS):
        path = _path(folder, kind, machine_type, section)
        if path.is_file():
            names |= {name for name, _ in _parse(path, kind)[0]}
    return names


def list_faults(folder: Path, expected: Mapping[tuple[str, int], Sequence[str]]) -> list[str]:
    """Return what `check_scores` complains about, one sentence per fault; empty if all is well."""
    faults = []
    for (machine_type, section), file_names in expected.items():
        tables = []
        for kind in (_SCORES, _DECISIONS):
            path = _path(folder, kind, machine_type, section)
            if not path.is_file():
                faults.append(f"{path.name} is missing.")
                continue
            rows, row_faults = _parse(path, kind)
            given = {name for name, _ in rows}
            faults += row_faults
            faults += _name_faults(path, "lacks", set(file_names) - given)
            faults += _name_faults(path, "holds unknown", given - set(file_names))
            tables.append(dict(rows))
        if len(tables) == 2:
            faults += _threshold_faults(machine_type, section, *tables)
    return faults


def _path(folder: Path, kind: str, machine_type: str, section: int) -> Path:
    if not _MACHINE_TYPE.fullmatch(machine_type):
        raise ValueError(
            f"{machine_type!r} cannot be part of a file name; a machine type has letters, digits, "
            "'_' and '-' only."
        )
    if not 0 <= section <= 99:
        raise ValueError(f"Section {section} of {machine_type} is not in 0..99.")
    return Path(folder) / f"{kind}_{machine_type}_section_{section:02d}_test.csv"


def _write(path: Path, file_names: Sequence[str], values: Sequence[str]) -> Path:
    """Write the rows sorted by name, to a temporary name first."""
    if len(file_names) != len(values):
        raise ValueError(f"{path.name}: {len(file_names)} file names but {len(values)} values.")
    odd = [name for name in file_names if not _is_base_name(name)]
    if odd:
        raise ValueError(
            f"{path.name}: {odd[0]!r} is not a clip's base name such as 'section_00_0000.wav'."
        )
    repeated = _repeated(file_names)
    if repeated:
        raise ValueError(f"{path.name}: {_listed(repeated)} came more than once.")
    rows = sorted(zip(file_names, values, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        text = "".join(f"{name},{value}\n" for name, value in rows)
        partial.write_text(text, encoding="utf-8", newline="\n")
    return path


def _parse(path: Path, kind: str) -> tuple[list[tuple[str, float]], list[str]]:
    """Return the rows that can be read and a sentence on each that cannot."""
    rows: list[tuple[str, float]] = []
    faults = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return rows, [f"{path.name} is not UTF-8 text."]
    expected = "0 or 1" if kind == _DECISIONS else "a finite number"
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, start=1):
        name, _, cell = line.partition(",")
        value = _decision(cell) if kind == _DECISIONS else _finite(cell)
        if not _is_base_name(name) or value is None:
            faults.append(
                f"{path.name}, line {number}: {line!r} is not a clip's base name and {expected}."
            )
        if _is_base_name(name):
            # A row whose value is bad still names its clip: it is not missing as well.
            rows.append((name, math.nan if value is None else value))
    faults += _name_faults(path, "repeats", _repeated(name for name, _ in rows))
    return rows, faults


def _finite(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):  # float() takes more than other readers: 1_000, and spaces
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _decision(text: str) -> float | None:
    return float(text) if text in ("0", "1") else None


def _threshold_faults(
    machine_type: str, section: int, scores: Mapping[str, float], decisions: Mapping[str, float]
) -> list[str]:
    """Return a fault where no one threshold on the scores gives these decisions."""
    usable = [name for name in scores if math.isfinite(scores[name]) and name in decisions]
    called = [name for name in usable if decisions[name] == 1]
    passed = [name for name in usable if decisions[name] == 0]
    if not called or not passed:
        return []
    lowest, highest = min(called, key=scores.__getitem__), max(passed, key=scores.__getitem__)
    if scores[lowest] > scores[highest]:
        return []
    return [
        f"{machine_type} section {section:02d}: no one threshold explains the decisions: "
        f"{lowest!r} (score {scores[lowest]!r}) is 1, {highest!r} (score {scores[highest]!r}) is 0."
    ]


def _name_faults(path: Path, problem: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    return [f"{path.name} {problem} {_listed(found)}."] if found else []


def _is_base_name(name: str) -> bool:
    return bool(_FILE_NAME.fullmatch(name)) and name not in (".", "..")


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _listed(names: Sequence[str]) -> str:
    """Return the first three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _raise_if(faults: Sequence[str]) -> None:
    if faults:
        raise ValueError("\n".join(faults))
