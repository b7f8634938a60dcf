"""How machines break: a fault adds parts to a machine's sound, or changes the shaft's motion.

Here are the faults of preset `easy`; `damage.py` has those of `challenge`.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .damage import DAMAGES, NO_FAULT, Fault, FaultMaker
from .machines import Machine
from .parts import Hiss, Impacts, Tones


def faults_of(machine: Machine) -> Mapping[str, FaultMaker]:
    """Return the kinds of fault that a machine may have."""
    return FAULTS[machine.family] if machine.geometry is None else DAMAGES[machine.family]


def make_fault(machine: Machine, kind: str, severity: float, *, gain_db: float = 0.0) -> Fault:
    """Return a fault of a machine.

    Args:
        machine: Who has it.
        kind: One of `faults_of(machine)`.
        severity: 0 (healthy) to 1; amplitudes are proportional to it.
        gain_db: Added to the level of whatever the fault adds: a preset's difficulty.

    Raises:
        ValueError: The machine cannot have such a fault, or the severity is not from 0 to 1.
    """
    if kind not in faults_of(machine):
        raise ValueError(
            f"{machine.machine_type} has no fault {kind!r}. "
            f"Choose from {', '.join(faults_of(machine))}."
        )
    if not 0 <= severity <= 1:
        raise ValueError(f"severity={severity} must be from 0 (healthy) to 1.")
    if severity == 0:
        return NO_FAULT
    fault = faults_of(machine)[kind](machine, severity)
    level_db = gain_db + 20 * np.log10(severity)
    return replace(
        fault,
        parts=tuple(replace(part, level_db=part.level_db + level_db) for part in fault.parts),
    )


def _imbalance(machine: Machine, severity: float) -> Fault:
    """Growth of the first shaft harmonics, and everything pulsating once per revolution."""
    del machine
    tones = Tones(orders=(1, 2, 3, 4), amplitudes_db=(0, -5, -10, -15), level_db=2)
    return Fault((tones,), wobble=0.6 * severity)


def _bearing(machine: Machine, severity: float) -> Fault:
    """Blows at a rate that is no multiple of the speed, ringing a high resonance."""
    del severity
    return Fault((machine.bearing,))


def _sidebands(machine: Machine, severity: float) -> Fault:
    """One bad blade: orders beside each blade-pass harmonic (and a pulsation)."""
    orders = tuple(
        machine.passing_order * k + j
        for k in range(1, 9)
        for j in (-2, -1, 1, 2)
        if k > 1 or j > -2
    )
    decays = tuple(-2.0 * (order / machine.passing_order) for order in orders)
    return Fault((Tones(orders, decays),), wobble=0.3 * severity)


def _broken_tooth(machine: Machine, severity: float) -> Fault:
    """One blow per revolution, and sidebands of the mesh."""
    del severity
    blow = Impacts(1.0, machine.bearing.ring_hz * 0.5, 6.0, jitter=0.002)
    orders = tuple(machine.passing_order * k + j for k in (1, 2, 3) for j in (-4, -3, 3, 4))
    return Fault((blow, Tones(orders, (0.0,) * len(orders), level_db=-6)))


def _rub(machine: Machine, severity: float) -> Fault:
    """A broadband burst at each revolution."""
    del severity
    order = 1.0 if machine.family != "slider" else 2.0
    return Fault(
        (
            Hiss(
                machine.bearing.ring_hz * 0.8,
                0.7,
                order=order,
                depth=0.95,
                sharpness=6.0,
                level_db=-4,
            ),
        )
    )


def _leak(machine: Machine, severity: float) -> Fault:
    """A steady hiss at high frequencies."""
    del machine, severity
    return Fault((Hiss(5_500.0, 0.35, level_db=-5),))


def _looseness(machine: Machine, severity: float) -> Fault:
    """Subharmonics: odd multiples of half the speed."""
    del severity
    scale = 1 if machine.family != "slider" else machine.passing_order
    orders = tuple(range(1, 40, 2))
    decays = tuple(-0.3 * order for order in orders)
    return Fault((Tones(orders, decays, ratio=0.5 * scale, level_db=2),))


def _slip(machine: Machine, severity: float) -> Fault:
    """A speed below what any setting has by its own variation."""
    del machine
    return Fault(speed_factor=1 - 0.02 - 0.04 * severity)


FAULTS: dict[str, dict[str, FaultMaker]] = {
    "fan": {
        "imbalance": _imbalance,
        "bearing": _bearing,
        "blade": _sidebands,
        "rub": _rub,
        "looseness": _looseness,
    },
    "pump": {
        "imbalance": _imbalance,
        "bearing": _bearing,
        "leak": _leak,
        "looseness": _looseness,
        "slip": _slip,
    },
    "gearbox": {
        "broken_tooth": _broken_tooth,
        "bearing": _bearing,
        "rub": _rub,
        "looseness": _looseness,
        "slip": _slip,
    },
    "slider": {
        "bearing": _bearing,
        "rub": _rub,
        "leak": _leak,
        "looseness": _looseness,
        "slip": _slip,
    },
}
