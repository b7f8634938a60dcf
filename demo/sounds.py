"""Where the recordings behind a bank's names can be heard: a data folder, or its factory."""

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile

from data_scripts.clip_files import SAMPLING_RATE, ClipFile, find_clips
from data_scripts.factory import (
    FactoryArguments,
    PlannedClip,
    machine_of,
    plan_clips,
    simulate_clip,
)
from nearfar.schema import FAR, NEAR, machine_name

FACTORY_FILE = "factory.json"
NUM_EXAMPLES = {"normal": 1, "anomaly": 2}  # per machine: the first test clips of each condition


class Example(NamedTuple):
    """A recording to try, with what is known of it."""

    title: str
    machine: str
    path: Path


class Sounds(Protocol):
    """Finds recordings by machine and file name."""

    def find(self, machine: str, file_name: str) -> Path | None:
        """Return the two-channel file of a training clip; None where it is not at hand."""

    def examples(self) -> list[Example]:
        """Return recordings to try, none of which the detector learned from."""


class NoSounds:
    """Nothing is at hand but names."""

    def find(self, machine: str, file_name: str) -> Path | None:  # noqa: ARG002 - as `Sounds`
        """Return None."""
        return None

    def examples(self) -> list[Example]:
        """Return none."""
        return []


class FolderSounds:
    """Recordings in the official layout.

    Args:
        data_dir: As `load_near_far` takes it.
        year: Of the recordings.
    """

    def __init__(self, data_dir: Path, *, year: int) -> None:
        clips = find_clips(data_dir, year=year, subsets=None, resample=True)
        self._clips: Mapping[tuple[str, str, str], ClipFile] = {
            (_machine(year, clip), clip.split, clip.name.format()): clip for clip in clips
        }
        self.year = year

    def find(self, machine: str, file_name: str) -> Path | None:
        """Return a training clip's file."""
        clip = self._clips.get((machine, "train", file_name))
        return None if clip is None else Path(clip.path)

    def examples(self) -> list[Example]:
        """Return the first test clips of each machine and condition."""
        tests: dict[tuple[str, str], list[Path]] = {}
        types = {}
        for (machine, split, _), clip in sorted(self._clips.items()):
            if split == "test" and clip.name.condition is not None:
                tests.setdefault((machine, clip.name.condition), []).append(Path(clip.path))
                types[machine] = clip.machine_type
        return [
            Example(_title(types[machine], condition, number), machine, path)
            for machine in sorted(types)
            for condition, count in NUM_EXAMPLES.items()
            for number, path in enumerate(tests.get((machine, condition), [])[:count])
        ]


class FactorySounds:
    """The clips of a simulated factory, simulated when they are asked for.

    Args:
        manifest: The factory's `factory.json`.
        folder: Keeps what has been simulated; at most the factory's own size.
    """

    year = 2026

    def __init__(self, manifest: Path, folder: Path) -> None:
        self.arguments = FactoryArguments(**json.loads(manifest.read_text("utf-8"))["arguments"])
        self.folder = folder
        self._lock = threading.Lock()
        self._plan: dict[tuple[str, str], PlannedClip] = {}
        for clip in plan_clips(self.arguments):
            if clip.split == "train" or clip.index < NUM_EXAMPLES[clip.condition]:
                machine = machine_of(self.arguments.seed, clip.machine, self.arguments.preset)
                name = machine_name(self.year, machine.machine_type, 0)
                self._plan[name, clip.file_name(machine)] = clip

    def find(self, machine: str, file_name: str) -> Path | None:
        """Return a training clip's file, simulated if it is not there yet."""
        clip = self._plan.get((machine, file_name))
        if clip is None or clip.split != "train":
            return None
        return self._simulated(machine, file_name, clip)

    def examples(self) -> list[Example]:
        """Return the first test clips of each machine and condition, of the source domain."""
        return [
            Example(
                _title(machine.split("/")[1], clip.condition, clip.index),
                machine,
                self._simulated(machine, file_name, clip),
            )
            for (machine, file_name), clip in self._plan.items()
            if clip.split == "test" and clip.domain == "source"
        ]

    def _simulated(self, machine: str, file_name: str, clip: PlannedClip) -> Path:
        path = self.folder / machine.replace("/", "_") / clip.split / file_name
        with self._lock:
            if not path.is_file():
                heard = simulate_clip(self.arguments, clip)
                channels = np.empty((len(heard.near), 2), dtype=np.float32)
                channels[:, NEAR], channels[:, FAR] = heard.near, heard.far
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".part")
                soundfile.write(partial, channels, SAMPLING_RATE, "PCM_16", format="WAV")
                partial.replace(path)
        return path


def spoken(machine: str) -> str:
    """Return a machine's name for people: "2026/fanSim/00" -> "Fan (simulated)"."""
    year, machine_type, section = machine.split("/")
    plain = re.sub(r"(Eval)?Sim(\d*)$", r" \2", machine_type)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain).split()
    name = " ".join(words).capitalize() if year != "local" else machine_type
    simulated = " (simulated)" if plain != machine_type else ""
    number = "" if section == "00" else f" {int(section)}"
    own = " (yours)" if year == "local" else ""
    return f"{name}{number}{simulated}{own}"


def _title(machine_type: str, condition: str, index: int) -> str:
    name = spoken(machine_name(2026, machine_type, 0)).removesuffix(" (simulated)")
    return f"{name}, healthy" if condition == "normal" else f"{name}, faulty {index + 1}"


def _machine(year: int, clip: ClipFile) -> str:
    return machine_name(year, clip.machine_type, clip.name.section)


__all__ = ["Example", "FactorySounds", "FolderSounds", "NoSounds", "Sounds", "spoken"]
