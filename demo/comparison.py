"""Many test clips at once: a zip in the official layout, or loose clips of one machine."""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile

from data_scripts.archives import DownloadError, Transfer, unpack
from data_scripts.clip_files import find_clips
from data_scripts.clip_names import ClipName
from data_scripts.near_far import decoded, load_near_far
from demo.detector import Detector
from demo.recordings import display_name
from nearfar.evaluation import evaluate_scores
from nearfar.plots import plot_machine
from nearfar.score_table import ScoreTable

TEST_FOLDERS = ("test", "source_test", "target_test")  # 2021 has one for each domain
MAX_CLIPS = 600
MAX_UNPACKED_BYTES = 400 << 20
MAX_CLIP_SECONDS = 60.0

Progress = Callable[[float], None]


class ComparisonError(ValueError):
    """Clips that cannot be compared; the message is for the person who gave them."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of many clips.

    Attributes:
        table: One row per clip.
        metrics: As `evaluate_scores` returns them.
        plots: Machine -> PNG of histogram and ROC.
        csv: The table as a file, below the folder that `compare` was given.
    """

    table: ScoreTable
    metrics: dict[str, Any]
    plots: dict[str, bytes]
    csv: Path


def compare(
    detector: Detector,
    files: Sequence[Path],
    folder: Path,
    *,
    machine: str | None = None,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Score test clips and evaluate them as far as their names allow.

    Args:
        detector: Its own bank must hold every machine.
        files: One zip with `<machine>/test/*.wav` somewhere in it (training clips are passed over),
            or loose wav files with official names.
        folder: Gets the CSV; whatever else is written is removed again.
        machine: Of loose files.
        progress: Told the share that is done.

    Raises:
        ComparisonError: The files are no such thing, too many, or too large, or of a machine that
            the bank does not hold.
        ValueError: A clip cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compare_", dir=folder) as temporary:
        data_dir, year = Path(temporary, "data"), int(detector.scorer.recipe["year"])
        if len(files) == 1 and files[0].suffix.lower() == ".zip":
            _unpack(files[0], data_dir)
        else:
            _arrange(files, data_dir, detector, machine)
        clips = find_clips(data_dir, year=year)
        _check_lengths([Path(clip.path) for clip in clips])
        with _machines_in_words(detector):
            detector.scorer.check_machines(
                f"{year}/{clip.machine_type}/{clip.name.section:02d}" for clip in clips
            )
        rows = decoded(
            load_near_far(data_dir, year=year, streaming=True, cache_dir=Path(temporary, "cache"))
        )["test"]
        # Streamed, so that memory is bounded by the batch.
        table = detector.scorer.score(_told(rows, len(clips), progress), batch_size=4)
        metrics = evaluate_scores(table, num_resamples=200)
        plots = {
            name: _plot(detector, table, name, Path(temporary)) for name in table.machine_names
        }
    csv = folder / "scores.csv"
    table.write_csv(csv)
    return Comparison(table, metrics, plots, csv)


def _unpack(archive: Path, data_dir: Path) -> None:
    """Unpack the test clips of a zip, after looking at all that its directory promises."""
    name = display_name(archive)
    try:
        with zipfile.ZipFile(archive) as zipped:
            wanted = [m for m in zipped.infolist() if _place(PurePosixPath(m.filename))]
        size = sum(member.file_size for member in wanted)
        if len(wanted) > MAX_CLIPS or size > MAX_UNPACKED_BYTES:
            raise ComparisonError(
                f"{name} holds {len(wanted)} test clips of {size >> 20} MiB, at most {MAX_CLIPS} "
                f"of {MAX_UNPACKED_BYTES >> 20} MiB are taken here. Leave machines out, or use "
                "score.py."
            )
        found = unpack(archive, data_dir, place=_place, transfer=Transfer())
    except (zipfile.BadZipFile, DownloadError, ValueError) as error:
        if isinstance(error, ComparisonError):
            raise
        raise ComparisonError(f"This zip cannot be taken: {error}") from error
    if not found:
        raise ComparisonError(
            f"{name} holds no test clips. Expected <machine>/test/section_00_....wav, in any "
            "folder."
        )


def _place(path: PurePosixPath) -> PurePosixPath | None:
    """Return where a zip's member goes: <machine>/test/<name>; None for what is no test clip."""
    if len(path.parts) < 3 or path.suffix.lower() != ".wav" or path.name.startswith("."):
        return None
    machine, split = path.parts[-3:-1]
    return PurePosixPath(machine, split, path.name) if split in TEST_FOLDERS else None


def _arrange(
    files: Sequence[Path], data_dir: Path, detector: Detector, machine: str | None
) -> None:
    """Lay loose clips out as a machine's test folder."""
    if not files:
        raise ComparisonError(
            "There is nothing to compare yet. Give a folder, a zip, or several wav files."
        )
    if len(files) > MAX_CLIPS:
        raise ComparisonError(f"{len(files)} files came, at most {MAX_CLIPS} are taken here.")
    if any(file.suffix.lower() == ".zip" for file in files):
        raise ComparisonError(
            f"{len(files)} files came, a zip among them. Give one zip alone, or only wav files."
        )
    with _machines_in_words(detector):
        machine = detector.bank.resolve(machine)
    test = data_dir / machine.split("/")[1] / "test"
    test.mkdir(parents=True)
    for file in files:
        try:
            target = test / ClipName.parse(file.name).format()
        except ValueError as error:
            raise ComparisonError(
                f"{error} Loose files are compared by their official names."
            ) from error
        if target.exists():
            raise ComparisonError(
                f"{target.name} came twice, but these files are all taken for one machine's. Give "
                "clips of several machines as a folder or a zip."
            )
        shutil.copyfile(file, target)


@contextmanager
def _machines_in_words(detector: Detector) -> Iterator[None]:
    """Say what the page can do about a machine that the bank does not hold."""
    try:
        yield
    except KeyError as error:
        held = ", ".join(detector.bank.machines)
        problem = str(error).split(". ")[0]
        raise ComparisonError(f"{problem}. This page compares clips of {held}.") from error


def _check_lengths(paths: Sequence[Path]) -> None:
    for path in paths:
        seconds = soundfile.info(path).duration
        if seconds > MAX_CLIP_SECONDS:
            raise ComparisonError(
                f"{display_name(path)} lasts {seconds:.0f} s, at most {MAX_CLIP_SECONDS:.0f} s are "
                "taken here. Judge long recordings on the tab Listen."
            )


def _told(
    rows: Iterator[dict[str, Any]], total: int, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Pass rows on and tell the progress."""
    for number, row in enumerate(rows):
        progress(number / total)
        yield row


def _plot(detector: Detector, table: ScoreTable, machine: str, folder: Path) -> bytes:
    clips = table.select(machine)
    path = folder / "plot.png"
    plot_machine(
        path,
        machine,
        clips.anomaly_scores,
        clips.conditions,
        clips.domains,
        threshold=detector.bank.threshold(machine),
    )
    return path.read_bytes()
