"""Finding the clips of a data folder, and checking every one of them before any is loaded.

Not in near_far.py, because datasets replaces `open` and `pathlib.Path` in a builder's own module.
"""

import hashlib
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import soundfile
from datasets.exceptions import DatasetGenerationError

from .clip_names import YEARS, ClipName
from .selection import listed, select

SAMPLING_RATE = 16_000  # hertz, in every year
NEAR_FAR_YEARS = (2026,)  # two channels; the years before have one

# How a recording's samples are read, and the format and subtype that store them without loss.
LOSSLESS = {
    "PCM_U8": ("int16", "FLAC", "PCM_16"),
    "PCM_16": ("int16", "FLAC", "PCM_16"),
    "PCM_24": ("int32", "FLAC", "PCM_24"),
    "PCM_32": ("int32", "WAV", "PCM_32"),
    "FLOAT": ("float32", "WAV", "FLOAT"),
    "DOUBLE": ("float64", "WAV", "DOUBLE"),
}

_PARTS = (
    ("dev", "dev_data/raw"),
    ("dev", "dev_data"),
    ("dev", "."),
    ("eval", "eval_data/raw"),
    ("eval", "eval_data"),
)
# 2021 keeps its test clips in a folder per domain.
_SPLIT_OF_FOLDER = {"train": "train", "test": "test", "source_test": "test", "target_test": "test"}
_LAYOUT = (
    "<machine>/train/*.wav and <machine>/test/*.wav, below dev_data/raw, dev_data, eval_data/raw "
    "or the folder itself"
)
_UNKNOWN_SIZE = 0xFFFF_FFFF  # what a program writes that cannot seek back to the header


# datasets has no type information, so its exception is Any to mypy. It lets its own kind of
# exception through as it is, from worker processes too, and wraps all others.
class ClipError(ValueError, DatasetGenerationError):  # type: ignore[misc]
    """A clip, named by its path below the data folder, that cannot be loaded as it is."""


@dataclass(frozen=True, slots=True)
class ClipFile:
    """One wav file, with what its folder and its name say.

    Attributes:
        path: Absolute.
        relative: The path below the data folder, for messages.
        machine_type: Name of the machine's folder.
        subset: "dev", "eval_train" or "eval_test", from the folders above it.
        split: "train" or "test", from the folder.
        name: The parsed file name.
        num_bytes: Size of the file.
        modified_ns: When it was last changed, in nanoseconds since the epoch.
    """

    path: str
    relative: str
    machine_type: str
    subset: str
    split: str
    name: ClipName
    num_bytes: int
    modified_ns: int


class _Folder(NamedTuple):
    path: Path
    machine_type: str
    subset: str


def find_clips(
    data_dir: str | Path,
    *,
    year: int,
    machine_types: Collection[str] | None = None,
    subsets: Collection[str] | None = None,
    resample: bool = False,
) -> list[ClipFile]:
    """List the clips of a data folder in a fixed order, every header read and every name checked.

    Args:
        data_dir: Folder in the layout of the challenge: machine folders below dev_data/raw,
            dev_data, eval_data/raw, eval_data or the folder itself (which counts as "dev").
        year: Of the recordings, 2020 to 2026.
        machine_types: Keep only these; None keeps all.
        subsets: Keep only these, of "dev", "eval_train" and "eval_test"; None keeps all.
        resample: Whether sampling rates other than 16 kHz are fine.

    Raises:
        FileNotFoundError: The folder is missing, or it or a part of it holds no clip.
        ValueError: An option names something that does not exist, or (`ClipError`) a clip is
            damaged, misnamed, in the wrong folder, there twice, or not as its year has them.
    """
    if year not in YEARS:
        raise ValueError(f"year={year!r} has no DCASE Task 2 data. Choose from {listed(YEARS)}.")
    root = Path(data_dir).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"{str(data_dir)!r} is not a folder. Give the folder that holds {_LAYOUT}."
        )
    folders = list(_folders(root))
    if not folders:
        raise FileNotFoundError(
            f"{str(root)!r} holds no machine folder. Expected {_LAYOUT}. "
            "Give the folder above the machine folders."
        )
    clips: list[ClipFile] = []
    seen: dict[tuple[str, str, ClipName], str] = {}
    for folder in select(folders, repr(str(root)), machine_types=machine_types, subsets=subsets):
        found = list(_clips_in(folder, root))
        if not found:
            raise FileNotFoundError(
                f"{_relative(folder.path, root)} in {str(root)!r} holds no .wav clip. "
                "Unpack the machine's archive again, or remove the folder."
            )
        for clip in found:
            _check_name(clip, folder.path.name, year)
            _check_header(clip, year=year, resample=resample)
            key = (clip.machine_type, clip.split, clip.name)
            if key in seen:
                raise ClipError(
                    f"{clip.relative} and {seen[key]} have the same name, machine type and split. "
                    "Keep one of them."
                )
            seen[key] = clip.relative
        clips += found
    return clips


