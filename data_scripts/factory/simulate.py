"""A whole factory on disk, in the official layout."""

import csv
import functools
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.io import wavfile
from tqdm import tqdm

from nearfar.schema import FAR, NEAR

from ..whole_files import whole_file  # noqa: TID252 - a wheel renames the parent
from .cast import machine_of, simulate_clip
from .ground_truth import write_ground_truth
from .machines import Machine
from .parts import SAMPLING_RATE
from .plan import FactoryArguments, PlannedClip, plan_clips
from .presets import PresetName
from .recordings import Recordings

FACTORY_VERSION = 1  # goes up when the same seed gives other sounds


def simulate_factory(
    output_dir: str | Path,
    *,
    num_machines: int,
    seed: int,
    source_train: int = 990,
    target_train: int = 10,
    test_per_group: int = 50,
    seconds: float | None = None,
    preset: PresetName = "easy",
    eval_machines: int = 0,
    noise_dir: str | Path | None = None,
    quieter_db: float = 0.0,
    components: bool = False,
    num_workers: int = 1,
    show_progress: bool = False,
) -> Path:
    """Write a simulated factory, or finish one that was interrupted; return its folder.

    The same arguments give the same bytes for any number of workers on one computer; another
    computer's arithmetic may differ in the last bit.

    Args:
        output_dir: Gets `dev_data/raw/<machine type>/{train,test}/*.wav` and `factory.json`.
        num_machines: Of the development set; their families come in the order of the preset's.
            Machine i of a seed is the same whatever their number.
        seed: Of machines, rooms and clips.
        source_train: Training clips of the source domain per machine.
        target_train: Of the target domain.
        test_per_group: Test clips per {source, target} x {normal, anomaly}.
        seconds: Length of a clip; None is the preset's, which may differ between machines.
        preset: How hard it is, a key of `PRESETS`.
        eval_machines: Further machines, below `eval_data/raw`: their training clips, and test clips
            whose names tell nothing. `ground_truth_data`, `ground_truth_domain` and
            `ground_truth_attributes` have what they do not tell.
        noise_dir: Folder of recordings to be heard in the place of voices and other calls.
        quieter_db: By how much the noise is quieter than the preset has it, with the same machines.
        components: Whether to write, below `components`, what near hears of the machine alone
            (channel 0) and of the noise alone (channel 1), for each clip; also later.
        num_workers: Processes.
        show_progress: Whether to draw a progress bar.

    Raises:
        ValueError: An argument makes no sense, or a recording cannot be used.
        FileNotFoundError: There are no recordings in noise_dir.
        FileExistsError: The folder holds a factory of other arguments.
    """
    recordings = None if noise_dir is None else Recordings.find(noise_dir)
    arguments = FactoryArguments(
        num_machines,
        seed,
        source_train,
        target_train,
        test_per_group,
        seconds,
        preset,
        eval_machines,
        recordings.digest if recordings else "",
        quieter_db,
    )
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} must be at least 1.")
    output_dir = Path(output_dir)
    machines = {number: machine_of(seed, number, preset) for number in arguments.machines}
    _claim(output_dir, arguments, list(machines.values()))
    plan = list(plan_clips(arguments))
    write = _Writer(output_dir, arguments, recordings, components=components)
    for folder in {path.parent for clip in plan for path in write.files(clip)}:
        folder.mkdir(parents=True, exist_ok=True)
    checking = tqdm(plan, desc="checking", disable=not show_progress, leave=False)
    pending = [clip for clip in checking if not write.is_done(clip)]
    progress = functools.partial(
        tqdm,
        total=len(plan),
        initial=len(plan) - len(pending),
        unit="clip",
        desc="simulating",
        disable=not show_progress,
    )
    if num_workers == 1 or len(pending) < 2:
        for clip in progress(pending):
            write(clip)
    else:
        # Not forked: a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(num_workers, len(pending)), mp_context=context) as pool:
            for _ in progress(pool.map(write, pending, chunksize=8)):
                pass
    for number, machine in machines.items():
        clips = [clip for clip in plan if clip.machine == number]
        named = [clip for clip in clips if clip.anonymous is None]
        _write_attributes(output_dir / clips[0].raw, machine, named)
        if tests := [clip for clip in clips if clip.anonymous is not None]:
            write_ground_truth(output_dir, machine, tests)
    return output_dir


