"""The machines of preset `challenge`: how each family runs, and how its file names spell it."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from .families import PARTS
from .machines import BearingGeometry, BodyResonance, Family, Machine, Setting, Tool
from .parts import Hiss, Impacts

_LOADS = (0.0, 0.6, 1.0)


class _Plan(NamedTuple):
    """What is fixed for a family.

    Attributes:
        nominal_hz: Speed of the main shaft, or of strokes and switching.
        speeds: Positions of its speed switch.
        source: Settings of the source domain.
        target: Settings of the target domain.
        spelling: Of a setting in file names; "" for a family that tells nothing.
        draw_tools: Draws its tools.
    """

    nominal_hz: float
    speeds: int
    source: tuple[Setting, ...]
    target: tuple[Setting, ...]
    spelling: str = ""
    draw_tools: Callable[[np.random.Generator], tuple[Tool, ...]] = lambda _: (Tool(""),)


def draw_identity(rng: np.random.Generator, family: Family, *, machine_type: str) -> Machine:
    """Draw a machine of a family: its parts, speeds, tools, housing and bearing."""
    plan = _PLANS[family]
    nominal_hz = plan.nominal_hz * rng.uniform(0.8, 1.25)
    step = rng.uniform(1.06, 1.15)
    parts, passing_order = PARTS[family](rng)
    geometry = BearingGeometry(
        balls=int(rng.integers(7, 13)),
        size_ratio=float(rng.uniform(0.15, 0.3)),
        contact_angle=float(np.deg2rad(rng.choice([0, 15, 25]))),
    )
    resonances = tuple(
        BodyResonance(float(hz), float(rng.uniform(4, 15)), float(rng.uniform(4, 12)))
        for hz in np.exp(rng.uniform(np.log(250), np.log(5_500), size=4))
    )
    # What drives a slider or a valve turns `passing_order` times as fast as it is moved.
    shaft_order = passing_order if family in ("slider", "valve") else 1
    return Machine(
        machine_type=machine_type,
        family=family,
        parts=parts,
        speeds_hz=tuple(
            float(nominal_hz * step ** (position - (plan.speeds - 1) / 2))
            for position in range(plan.speeds)
        ),
        loads=_LOADS,
        source_settings=plan.source,
        target_settings=plan.target,
        resonances=resonances,
        bearing=Impacts(
            order=geometry.outer_order * shaft_order,
            ring_hz=float(rng.uniform(1_800, 5_000)),
            quality=float(rng.uniform(8, 20)),
            jitter=0.02,
            level_db=-4.0,
        ),
        passing_order=passing_order,
        has_attributes=bool(plan.spelling),
        spelling=plan.spelling,
        tools=plan.draw_tools(rng),
        geometry=geometry,
    )


def _draw_cars(letters: str) -> Callable[[np.random.Generator], tuple[Tool, ...]]:
    """Bodies of a letter are of one make, two of each, with a rattle of their own."""

    def draw(rng: np.random.Generator) -> tuple[Tool, ...]:
        tools = []
        for letter in letters:
            rattle_hz, shift = rng.uniform(1_000, 4_000), np.exp(0.12 * rng.standard_normal())
            for piece in "12":
                rattle = Impacts(
                    order=0.5,
                    ring_hz=float(rattle_hz * rng.uniform(0.95, 1.05)),
                    quality=float(rng.uniform(5, 12)),
                    jitter=0.2,
                    level_db=float(rng.uniform(-12, -6)),
                )
                factor = float(shift * rng.uniform(0.97, 1.03))
                tools.append(Tool(f"{letter}{piece}", (rattle,), resonance_factor=factor))
        return tuple(tools)

    return draw


def _draw_products(rng: np.random.Generator) -> tuple[Tool, ...]:
    """Products differ in the speed at which the gearbox drives them."""
    return tuple(
        Tool(name, speed_factor=float(np.exp(0.06 * rng.standard_normal()))) for name in "ABCDEFXYZ"
    )


def _draw_grits(rng: np.random.Generator) -> tuple[Tool, ...]:
    """The finer the grit, the higher the noise of sanding."""
    coarse_hz = rng.uniform(1_200, 2_200)
    return tuple(
        Tool(name, (Hiss(float(coarse_hz * 1.35**step), 0.9, depth=0.3, load_db=4.0),))
        for step, name in enumerate(_GRITS)
    )


def _settings(
    speeds: Sequence[int], loads: Sequence[int] = (1,), tools: Sequence[str] = ("",)
) -> tuple[Setting, ...]:
    return tuple(Setting(speed, load, tool) for tool, speed, load in product(tools, speeds, loads))


def _pieces(letters: str) -> list[str]:
    return [letter + piece for letter in letters for piece in "12"]


_CAR = "car_{tool}_spd_{speed}_mic_2_mic_1"  # the microphones: near, then far
_GRITS = ("60", "120", "240")
_PLANS: dict[Family, _Plan] = {
    "fan": _Plan(24.0, 3, _settings((1, 2, 3)), _settings((1, 2, 3)), "spd_{speed}"),
    "gearbox": _Plan(
        18.0,
        1,
        tuple(Setting(1, 1 + number % 3, tool) for number, tool in enumerate("ABCDEF")),
        tuple(Setting(1, 1 + number, tool) for number, tool in enumerate("XYZ")),
        "pro_{tool}",
        _draw_products,
    ),
    "valve": _Plan(1.1, 3, _settings((1, 2), (1, 2)), _settings((3,), (1, 3))),
    "ToyCar": _Plan(
        95.0,
        5,
        _settings((1, 2, 3), tools=_pieces("ABC")),
        _settings((4, 5), tools=_pieces("D")),
        _CAR,
        _draw_cars("ABCD"),
    ),
    "bearing": _Plan(26.0, 3, _settings((1, 2), (1, 2)), _settings((3,), (1, 2))),
    "slider": _Plan(1.8, 3, _settings((1, 2), (1, 2)), _settings((3,), (1, 3))),
    "pump": _Plan(
        29.0, 3, _settings((1, 2), (1, 2)), _settings((1, 2), (3,)), "spd_{speed}_load_{load}"
    ),
    "ToyDrone": _Plan(
        120.0,
        3,
        _settings((1, 2), tools=_pieces("AB")),
        _settings((3,), tools=_pieces("C")),
        _CAR,
        _draw_cars("ABC"),
    ),
    "sander": _Plan(
        150.0,
        5,
        _settings((2, 4), tools=_GRITS),
        _settings((1, 3, 5), tools=_GRITS),
        "spd_{speed}_grit_{tool}",
        _draw_grits,
    ),
}
