"""Which clips a factory has: its arguments, and for each clip its name, setting and seed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.schema import CONDITIONS, DOMAINS

from ..clip_names import SPLITS, ClipName  # noqa: TID252 - a wheel renames the parent
from .machines import Machine, Setting
from .parts import SAMPLING_RATE
from .presets import PRESETS, PresetName

EVALUATION = 1_000  # numbers of the evaluation machines start here
# Streams of random numbers below a factory's seed.
MACHINE_STREAM, HALL_STREAM, PLACE_STREAM, CLIP_STREAM, LENGTH_STREAM, NAME_STREAM = range(6)


@dataclass(frozen=True, slots=True)
class FactoryArguments:
    """What decides every sample of a factory; see `simulate_factory`.

    `seconds` is None where each machine has a length of its own, `noise` a digest of the
    recordings that are heard, `quieter_db` what the noise falls by.
    """

    num_machines: int
    seed: int
    source_train: int = 990
    target_train: int = 10
    test_per_group: int = 50
    seconds: float | None = None
    preset: PresetName = "easy"
    eval_machines: int = 0
    noise: str = ""
    quieter_db: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_machines", "source_train", "target_train", "test_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("num_machines", "eval_machines"):
            if not 0 <= getattr(self, name) <= EVALUATION:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to {EVALUATION}.")
        if max(self.source_train, self.target_train, self.test_per_group) > 10_000:
            raise ValueError("A group holds at most 10000 clips: file names count to 9999.")
        if self.eval_machines and self.test_per_group > 2_500:
            raise ValueError(
                f"test_per_group={self.test_per_group} must be at most 2500 with evaluation "
                "machines: the names of their four groups count to 9999 together."
            )
        if not -40 <= self.quieter_db <= 40:
            raise ValueError(f"quieter_db={self.quieter_db} must be from -40 to 40.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative.")
        if self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r} is not one of {sorted(PRESETS)}.")
        lengths = PRESETS[self.preset].seconds
        if self.seconds is None and len(lengths) == 1:
            object.__setattr__(self, "seconds", lengths[0])
        if self.seconds is not None and not 0.5 <= self.seconds <= 3_600:
            raise ValueError(f"seconds={self.seconds} must be from 0.5 to 3600.")

    @property
    def machines(self) -> tuple[int, ...]:
        """Numbers of the development machines and then of the evaluation machines."""
        return (
            *range(self.num_machines),
            *range(EVALUATION, EVALUATION + self.eval_machines),
        )

    def num_samples(self, machine: int) -> int:
        """Return the length of the clips of a machine, by its number."""
        seconds = self.seconds
        if seconds is None:
            rng = stream(self.seed, LENGTH_STREAM, machine)
            seconds = float(rng.choice(PRESETS[self.preset].seconds))
        return round(seconds * SAMPLING_RATE)

    def manifest(self) -> dict[str, Any]:
        """Return the arguments as factory.json has them: what is not used is left out."""
        optional = ("seconds", "eval_machines", "noise", "quieter_db")
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in optional or value not in (None, 0, "")
        }


def seed_of(seed: int, *key: int) -> np.random.SeedSequence:
    """Return the seed of one thing of a factory, whatever else there is."""
    return np.random.SeedSequence(seed, spawn_key=key)


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of one thing of a factory."""
    return np.random.default_rng(seed_of(seed, *key))


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """One clip to simulate.

    Attributes:
        machine: By number.
        split: "train" or "test".
        domain: "source" or "target".
        condition: "normal" or "anomaly".
        index: In the group of these four.
        anonymous: Its index in a name that tells nothing; None for a name that does.
    """

    machine: int
    split: str
    domain: str
    condition: str
    index: int
    anonymous: int | None = None

    @property
    def key(self) -> tuple[int, ...]:
        """What its random numbers depend on beside the seed."""
        return (
            self.machine,
            SPLITS.index(self.split),
            DOMAINS.index(self.domain),
            CONDITIONS.index(self.condition),
            self.index,
        )

    def setting(self, machine: Machine) -> Setting:
        """Return how the machine runs: a group goes through the settings of its domain."""
        settings = machine.source_settings if self.domain == "source" else machine.target_settings
        return settings[self.index % len(settings)]

    def name(self, machine: Machine) -> ClipName:
        """Return all that a name can tell of it."""
        return ClipName(
            section=0,
            domain=self.domain,
            split=self.split,
            condition=self.condition,
            index=self.index,
            attributes=machine.attributes(self.setting(machine)),
        )

    def file_name(self, machine: Machine) -> str:
        """Return the name of its file."""
        if self.anonymous is None:
            return self.name(machine).format()
        return ClipName(section=0, index=self.anonymous).format()

    def path(self, machine: Machine) -> Path:
        """Return its place below the machine types' folder."""
        return Path(machine.machine_type, self.split, self.file_name(machine))

    @property
    def raw(self) -> Path:
        """The machine types' folder, below that of the factory."""
        return Path("dev_data" if self.machine < EVALUATION else "eval_data", "raw")


def plan_clips(arguments: FactoryArguments) -> Iterator[PlannedClip]:
    """Yield every clip of a factory, machine by machine."""
    for machine in arguments.machines:
        for domain, count in zip(
            DOMAINS, (arguments.source_train, arguments.target_train), strict=True
        ):
            for index in range(count):
                yield PlannedClip(machine, "train", domain, "normal", index)
        tests = [
            PlannedClip(machine, "test", domain, condition, index)
            for domain in DOMAINS
            for condition in CONDITIONS
            for index in range(arguments.test_per_group)
        ]
        if machine >= EVALUATION:
            shuffled = stream(arguments.seed, NAME_STREAM, machine).permutation(len(tests))
            tests = [
                replace(clip, anonymous=int(number))
                for clip, number in zip(tests, shuffled, strict=True)
            ]
        yield from tests
