"""Machines: who they are, drawn once per seed, and how they may run.

Four families, each from its simple physics. A *setting* (speed and load) is what the attributes in
a file name tell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from .parts import Hiss, Impacts, Part, Tones

Family = Literal["fan", "pump", "gearbox", "slider"]
FAMILIES: tuple[Family, ...] = get_args(Family)


class Setting(NamedTuple):
    """How a machine runs: 1-based positions of its speed and its load switch."""

    speed: int
    load: int

    def format(self) -> str:
        """Return the attributes as in a file name, "spd_2_load_1"."""
        return f"spd_{self.speed}_load_{self.load}"


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
        target_settings: Settings of the target domain, none of them a source setting.
        resonances: Of the housing.
        bearing: What a damaged bearing adds, at full severity.
        passing_order: Orders of the strongest tone (blades, vanes, teeth), for faults beside it.
        has_attributes: Whether file names tell the setting.
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
    parts, passing_order = _PARTS[family](rng)
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


def _decaying(rng: np.random.Generator, count: int, decay_db: float) -> tuple[float, ...]:
    """Draw amplitudes in dB of `count` harmonics that fall by about `decay_db` each."""
    return tuple((-decay_db * np.arange(count) + 3 * rng.standard_normal(count)).tolist())


def _draw_fan(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """Blade-pass harmonics, shaft harmonics, and airflow that grows steeply with the speed."""
    blades = int(rng.choice([5, 6, 7, 8, 9, 11]))
    passing = Tones(
        orders=tuple(blades * k for k in range(1, 13)),
        amplitudes_db=_decaying(rng, 12, rng.uniform(2.0, 4.0)),
        level_db=rng.uniform(-2, 2),
        load_db=5.0,
    )
    shaft = Tones(
        orders=tuple(range(1, 9)),
        amplitudes_db=_decaying(rng, 8, 3.0),
        level_db=rng.uniform(-14, -9),
    )
    airflow = Hiss(
        centre_hz=rng.uniform(500, 1_100),
        width_octaves=rng.uniform(1.2, 1.8),
        order=blades,
        depth=rng.uniform(0.1, 0.35),
        follows_speed=True,
        level_db=rng.uniform(-4, 1),
        load_db=rng.uniform(-7, -5),
        speed_db=10.0,
    )
    return (passing, shaft, airflow), blades


def _draw_pump(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """Shaft and vane-pass harmonics, and a hiss that pulsates with the pressure."""
    vanes = int(rng.choice([4, 5, 6, 7]))
    passing = Tones(
        orders=tuple(vanes * k for k in range(1, 9)),
        amplitudes_db=_decaying(rng, 8, rng.uniform(3.0, 5.0)),
        level_db=rng.uniform(-3, 1),
        load_db=6.0,
    )
    shaft = Tones(
        orders=tuple(range(1, 25)),
        amplitudes_db=_decaying(rng, 24, rng.uniform(0.4, 1.0)),
        level_db=rng.uniform(-6, -2),
        load_db=-4.0,
    )
    flow = Hiss(
        centre_hz=rng.uniform(1_500, 3_000),
        width_octaves=rng.uniform(0.7, 1.2),
        order=vanes,
        depth=rng.uniform(0.3, 0.6),
        sharpness=2.0,
        level_db=rng.uniform(-5, -1),
        load_db=4.0,
        speed_db=6.0,
    )
    return (passing, shaft, flow), vanes


def _draw_gearbox(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """Mesh harmonics with sidebands of both shafts, and a rumble of the bearings."""
    teeth, output_teeth = int(rng.integers(17, 32)), int(rng.integers(35, 68))
    ratio = teeth / output_teeth
    sidebands = (0, -1, 1, -2, 2)
    mesh_db = _decaying(rng, 5, rng.uniform(2.0, 4.0))
    falls_db = (0.0, *(-rng.uniform(8, 16, size=4)))
    mesh = Tones(
        orders=tuple(teeth * k + j for k in range(1, 6) for j in sidebands),
        amplitudes_db=tuple(float(a + b) for a in mesh_db for b in falls_db),
        load_db=6.0,
    )
    output = Tones(
        orders=tuple(output_teeth * k + j for k in range(1, 6) for j in sidebands[1:]),
        amplitudes_db=tuple(float(a + b) for a in mesh_db for b in falls_db[1:]),
        ratio=ratio,
        level_db=rng.uniform(-14, -8),
        load_db=6.0,
    )
    shafts = Tones(
        orders=tuple(range(1, 13)),
        amplitudes_db=_decaying(rng, 12, 1.5),
        level_db=rng.uniform(-10, -5),
    )
    rumble = Hiss(
        centre_hz=rng.uniform(300, 900),
        width_octaves=rng.uniform(1.0, 1.8),
        depth=rng.uniform(0.1, 0.3),
        level_db=rng.uniform(-6, -1),
        load_db=-2.0,
        speed_db=6.0,
    )
    return (mesh, output, shafts, rumble), teeth


def _draw_slider(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """Blows at both ends of a stroke, a motor behind a belt, and sliding noise in between."""
    motor_order = int(rng.integers(11, 18))
    blows = Impacts(
        order=2.0,
        ring_hz=rng.uniform(500, 1_600),
        quality=rng.uniform(8, 20),
        jitter=0.004,
        level_db=rng.uniform(-3, 1),
        load_db=6.0,
        speed_db=6.0,
    )
    motor = Tones(
        orders=tuple(motor_order * k for k in range(1, 15)),
        amplitudes_db=_decaying(rng, 14, rng.uniform(0.8, 1.6)),
        level_db=rng.uniform(-4, 0),
        load_db=-2.0,
    )
    sliding = Hiss(
        centre_hz=rng.uniform(1_500, 3_500),
        width_octaves=rng.uniform(0.7, 1.2),
        order=2.0,
        depth=rng.uniform(0.5, 0.8),
        level_db=rng.uniform(-6, -2),
        load_db=2.0,
        speed_db=6.0,
    )
    return (blows, motor, sliding), motor_order


_PARTS: dict[Family, Callable[[np.random.Generator], tuple[tuple[Part, ...], int]]] = {
    "fan": _draw_fan,
    "pump": _draw_pump,
    "gearbox": _draw_gearbox,
    "slider": _draw_slider,
}
