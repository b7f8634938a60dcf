"""Faults of the machines of preset `challenge`, each where it belongs physically.

A fault's amplitudes are proportional to its severity, which `make_fault` sees to; here a severity
only moves what is not an amplitude: a speed, a depth, a moment.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .machines import BearingGeometry, Family, Machine
from .parts import Hiss, Impacts, Part, Tones


@dataclass(frozen=True, slots=True)
class Fault:
    """What a fault does to a machine's sound.

    Attributes:
        parts: Added to the machine's own; their level is relative to the machine's RMS.
        wobble: Depth of an amplitude modulation of everything by the main shaft, 0 to 1.
        speed_factor: Multiplies the speed.
        own_parts: Take the place of the machine's own; empty leaves them.
    """

    parts: tuple[Part, ...] = ()
    wobble: float = 0.0
    speed_factor: float = 1.0
    own_parts: tuple[Part, ...] = ()


NO_FAULT = Fault()
FaultMaker = Callable[[Machine, float], Fault]


def imbalance(machine: Machine, severity: float) -> Fault:
    """A force that turns with the shaft: its first harmonic, and a pulsation of everything."""
    del machine
    tones = Tones((1, 2, 3, 4), (0, -6, -12, -18), level_db=2)
    return Fault((tones,), wobble=0.5 * severity)


def outer_race(machine: Machine, severity: float) -> Fault:
    """A ball strikes the spot at the ball-pass frequency, always at the same load."""
    del severity
    return Fault((machine.bearing,))


def inner_race(machine: Machine, severity: float) -> Fault:
    """The spot turns with the shaft through the load zone, which modulates the blows."""
    del severity
    return Fault((_blows(machine, _geometry(machine).inner_order, 1.0),))


def ball(machine: Machine, severity: float) -> Fault:
    """A spot on a ball strikes both races in turn; the cage carries it through the load zone."""
    del severity
    geometry = _geometry(machine)
    return Fault((_blows(machine, 2 * geometry.spin_order, geometry.cage_order),))


def broken_tooth(machine: Machine, severity: float) -> Fault:
    """One blow per revolution of the gear, and sidebands of the mesh at its speed."""
    del severity
    shaft = 1.0
    mesh = machine.passing_order
    if machine.family == "ToyCar":  # the crown's tooth: the axle is the slow shaft
        shafts = [part.ratio for part in machine.parts if isinstance(part, Tones)]
        shaft = min(shafts)
    blow = Impacts(shaft, machine.bearing.ring_hz * 0.5, 6.0, jitter=0.002)
    orders = tuple(mesh * k + j for k in (1, 2, 3) for j in (-4, -3, 3, 4))
    return Fault((blow, Tones(orders, (0.0,) * len(orders), level_db=-6)))


def blade(machine: Machine, severity: float) -> Fault:
    """One blade or vane unlike the others: harmonics of the shaft around the blade-pass ones."""
    passing = machine.passing_order
    orders = tuple(sorted({passing * k + j for k in range(1, 9) for j in (-1, 1)} - {0}))
    tones = Tones(orders, tuple(-2.0 * order / passing for order in orders))
    return Fault((tones,), wobble=0.3 * severity)


def rub(machine: Machine, severity: float) -> Fault:
    """Something grazes: a broadband burst per revolution, or per stroke."""
    del severity
    order = {"slider": 2.0, "ToyCar": 0.25}.get(machine.family, 1.0)
    centre_hz = machine.bearing.ring_hz * 0.8
    burst = Hiss(centre_hz, 0.7, order=order, depth=0.95, sharpness=6.0, level_db=-4)
    return Fault((burst,))


def leak(machine: Machine, severity: float) -> Fault:
    """A jet: a steady hiss, the higher the smaller the hole."""
    del machine
    return Fault((Hiss(5_500.0 - 1_000.0 * severity, 0.35, level_db=-5),))


def looseness(machine: Machine, severity: float) -> Fault:
    """A part that lifts off every second revolution: odd multiples of half the speed."""
    del severity
    scale = machine.passing_order if machine.family == "slider" else 1
    orders = tuple(range(1, 40, 2))
    tones = Tones(orders, tuple(-0.3 * order for order in orders), ratio=0.5 * scale, level_db=2)
    return Fault((tones,))


def bounce(machine: Machine, severity: float) -> Fault:
    """A worn seat or end stop: each blow is followed by a weaker one, soon after."""
    del severity
    echoes: list[Part] = [
        replace(part, phase=part.phase + 0.04, jitter=0.01)
        for part in machine.parts
        if isinstance(part, Impacts)
    ]
    return Fault(tuple(echoes))


def timing(machine: Machine, severity: float) -> Fault:
    """A sluggish stroke: the second blow of a cycle comes late, and at less steady moments."""
    own: list[Part] = []
    for part in machine.parts:
        if not isinstance(part, Impacts):
            own.append(part)
        elif part.order == 2.0:  # both ends of a stroke: from here on apart
            one = replace(part, order=1.0, level_db=part.level_db - 3.0)  # half the energy
            late = replace(one, phase=0.5 + 0.2 * severity, jitter=part.jitter + 0.05 * severity)
            own += [one, late]
        elif part.phase:
            jitter = part.jitter + 0.05 * severity
            own.append(replace(part, phase=part.phase + 0.25 * severity, jitter=jitter))
        else:
            own.append(part)
    return Fault(own_parts=tuple(own))


def slip(machine: Machine, severity: float) -> Fault:
    """A belt or coupling that slips, or a battery that is low: less speed."""
    del machine
    return Fault(speed_factor=1 - 0.08 * severity)


def _geometry(machine: Machine) -> BearingGeometry:
    assert machine.geometry is not None  # every machine of `challenge` has one
    return machine.geometry


def _blows(machine: Machine, order: float, modulation_order: float) -> Impacts:
    """Return blows of the damaged bearing at another order of its shaft."""
    shaft_order = machine.bearing.order / _geometry(machine).outer_order
    return replace(
        machine.bearing,
        order=order * shaft_order,
        modulation=0.8,
        modulation_order=modulation_order * shaft_order,
    )


DAMAGES: dict[Family, dict[str, FaultMaker]] = {
    "fan": {
        "imbalance": imbalance,
        "outer_race": outer_race,
        "blade": blade,
        "rub": rub,
        "looseness": looseness,
    },
    "gearbox": {
        "broken_tooth": broken_tooth,
        "outer_race": outer_race,
        "inner_race": inner_race,
        "rub": rub,
        "looseness": looseness,
    },
    "valve": {"timing": timing, "leak": leak, "looseness": bounce},
    "ToyCar": {
        "broken_tooth": broken_tooth,
        "imbalance": imbalance,
        "rub": rub,
        "looseness": looseness,
        "slip": slip,
    },
    "bearing": {
        "outer_race": outer_race,
        "inner_race": inner_race,
        "ball": ball,
        "imbalance": imbalance,
    },
    "slider": {
        "timing": timing,
        "outer_race": outer_race,
        "rub": rub,
        "looseness": looseness,
        "slip": slip,
    },
    "pump": {
        "imbalance": imbalance,
        "outer_race": outer_race,
        "blade": blade,
        "leak": leak,
        "slip": slip,
    },
    "ToyDrone": {
        "blade": blade,
        "imbalance": imbalance,
        "rub": rub,
        "looseness": looseness,
        "slip": slip,
    },
    "sander": {
        "imbalance": imbalance,
        "inner_race": inner_race,
        "rub": rub,
        "looseness": looseness,
        "slip": slip,
    },
}