@dataclass(frozen=True)
class _Writer:
    """Simulates clips of a factory and writes their files."""

    output_dir: Path
    arguments: FactoryArguments
    recordings: Recordings | None
    components: bool = field(kw_only=True)

    def files(self, clip: PlannedClip) -> list[Path]:
        """Return the paths of a clip's files: the clip and, where asked for, its components."""
        machine = machine_of(self.arguments.seed, clip.machine, self.arguments.preset)
        below = clip.raw / clip.path(machine)
        beside = [self.output_dir / "components" / below] if self.components else []
        return [self.output_dir / below, *beside]

    def is_done(self, clip: PlannedClip) -> bool:
        """Tell whether all files of a clip are there and whole."""
        num_samples = self.arguments.num_samples(clip.machine)
        return all(_is_complete(path, num_samples) for path in self.files(clip))

    def __call__(self, clip: PlannedClip) -> None:
        """Simulate a clip and write it; a file under its final name is always whole."""
        simulated = simulate_clip(self.arguments, clip, recordings=self.recordings)
        channels = np.empty((len(simulated.near), 2))
        channels[:, NEAR], channels[:, FAR] = simulated.near, simulated.far
        pcm = np.clip(np.round(channels * 32_768), -32_768, 32_767).astype(np.int16)
        parts = np.stack([simulated.machine[0], simulated.noise[0]], axis=1)  # float32
        for path, samples in zip(self.files(clip), (pcm, parts), strict=False):
            with whole_file(path) as partial:
                # Not soundfile: into a file of floating point it writes the time of day.
                wavfile.write(partial, SAMPLING_RATE, samples)


def _is_complete(path: Path, num_samples: int) -> bool:
    if not path.exists():
        return False
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    return bool(header.channels == 2 and header.frames == num_samples)


def _claim(output_dir: Path, arguments: FactoryArguments, machines: Sequence[Machine]) -> None:
    """Write factory.json, or check that the one there is this factory's."""
    path = output_dir / "factory.json"
    manifest: dict[str, Any] = {
        "version": FACTORY_VERSION,
        "machine_types": [machine.machine_type for machine in machines],
        "sampling_rate": SAMPLING_RATE,
        "arguments": arguments.manifest(),
    }
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise FileExistsError(
                f"{path} is no factory's manifest ({error}). Choose another output_dir."
            ) from error
        if found != manifest:
            raise FileExistsError(
                f"{output_dir} holds another factory: {_differences(found, manifest)}. "
                "Choose another output_dir, or delete that one."
            )
        return
    if (output_dir / "dev_data").exists():
        raise FileExistsError(
            f"{output_dir} holds recordings that are no factory's (dev_data without factory.json). "
            "Choose another output_dir."
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _differences(found: object, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict) or found.get("version") != wanted["version"]:
        return f"its version is not {wanted['version']}"
    arguments = found.get("arguments", {})
    return ", ".join(
        f"{name} is {arguments.get(name)!r} there, {value!r} here"
        for name, value in (dict.fromkeys(arguments) | wanted["arguments"]).items()
        if arguments.get(name) != value
    )


def _write_attributes(raw: Path, machine: Machine, plan: Sequence[PlannedClip]) -> None:
    """Write attributes_00.csv: a path, then names and values of the attributes in turn."""
    path = raw / machine.machine_type / "attributes_00.csv"
    rows = [(clip, clip.name(machine).attribute_pairs() or []) for clip in plan]
    header = [f"d{n}{kind}" for n in range(1, 1 + len(rows[0][1])) for kind in "pv"]
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", *header])
        for clip, pairs in rows:
            words = [word for pair in pairs for word in pair]
            writer.writerow([clip.path(machine).as_posix(), *words])
