"""A whole factory on disk, in the official layout."""

import csv
import functools
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from nearfar.schema import DOMAINS, FAR, NEAR

from .acoustics import Scene, draw_hall, draw_scene
from .clips import PRESETS, Clip, PresetName, render_clip
from .machines import FAMILIES, Machine, draw_machine
from .parts import SAMPLING_RATE
from .plan import FactoryArguments, PlannedClip, plan_clips

FACTORY_VERSION = 1  # goes up when the same seed gives other sounds


def simulate_factory(
    output_dir: str | Path,
    *,
    num_machines: int,
    seed: int,
    source_train: int = 990,
    target_train: int = 10,
    test_per_group: int = 50,
    seconds: float = 10.0,
    preset: PresetName = "easy",
    num_workers: int = 1,
    show_progress: bool = False,
) -> Path:
    """Write a simulated factory, or finish one that was interrupted; return its folder.

    The same arguments give the same bytes for any number of workers on one computer; another
    computer's arithmetic may differ in the last bit.

    Args:
        output_dir: Gets `dev_data/raw/<machine type>/{train,test}/*.wav` and `factory.json`.
        num_machines: A fan, a pump, a gearbox, a slider, another fan, ... Machine i of a seed is
            the same whatever their number. Every fourth machine is without attributes.
        seed: Of machines, rooms and clips.
        source_train: Training clips of the source domain per machine.
        target_train: Of the target domain.
        test_per_group: Test clips per {source, target} x {normal, anomaly}.
        seconds: Length of a clip.
        preset: How hard it is, a key of `PRESETS`.
        num_workers: Processes.
        show_progress: Whether to draw a progress bar.

    Raises:
        ValueError: An argument makes no sense.
        FileExistsError: The folder holds a factory of other arguments.
    """
    arguments = FactoryArguments(
        num_machines, seed, source_train, target_train, test_per_group, seconds, preset
    )
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} must be at least 1.")
    output_dir = Path(output_dir)
    machines = [machine_of(seed, number) for number in range(num_machines)]
    _claim(output_dir, arguments, machines)
    raw = output_dir / "dev_data" / "raw"
    plan = list(plan_clips(arguments))
    for folder in {(raw / clip.path(machines[clip.machine])).parent for clip in plan}:
        folder.mkdir(parents=True, exist_ok=True)
    pending = [
        clip
        for clip in tqdm(plan, desc="checking", disable=not show_progress, leave=False)
        if not _is_complete(raw / clip.path(machines[clip.machine]), arguments.num_samples)
    ]
    write = functools.partial(_write_clip, raw, arguments)
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
    for number, machine in enumerate(machines):
        _write_attributes(raw, machine, [clip for clip in plan if clip.machine == number])
    return output_dir


@functools.lru_cache(maxsize=64)
def machine_of(seed: int, number: int) -> Machine:
    """Return machine `number` of the factories with this seed."""
    family = FAMILIES[number % len(FAMILIES)]
    generation = number // len(FAMILIES)
    return draw_machine(
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, number))),
        family,
        machine_type=f"{family}Sim{generation + 1 if generation else ''}",
        has_attributes=number % len(FAMILIES) != len(FAMILIES) - 1,
    )


@functools.lru_cache(maxsize=8)
def scene_of(seed: int, number: int, domain: str) -> Scene:
    """Return where machine `number` stands in a domain: two places of one hall."""
    hall_seed = np.random.SeedSequence(seed, spawn_key=(1, number))
    scene_seed = np.random.SeedSequence(seed, spawn_key=(2, number, DOMAINS.index(domain)))
    return draw_scene(
        np.random.default_rng(scene_seed), draw_hall(np.random.default_rng(hall_seed))
    )


def simulate_clip(
    arguments: FactoryArguments, clip: PlannedClip, *, severity: float | None = None
) -> Clip:
    """Return one clip of a factory; `severity` replaces an anomalous clip's own."""
    machine = machine_of(arguments.seed, clip.machine)
    preset = PRESETS[arguments.preset]
    return render_clip(
        machine,
        scene_of(arguments.seed, clip.machine, clip.domain),
        clip.setting(machine),
        seed=np.random.SeedSequence(arguments.seed, spawn_key=(3, *clip.key)),
        num_samples=arguments.num_samples,
        snr_db=preset.snr_db[clip.domain],
        preset=preset,
        anomalous=clip.condition == "anomaly",
        severity=severity,
    )


def _write_clip(raw: Path, arguments: FactoryArguments, clip: PlannedClip) -> None:
    """Simulate a clip and write it; a file under its final name is always whole."""
    simulated = simulate_clip(arguments, clip)
    channels = np.empty((arguments.num_samples, 2))
    channels[:, NEAR], channels[:, FAR] = simulated.near, simulated.far
    pcm = np.clip(np.round(channels * 32_768), -32_768, 32_767).astype(np.int16)
    path = raw / clip.path(machine_of(arguments.seed, clip.machine))
    partial = path.with_suffix(".part")
    soundfile.write(partial, pcm, SAMPLING_RATE, subtype="PCM_16", format="WAV")
    partial.replace(path)


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
        "arguments": asdict(arguments),
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
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _differences(found: object, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict) or found.get("version") != wanted["version"]:
        return f"its version is not {wanted['version']}"
    arguments = found.get("arguments", {})
    return ", ".join(
        f"{name} is {arguments.get(name)!r} there, {value!r} here"
        for name, value in wanted["arguments"].items()
        if arguments.get(name) != value
    )


def _write_attributes(raw: Path, machine: Machine, plan: Sequence[PlannedClip]) -> None:
    """Write attributes_00.csv: a path, then names and values of the attributes in turn."""
    path = raw / machine.machine_type / "attributes_00.csv"
    partial = path.with_suffix(".part")
    header = ["d1p", "d1v", "d2p", "d2v"] if machine.has_attributes else []
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", *header])
        for clip in plan:
            words = clip.setting(machine).format().split("_") if machine.has_attributes else []
            writer.writerow([clip.path(machine).as_posix(), *words])
    partial.replace(path)