def find_components(data_dir: str | Path, clips: Sequence[ClipFile]) -> list[ClipFile]:
    """Return the file with the components of each clip of a simulated factory, headers read.

    Its channel 0 is what near hears of the machine alone, its channel 1 the noise alone.

    Args:
        data_dir: Of the clips.
        clips: Of `find_clips`.

    Raises:
        FileNotFoundError: A clip has no components.
        ValueError: (`ClipError`) They are damaged, or not as long as the clip.
    """
    folder = Path(data_dir).expanduser().resolve() / "components"
    found = []
    for clip in clips:
        path = folder / clip.relative
        if not path.is_file():
            raise FileNotFoundError(
                f"{clip.relative} has no components/{clip.relative} that says how it sounds "
                "without noise. Give a simulated factory, and write its components: the command "
                "that simulated it, with --components."
            )
        state = path.stat()
        component = replace(
            clip,
            path=str(path),
            relative=f"components/{clip.relative}",
            num_bytes=state.st_size,
            modified_ns=state.st_mtime_ns,
        )
        _check_header(component, year=NEAR_FAR_YEARS[-1], resample=False)
        lengths = [soundfile.info(file.path).frames for file in (clip, component)]
        if lengths[0] != lengths[1]:
            raise ClipError(
                f"{component.relative} has {lengths[1]} samples, but the clip {lengths[0]}. "
                "Simulate the factory anew."
            )
        found.append(component)
    return found


