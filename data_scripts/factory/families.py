"""What each family of machines is made of, drawn: parts, and the orders of the strongest tone."""

from collections.abc import Callable

import numpy as np

from .parts import Hiss, Impacts, Part, Tones


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


def _draw_valve(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """A blow when it opens and one when it closes, the flow in between, and a solenoid's hum."""
    opens = Impacts(
        order=1.0,
        ring_hz=rng.uniform(900, 2_500),
        quality=rng.uniform(6, 15),
        jitter=0.003,
        level_db=rng.uniform(-2, 2),
        load_db=3.0,
    )
    closes = Impacts(
        order=1.0,
        ring_hz=rng.uniform(1_200, 3_500),
        quality=rng.uniform(6, 15),
        jitter=0.003,
        level_db=rng.uniform(-3, 1),
        phase=rng.uniform(0.3, 0.6),
    )
    flow = Hiss(
        centre_hz=rng.uniform(2_000, 4_500),
        width_octaves=rng.uniform(0.6, 1.0),
        depth=0.95,
        sharpness=rng.uniform(1.5, 3.0),
        phase=-closes.phase / 2,
        level_db=rng.uniform(-5, -1),
        load_db=5.0,
    )
    mains = int(rng.integers(45, 60))
    hum = Tones(
        orders=tuple(mains * k for k in range(1, 11)),
        amplitudes_db=_decaying(rng, 10, rng.uniform(1.0, 2.5)),
        level_db=rng.uniform(-10, -4),
    )
    return (opens, closes, flow, hum), mains


def _draw_toy_car(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """A brushed motor's commutation, a pinion on a crown gear with sidebands, rolling wheels."""
    pinion, crown = int(rng.integers(8, 13)), int(rng.integers(30, 45))
    commutation = Tones(
        orders=tuple(6 * k for k in range(1, 7)),  # three segments, two brushes
        amplitudes_db=_decaying(rng, 6, rng.uniform(2.0, 4.0)),
        level_db=rng.uniform(-8, -3),
        load_db=3.0,
    )
    mesh = Tones(
        orders=tuple(crown * k + j for k in range(1, 5) for j in (0, -1, 1)),
        amplitudes_db=tuple(
            float(a + b)
            for a in _decaying(rng, 4, 3.0)
            for b in (0.0, *(-rng.uniform(6, 14, size=2)))
        ),
        ratio=pinion / crown,  # of the axle, which a tooth of the pinion turns by one of the crown
        load_db=4.0,
    )
    wheels = Hiss(
        centre_hz=rng.uniform(800, 2_500),
        width_octaves=rng.uniform(0.8, 1.4),
        order=pinion / crown,
        depth=rng.uniform(0.2, 0.5),
        level_db=rng.uniform(-4, 1),
        speed_db=6.0,
    )
    return (commutation, mesh, wheels), pinion


def _draw_bearing(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """A shaft on a test bench: its harmonics, the driving motor's slots, and the balls' rolling."""
    slots = int(rng.choice([24, 28, 32, 36]))
    shaft = Tones(
        orders=tuple(range(1, 13)),
        amplitudes_db=_decaying(rng, 12, rng.uniform(1.0, 2.0)),
        level_db=rng.uniform(-5, 0),
    )
    motor = Tones(
        orders=tuple(slots * k + j for k in (1, 2) for j in (-2, 0, 2)),
        amplitudes_db=_decaying(rng, 6, 1.0),
        level_db=rng.uniform(-9, -4),
        load_db=4.0,
    )
    rolling = Hiss(
        centre_hz=rng.uniform(900, 2_800),
        width_octaves=rng.uniform(0.8, 1.4),
        order=rng.uniform(2.6, 5.0),
        depth=rng.uniform(0.1, 0.3),
        level_db=rng.uniform(-4, 0),
        load_db=3.0,
        speed_db=6.0,
    )
    return (shaft, motor, rolling), slots


def _draw_toy_drone(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """Four rotors of two blades at nearly one speed, which beat, and the air they move."""
    ratios = 1 + 0.02 * rng.standard_normal(3)
    rotors = tuple(
        Tones(
            orders=tuple(2 * k for k in range(1, 13)),
            amplitudes_db=_decaying(rng, 12, rng.uniform(1.5, 3.0)),
            ratio=float(ratio),
            level_db=rng.uniform(-7, -4),
        )
        for ratio in (1.0, *ratios)
    )
    air = Hiss(
        centre_hz=rng.uniform(1_200, 3_000),
        width_octaves=rng.uniform(1.0, 1.5),
        order=2.0,
        depth=rng.uniform(0.1, 0.3),
        follows_speed=True,
        level_db=rng.uniform(-4, 1),
        speed_db=10.0,
    )
    return (*rotors, air), 2


def _draw_sander(rng: np.random.Generator) -> tuple[tuple[Part, ...], int]:
    """A universal motor with its cooling fan, and a plate on an eccentric; the grit is a tool."""
    blades = int(rng.choice([11, 13, 15, 17]))
    motor = Tones(
        orders=tuple(range(1, 21)),
        amplitudes_db=_decaying(rng, 20, rng.uniform(0.6, 1.2)),
        level_db=rng.uniform(-4, 0),
        load_db=3.0,
    )
    fan = Tones(
        orders=tuple(blades * k for k in range(1, 4)),
        amplitudes_db=_decaying(rng, 3, 5.0),
        level_db=rng.uniform(-5, -1),
    )
    air = Hiss(
        centre_hz=rng.uniform(1_500, 3_000),
        width_octaves=rng.uniform(1.0, 1.5),
        follows_speed=True,
        level_db=rng.uniform(-5, -1),
        speed_db=10.0,
    )
    return (motor, fan, air), blades


PARTS: dict[str, Callable[[np.random.Generator], tuple[tuple[Part, ...], int]]] = {
    "fan": _draw_fan,
    "pump": _draw_pump,
    "gearbox": _draw_gearbox,
    "slider": _draw_slider,
    "valve": _draw_valve,
    "ToyCar": _draw_toy_car,
    "bearing": _draw_bearing,
    "ToyDrone": _draw_toy_drone,
    "sander": _draw_sander,
}
