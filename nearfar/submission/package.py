"""The package: task2/<label>/ with score files and meta data for each system, and all in a zip."""

import copy
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nearfar.files import whole_folder

from .meta import LABEL, meta_faults, read_meta, write_meta
from .score_files import clip_names, list_faults, score_files

MAX_SYSTEMS = 4
TASK = "task2"
_KINDS = ("anomaly_score", "decision_result")

Clips = Mapping[tuple[str, int], Sequence[str]]


class System(NamedTuple):
    """One system of a submission.

    Attributes:
        scores: A score folder: of the evaluation set, with its CSVs.
        meta: Its meta data; the label is filled in.
    """

    scores: Path
    meta: Mapping[str, Any]


def write_package(
    output_dir: Path,
    systems: Sequence[System],
    *,
    team: str,
    report: Path | None = None,
    expected: Clips | None = None,
) -> Path:
    """Write and check a submission; return its zip.

    Args:
        output_dir: Gets `task2/` and `<team>_task2.zip`, whole or not at all.
        systems: One to four, in the order of their numbers.
        team: `<Surname>_<INST>`, such as "Kret_Cooper".
        report: The technical report, a PDF.
        expected: Per (machine type, section), the test clips' base names, if they are at hand.

    Raises:
        ValueError: No system, a fifth one, a team or report that cannot be named so, or what
            `check_package` finds; nothing is written then.
    """
    if not 1 <= len(systems) <= MAX_SYSTEMS:
        raise ValueError(
            f"{len(systems)} systems came; a submission has 1 to {MAX_SYSTEMS}. Leave some out."
        )
    if LABEL.fullmatch(f"{team}_{TASK}_1") is None:
        raise ValueError(f"team={team!r} is not of the form <Surname>_<INST>, as 'Kret_Cooper'.")
    if report is not None and not _is_pdf(report):
        raise ValueError(f"{report} is not a PDF file.")
    archive = f"{team}_{TASK}.zip"
    with whole_folder(output_dir, last=archive) as partial:
        for number, system in enumerate(systems, start=1):
            label = f"{team}_{TASK}_{number}"
            folder = partial / TASK / label
            folder.mkdir(parents=True)
            for machine_type, section in score_files(system.scores):
                for kind in _KINDS:
                    name = f"{kind}_{machine_type}_section_{section:02d}_test.csv"
                    if (system.scores / name).is_file():  # if not, the check says so
                        shutil.copyfile(system.scores / name, folder / name)
            meta = copy.deepcopy(dict(system.meta))
            meta["submission"] = {"label": label, **(meta.get("submission") or {})}
            write_meta(folder / f"{label}.meta.yaml", meta)
        if report is not None:
            shutil.copyfile(report, partial / TASK / _report_name(team))
        check_package(partial, expected=expected)
        _zip(partial / TASK, partial / archive)
    return output_dir / archive


def check_package(path: Path, *, expected: Clips | None = None) -> None:
    """Raise ValueError with every fault of a package, one a line."""
    if faults := package_faults(path, expected=expected):
        raise ValueError("\n".join(faults))


def package_faults(path: Path, *, expected: Clips | None = None) -> list[str]:
    """Return a sentence on each fault of a submission; empty if all is well.

    Args:
        path: The folder that holds `task2/`, that folder itself, or a zip that holds it.
        expected: Per (machine type, section), the test clips' base names. Without it the systems
            are compared with each other, and gaps in the clips' numbers are faults.

    Raises:
        FileNotFoundError: There is no such folder or file.
    """
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            except zipfile.BadZipFile as error:
                return [f"{path.name} is no whole zip file: {error}."]
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed otherwise
                return [f"{path.name} cannot be unpacked ({error}). Zip it without a password."]
            strays = sorted(entry.name for entry in Path(folder).iterdir() if entry.name != TASK)
            faults = [f"{name} does not belong into a submission's zip." for name in strays]
            if not (Path(folder) / TASK).is_dir():
                return [f"{path.name} does not hold {TASK}/, where all of a submission lies."]
            return faults + package_faults(Path(folder), expected=expected)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no {path}. Give a folder that holds {TASK}/, or a zip.")
    root = path / TASK if (path / TASK).is_dir() else path
    systems = sorted(entry for entry in root.iterdir() if entry.is_dir())
    if not systems:
        return [f"{root.name}/ holds no system: expected folders <Surname>_<INST>_{TASK}_<1..4>."]
    faults = []
    if len(systems) > MAX_SYSTEMS:
        names = ", ".join(system.name for system in systems[MAX_SYSTEMS:])
        faults.append(
            f"There are {len(systems)} systems, but {MAX_SYSTEMS} may be: {names} is too many."
        )
    faults += _label_faults(systems)
    teams = {match["team"] for s in systems if (match := LABEL.fullmatch(s.name))}
    wanted = {_report_name(team) for team in teams}
    for entry in sorted(root.iterdir()):
        if entry.is_file() and entry.name not in wanted and entry.suffix != ".zip":
            faults.append(f"{root.name}/{entry.name} does not belong into a submission.")
        elif entry.name in wanted and not _is_pdf(entry):
            faults.append(f"{root.name}/{entry.name} is not a PDF file.")
    first: dict[tuple[str, int], set[str]] | None = None
    for system in systems:
        clips = {key: clip_names(system, *key) for key in score_files(system)}
        due: Clips = {key: sorted(names) for key, names in clips.items()}
        if expected is not None:
            due = expected
        elif first is not None:
            due = {key: sorted(names) for key, names in first.items()}
        first = first or clips
        found = _system_faults(system, due)
        if expected is None:
            found += [fault for key, names in clips.items() for fault in _gap_faults(*key, names)]
        faults += [f"{system.name}: {fault}" for fault in found]
    return faults