def fingerprint(clips: Sequence[ClipFile]) -> str:
    """Return a digest that changes when a clip comes, goes, or is written again."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.relative}\0{clip.num_bytes}\0{clip.modified_ns}\n".encode())
    return digest.hexdigest()


def _folders(root: Path) -> Iterator[_Folder]:
    for part, below in _PARTS:
        parent = root / below
        for machine in sorted(parent.iterdir()) if parent.is_dir() else ():
            for name, split in _SPLIT_OF_FOLDER.items():
                if (machine / name).is_dir():
                    subset = "dev" if part == "dev" else f"eval_{split}"
                    yield _Folder(machine / name, machine.name, subset)


def _clips_in(folder: _Folder, root: Path) -> Iterator[ClipFile]:
    with os.scandir(folder.path) as entries:
        # A name with a leading dot is what some archives add for another operating system.
        wavs = [e for e in entries if e.name.lower().endswith(".wav") and e.name[0] != "."]
    parent = _relative(folder.path, root)
    for entry in sorted(wavs, key=lambda entry: entry.name):
        relative = f"{parent}/{entry.name}"
        try:
            name = ClipName.parse(entry.name)
        except ValueError as error:
            raise ClipError(f"{relative}: {error}") from error
        state = entry.stat()
        yield ClipFile(
            path=entry.path,
            relative=relative,
            machine_type=folder.machine_type,
            subset=folder.subset,
            split=_SPLIT_OF_FOLDER[folder.path.name],
            name=name,
            num_bytes=state.st_size,
            modified_ns=state.st_mtime_ns,
        )


def _check_name(clip: ClipFile, folder: str, year: int) -> None:
    """Refuse a name of another year, or one that contradicts its folder."""
    name = clip.name
    if year not in name.years:
        due = f"year={name.years[0]}" if len(name.years) == 1 else "the year of the recordings"
        raise ClipError(
            f"{clip.relative} is a name of {listed(name.years)}, but year={year} was asked for. "
            f"Pass {due}."
        )
    if name.supplemental is not None:
        raise ClipError(
            f"{clip.relative} is a supplemental clip, but lies in {folder}/. "
            "Move it to the machine's supplemental/ folder."
        )
    if name.split not in (None, clip.split):
        raise ClipError(
            f"{clip.relative} lies in {folder}/, but its name says {name.split}. "
            f"Move it to {name.split}/."
        )
    if folder.endswith("_test") and name.domain not in (None, folder.removesuffix("_test")):
        raise ClipError(
            f"{clip.relative} lies in {folder}/, but its name says {name.domain}. "
            f"Move it to {name.domain}_test/."
        )
    if clip.split == "train" and name.condition == "anomaly":
        raise ClipError(
            f"{clip.relative} is an anomaly, but training clips are normal. Move it to test/."
        )


def _check_header(clip: ClipFile, *, year: int, resample: bool) -> None:
    """Refuse a file that is not a whole recording of the year's kind, without reading its samples.

    Raises:
        ClipError: Names the clip, what its header says, what was due, and the remedy.
    """
    again = "Copy or download it again."
    if clip.num_bytes == 0:
        raise ClipError(f"{clip.relative} is an empty file. {again}")
    try:
        header = soundfile.info(clip.path)
        promised = _promised_samples(clip.path)
    except (soundfile.LibsndfileError, struct.error, ValueError) as error:
        reason = getattr(error, "error_string", error)  # without the absolute path
        raise ClipError(
            f"{clip.relative} is not a readable WAV file ({reason}). {again}"
        ) from error
    if header.subtype not in LOSSLESS:
        raise ClipError(
            f"{clip.relative} is coded as {header.subtype}; expected {listed(LOSSLESS)}. "
            "Convert it to PCM_16."
        )
    if promised is not None and promised > header.frames:
        raise ClipError(
            f"{clip.relative} is cut off: its header promises {promised} samples, "
            f"but the file holds {header.frames}. {again}"
        )
    if header.frames == 0:
        raise ClipError(f"{clip.relative} holds no samples. {again}")
    _check_channels(clip, header.channels, year)
    if header.samplerate != SAMPLING_RATE and not resample:
        raise ClipError(
            f"{clip.relative} is sampled at {header.samplerate} Hz, but this model expects "
            f"{SAMPLING_RATE} Hz. Resample it, or pass resample=True to load_near_far."
        )


def _check_channels(clip: ClipFile, num_channels: int, year: int) -> None:
    came = f"{clip.relative} has {num_channels} channel{'s' if num_channels > 1 else ''}"
    if year in NEAR_FAR_YEARS and num_channels != 2:
        remedy = (
            "For mono recordings pass the year they are from, 2020 to 2025."
            if num_channels == 1
            else "Keep these two."
        )
        raise ClipError(f"{came}; near-far data has 2 (0: near, 1: far). {remedy}")
    if year not in NEAR_FAR_YEARS and num_channels != 1:
        raise ClipError(
            f"{came}; recordings of {year} have 1. For near-far pairs pass "
            f"year={NEAR_FAR_YEARS[-1]}, otherwise keep one channel."
        )


def _promised_samples(path: str) -> int | None:
    """Return the clip length, in samples, that a WAV header states; None if it leaves that open.

    soundfile reports only the samples that are there, without a word.

    Raises:
        ValueError: It is no RIFF WAVE file.
        struct.error: The file ends before its data chunk.
    """
    bytes_per_sample = 1  # of all channels together
    with Path(path).open("rb") as file:
        riff, _, wave = struct.unpack("<4sI4s", file.read(12))
        if (riff, wave) != (b"RIFF", b"WAVE"):
            raise ValueError(f"it starts with {riff!r} and {wave!r}, not with RIFF and WAVE")
        while True:
            chunk, num_bytes = struct.unpack("<4sI", file.read(8))
            if chunk == b"data":
                return None if num_bytes == _UNKNOWN_SIZE else num_bytes // bytes_per_sample
            start = file.tell()
            if chunk == b"fmt ":
                bytes_per_sample = max(1, struct.unpack("<12xH", file.read(14))[0])
            file.seek(start + num_bytes + num_bytes % 2)  # chunks begin at even positions


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
