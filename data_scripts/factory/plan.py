"""Which clips a factory has: its arguments, and for each clip its name, setting and seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearfar.schema import CONDITIONS, DOMAINS

from ..clip_names import NO_ATTRIBUTE, SPLITS, ClipName  # noqa: TID252 - a wheel renames the parent
from .clips import PRESETS, PresetName
from .machines import Machine, Setting
from .parts import SAMPLING_RATE


@dataclass(frozen=True, slots=True)
class FactoryArguments:
    """What decides every sample of a factory; see `simulate_factory`."""

    num_machines: int
    seed: int
    source_train: int = 990
    target_train: int = 10
    test_per_group: int = 50
    seconds: float = 10.0
    preset: PresetName = "easy"

    def __post_init__(self) -> None:
        for name in ("num_machines", "source_train", "target_train", "test_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if max(self.source_train, self.target_train, self.test_per_group) > 10_000:
            raise ValueError("A group holds at most 10000 clips: file names count to 9999.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative.")
        if not 0.5 <= self.seconds <= 3_600:
            raise ValueError(f"seconds={self.seconds} must be from 0.5 to 3600.")
        if self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r} is not one of {sorted(PRESETS)}.")

    @property
    def num_samples(self) -> int:
        """Length of a clip."""
        return round(self.seconds * SAMPLING_RATE)


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """One clip to simulate: its machine (by number), group and index in the group."""

    machine: int
    split: str
    domain: str
    condition: str
    index: int

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

    def path(self, machine: Machine) -> Path:
        """Return its place below the machine types' folder."""
        name = ClipName(
            section=0,
            domain=self.domain,
            split=self.split,
            condition=self.condition,
            index=self.index,
            attributes=self.setting(machine).format() if machine.has_attributes else NO_ATTRIBUTE,
        ).format()
        return Path(machine.machine_type, self.split, name)


def plan_clips(arguments: FactoryArguments) -> Iterator[PlannedClip]:
    """Yield every clip of a factory, machine by machine."""
    for machine in range(arguments.num_machines):
        for domain, count in zip(
            DOMAINS, (arguments.source_train, arguments.target_train), strict=True
        ):
            for index in range(count):
                yield PlannedClip(machine, "train", domain, "normal", index)
        for domain in DOMAINS:
            for condition in CONDITIONS:
                for index in range(arguments.test_per_group):
                    yield PlannedClip(machine, "test", domain, condition, index)
