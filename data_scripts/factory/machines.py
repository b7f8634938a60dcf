"""Machines: who they are, drawn once per seed, and how they may run.

Here are the four families of preset `easy`, each from its simple physics; `families.py` has those
of `challenge`. A *setting* (speed, load and tool) is what the attributes in a file name tell.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from ..clip_names import NO_ATTRIBUTE  # noqa: TID252 - a wheel renames the parent
from .families import PARTS
from .parts import Impacts, Part

Family = Literal[
    "fan", "gearbox", "valve", "ToyCar", "bearing", "slider", "pump", "ToyDrone", "sander"
]
FAMILIES: tuple[Family, ...] = get_args(Family)


class Setting(NamedTuple):
    """How a machine runs: 1-based positions of its switches, and the name of its tool."""

    speed: int
    load: int = 1
    tool: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """What a machine drives or works with: a car body, a product, a grit.

    Attributes:
        name: As in a file name.
        parts: What is heard of it, beside the machine's own parts.
        speed_factor: By which it changes the speed.
        resonance_factor: By which it shifts the housing's resonances.
    """

    name: str
    parts: tuple[Part, ...] = ()
    speed_factor: float = 1.0
    resonance_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class BearingGeometry:
    """A rolling bearing, whose outer race stands still and whose inner race turns with the shaft.

    The orders are events per revolution of the shaft (Randall and Antoni, 2011, eq. 1 to 4).

    Attributes:
        balls: How many.
        size_ratio: Diameter of a ball over that of the circle of the balls' centres.
        contact_angle: In radians.
    """

    balls: int
    size_ratio: float
    contact_angle: float

    @property
    def outer_order(self) -> float:
        """Balls that pass a point of the outer race (BPFO)."""
        return self.balls * self.cage_order

    @property
    def inner_order(self) -> float:
        """Balls that pass a point of the inner race (BPFI)."""
        return self.balls * (1 - self.cage_order)

    @property
    def cage_order(self) -> float:
        """Revolutions of the cage (FTF)."""
        return 0.5 * (1 - self.size_ratio * float(np.cos(self.contact_angle)))

    @property
    def spin_order(self) -> float:
        """Revolutions of a ball about itself (BSF); a spot on it strikes twice in each."""
        ratio = self.size_ratio * float(np.cos(self.contact_angle))
        return (1 - ratio**2) / (2 * self.size_ratio)


class BodyResonance(NamedTuple):
    """A resonance of the housing that all parts pass through."""

    ring_hz: float
    quality: float
    gain_db: float


@dataclass(frozen=True, slots=True)
class Machine:
    """The identity of one machine; clips differ around it.

    Attributes:
        machine_type: Folder name, such as "fanSim".
        family: What kind of machine it is.
        parts: Its sound at nominal speed and no load.
        speeds_hz: Of the main shaft, one per position of the speed switch.
        loads: 0 to 1, one per position of the load switch.
        source_settings: Settings of the source domain.
        target_settings: Settings of the target domain.
        resonances: Of the housing.
        bearing: What a damaged bearing adds, at full severity.
        passing_order: Orders of the strongest tone (blades, vanes, teeth), for faults beside it.
        has_attributes: Whether file names tell the setting.
        spelling: How they tell it, with {speed}, {load} and {tool}.
        tools: Those that settings name.
        geometry: Of its bearing; None in preset `easy`, which only knows that it is damaged.
    """

    machine_type: str
    family: Family
    parts: tuple[Part, ...]
    speeds_hz: tuple[float, ...]
    loads: tuple[float, ...]
    source_settings: tuple[Setting, ...]
    target_settings: tuple[Setting, ...]
    resonances: tuple[BodyResonance, ...]
    bearing: Impacts
    passing_order: int
    has_attributes: bool = True
    spelling: str = "spd_{speed}_load_{load}"
    tools: tuple[Tool, ...] = (Tool(""),)
    geometry: BearingGeometry | None = None

    def attributes(self, setting: Setting) -> str:
        """Return a setting as file names spell it, "spd_2_load_1" or "noAttribute"."""
        return self.spelling.format(**setting._asdict()) if self.has_attributes else NO_ATTRIBUTE

    def tool(self, setting: Setting) -> Tool:
        """Return what the machine drives or works with."""
        return next(tool for tool in self.tools if tool.name == setting.tool)

    @property
    def nominal_hz(self) -> float:
        """Speed of the main shaft at which `parts` are given."""
        return float(np.median(self.speeds_hz))

    def level_db(self, setting: Setting) -> float:
        """Return the level of a setting relative to the machine's mean, in dB."""
        octaves = np.log2(self.speeds_hz[setting.speed - 1] / self.nominal_hz)
        return float(6.0 * octaves + 1.5 * (self.loads[setting.load - 1] - 0.5))


def draw_machine(
    rng: np.random.Generator,
    family: Family = "fan",
    *,
    machine_type: str | None = None,
    has_attributes: bool = True,
) -> Machine:
    """Draw a machine: its blades or teeth, speeds, levels and resonances."""
    nominal_hz = {"fan": 24.0, "pump": 29.0, "gearbox": 18.0, "slider": 3.0}[family]
    nominal_hz *= rng.uniform(0.8, 1.25)
    step = rng.uniform(1.10, 1.22)
    parts, passing_order = PARTS[family](rng)
    by_speed = bool(rng.random() < 0.5)  # else the target domain has another load
    source = tuple(Setting(speed, load) for speed in (1, 2) for load in (1, 2))
    target = (
        tuple(Setting(3, load) for load in (1, 2))
        if by_speed
        else tuple(Setting(speed, 3) for speed in (1, 2))
    )
    resonances = tuple(
        BodyResonance(float(hz), float(rng.uniform(4, 15)), float(rng.uniform(4, 12)))
        for hz in np.exp(rng.uniform(np.log(250), np.log(5_500), size=4))
    )
    return Machine(
        machine_type=machine_type or f"{family}Sim",
        family=family,
        parts=parts,
        speeds_hz=(nominal_hz / step, nominal_hz, nominal_hz * step),
        loads=(0.0, 0.6, 1.0),
        source_settings=source,
        target_settings=target,
        resonances=resonances,
        bearing=Impacts(
            order=float(rng.uniform(2.6, 7.4)) * (12.0 if family == "slider" else 1.0),
            ring_hz=float(rng.uniform(1_800, 5_000)),
            quality=float(rng.uniform(8, 20)),
            jitter=0.02,
            modulation=0.6,
            level_db=-4.0,
        ),
        passing_order=passing_order,
        has_attributes=has_attributes,
    )