def package_notes(path: Path) -> list[str]:
    """Return what is allowed but probably forgotten."""
    root = path / TASK if (path / TASK).is_dir() else path
    if not path.is_dir():
        return []
    notes = []
    if not list(root.glob("*.pdf")):
        notes.append(f"There is no technical report (<team>_{TASK}_1.technical_report.pdf) yet.")
    for system in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        counts = {key: len(clip_names(system, *key)) for key in score_files(system)}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{machine} {count}" for (machine, _), count in counts.items())
            notes.append(
                f"{system.name}: the machines have different numbers of clips ({listed}). Give "
                "--clips to check them against the evaluation set."
            )
    return notes


def evaluation_clips(folder: Path) -> dict[tuple[str, int], list[str]]:
    """Return (machine type, section) -> base names of the test clips of an evaluation set.

    Args:
        folder: Holds <machine>/test/*.wav below eval_data/raw, eval_data or itself.

    Raises:
        FileNotFoundError: It holds none.
        ValueError: A name does not begin with "section_<nn>_" or "id_<nn>_".
    """
    for below in ("eval_data/raw", "eval_data", "."):
        wavs = sorted((folder / below).glob("*/test/*.wav"))
        if wavs:
            break
    else:
        raise FileNotFoundError(f"{folder} holds no test clips: expected <machine>/test/*.wav.")
    clips: dict[tuple[str, int], list[str]] = {}
    for wav in wavs:
        words = wav.name.split("_")
        if words[0] not in ("section", "id") or len(words) < 3 or not words[1].isdecimal():
            raise ValueError(f"{wav.name} is not a test clip's name such as section_00_0000.wav.")
        clips.setdefault((wav.parts[-3], int(words[1])), []).append(wav.name)
    return clips


def _label_faults(systems: Sequence[Path]) -> list[str]:
    faults, teams = [], []
    for system in systems:
        match = LABEL.fullmatch(system.name)
        if match is None:
            faults.append(f"{system.name} is not a label <Surname>_<INST>_{TASK}_<1..4>.")
            continue
        teams.append(match["team"])
        if not 1 <= int(match["number"]) <= MAX_SYSTEMS or match["number"] != str(
            int(match["number"])
        ):
            faults.append(f"{system.name}: systems have the numbers 1 to {MAX_SYSTEMS}.")
    if len(set(teams)) > 1:
        faults.append(f"The systems are of several teams: {', '.join(sorted(set(teams)))}.")
    return faults


def _system_faults(system: Path, due: Clips) -> list[str]:
    there = score_files(system)
    faults = [] if there else ["there is no anomaly_score_<machine>_section_00_test.csv."]
    faults += list_faults(system, due)
    for machine_type, section in sorted(key for key, names in due.items() if not names):
        faults.append(f"the files of {machine_type} section {section:02d} name no clip.")
    for machine_type, section in sorted(there.keys() - due.keys()):
        faults.append(f"{machine_type} section {section:02d} is no machine of this submission.")
    meta_name = f"{system.name}.meta.yaml"
    known = {f"{kind}_{m}_section_{s:02d}_test.csv" for m, s in there for kind in _KINDS}
    for entry in sorted(system.iterdir()):
        if entry.name not in known | {meta_name}:
            faults.append(f"{entry.name} does not belong into a submission.")
    if not (system / meta_name).is_file():
        return [*faults, f"{meta_name} is missing."]
    try:
        meta = read_meta(system / meta_name)
    except ValueError as error:
        return [*faults, str(error)]
    return faults + [f"{meta_name}: {f}" for f in meta_faults(meta, label=system.name)]


def _gap_faults(machine_type: str, section: int, names: set[str]) -> list[str]:
    """Return a fault where clips up to the last number are missing."""
    pattern = {name.rpartition("_")[0] for name in names}
    numbers = [name.rpartition("_")[2].removesuffix(".wav") for name in names]
    if len(pattern) != 1 or not all(number.isdecimal() for number in numbers):
        return []  # revealed names, which are not numbered alone
    given, width = {int(number) for number in numbers}, max(map(len, numbers))
    missing = sorted(set(range(max(given))) - given)  # they count from 0
    if not missing:
        return []
    name = f"{pattern.pop()}_{missing[0]:0{width}d}.wav"
    return [
        f"{machine_type} section {section:02d} lacks {len(missing)} of its numbers, such as {name}."
    ]


def _is_pdf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(5) == b"%PDF-"


def _report_name(team: str) -> str:
    return f"{team}_{TASK}_1.technical_report.pdf"


def _zip(folder: Path, path: Path) -> None:
    """Pack a folder under its own name, the same bytes each time."""
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = file.relative_to(folder.parent).as_posix()
                info = zipfile.ZipInfo(name)  # of 1980: a time would make each zip another
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, file.read_bytes())
