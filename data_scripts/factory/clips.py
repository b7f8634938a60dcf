"""One clip: a machine in a scene, healthy or not, as two microphones record it."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .damage import NO_FAULT, Fault
from .faults import faults_of, make_fault
from .machines import BodyResonance, Machine, Setting
from .parts import SAMPLING_RATE, Part, Waveform, unit_rms
from .presets import Preset
from .recordings import Recordings
from .rooms import Place, machine_at_microphones


@dataclass(frozen=True, eq=False)
class Clip:
    """What both microphones record, and the two stems whose sum it is, but for clipped peaks.

    Attributes:
        near: (num_samples,) float32 in [-1, 1].
        far: Same shape.
        machine: (2, num_samples), the machine alone at near and far.
        noise: (2, num_samples), everything else.
        fault_kind: One of `faults_of(machine)`; None if it has none.
        fault: (2, num_samples), what `machine` has more, and has less, than the same machine at the
            same moment without its fault; zero if it has none, None if it was not asked for.
    """

    near: NDArray[np.float32]
    far: NDArray[np.float32]
    machine: NDArray[np.float32]
    noise: NDArray[np.float32]
    fault_kind: str | None = None
    fault: NDArray[np.float32] | None = None


def render_clip(
    machine: Machine,
    scene: Place,
    setting: Setting,
    *,
    seed: np.random.SeedSequence,
    num_samples: int,
    snr_db: tuple[float, float],
    preset: Preset,
    anomalous: bool = False,
    severity: float | None = None,
    recordings: Recordings | None = None,
    fault_stem: bool = False,
) -> Clip:
    """Simulate one clip.

    The machine, the noise, the levels and the fault have a generator each, so that noise and levels
    are the same whether or not there is a fault. The machine's level at near is set *after* the
    fault, to a value that does not know about it: neither noise nor level tells the condition.

    Args:
        machine: Who is heard.
        scene: Where.
        setting: How it runs.
        seed: Of this clip.
        num_samples: Length.
        snr_db: Bounds of the machine's level over the noise at the near microphone.
        preset: How hard the factory is.
        anomalous: Whether the machine has a fault, of a drawn kind.
        severity: Of the fault, 0 to 1; None draws it.
        recordings: Real noise, in the place of some of the simulated.
        fault_stem: Whether the clip has `fault`; the machine is simulated twice for it.
    """

    # Not seed.spawn, which counts its calls: rendering a clip again gives the same clip.
    def generator(stream: int) -> np.random.Generator:
        key = (*seed.spawn_key, stream)
        return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key))

    machine_rng, noise_rng, level_rng, fault_rng = (generator(stream) for stream in range(4))
    kind, fault = None, NO_FAULT
    if anomalous:
        kind, fault = _draw_fault(machine, preset, severity, fault_rng)
    total = scene.lead_in + num_samples
    excitation = _excite(machine, setting, fault, total, preset, machine_rng, fault_rng)
    factor = machine.tool(setting).resonance_factor
    body = functools.partial(
        _body_gain,
        tuple(item._replace(ring_hz=item.ring_hz * factor) for item in machine.resonances),
    )
    stem = machine_at_microphones(scene, excitation, body)
    noise = scene.noise_at_microphones(
        num_samples, spread_db=preset.noise_spread_db, rng=noise_rng, recordings=recordings
    )

    machine_db = machine.level_db(setting) + level_rng.normal(0.0, 1.0)
    noise_db = -level_rng.uniform(*snr_db) - scene.snr_offset_db
    overall_db = level_rng.uniform(*preset.level_db) + scene.level_offset_db  # of full scale
    near_rms = float(np.sqrt(np.mean(np.square(stem[0], dtype=np.float64))))
    gain = np.float32(10 ** ((overall_db + machine_db) / 20) / max(near_rms, 1e-12))
    healthy = None
    if fault_stem:
        without = _excite(machine, setting, NO_FAULT, total, preset, generator(0), fault_rng)
        healthy = gain * machine_at_microphones(scene, without, body)
    stem *= gain
    noise *= np.float32(10 ** ((overall_db + noise_db) / 20))
    near, far = np.clip(stem + noise, -1.0, 1.0)  # as a converter does
    added = None if healthy is None else stem - healthy
    return Clip(near=near, far=far, machine=stem, noise=noise, fault_kind=kind, fault=added)


def _draw_fault(
    machine: Machine, preset: Preset, severity: float | None, rng: np.random.Generator
) -> tuple[str, Fault]:
    """Return the kind of a fault and the fault."""
    kind = str(rng.choice(list(faults_of(machine))))
    drawn = float(rng.uniform(*preset.severity))
    fault = make_fault(
        machine, kind, drawn if severity is None else severity, gain_db=preset.fault_gain_db
    )
    return kind, fault


def _excite(
    machine: Machine,
    setting: Setting,
    fault: Fault,
    num_samples: int,
    preset: Preset,
    machine_rng: np.random.Generator,
    fault_rng: np.random.Generator,
) -> Waveform:
    """Return the sum of a machine's parts and its fault's, (num_samples,), before the housing."""
    tool = machine.tool(setting)
    setting_hz = machine.speeds_hz[setting.speed - 1] * tool.speed_factor
    load = machine.loads[setting.load - 1]
    wandering = _wandering_speed(num_samples, preset.speed_spread, machine_rng)
    angle = np.cumsum(wandering) * (setting_hz * fault.speed_factor / SAMPLING_RATE)
    angle += machine_rng.random()
    speed_ratio = setting_hz * fault.speed_factor / machine.nominal_hz

    def mix(parts: tuple[Part, ...], spread_db: float, rng: np.random.Generator) -> Waveform:
        total = np.zeros(num_samples, dtype=np.float32)
        for part in parts:
            level_db = part.level_db + part.load_db * load + part.speed_db * np.log2(speed_ratio)
            level_db += spread_db * rng.standard_normal()
            total += np.float32(10 ** (level_db / 20)) * part.render(angle, speed_ratio, rng)
        return total

    own = (*(fault.own_parts or machine.parts), *tool.parts)
    excitation = unit_rms(mix(own, preset.level_spread_db, machine_rng))
    if fault.wobble:
        turn = np.cos(2 * np.pi * np.mod(angle, 1.0).astype(np.float32))
        excitation *= 1 + np.float32(fault.wobble) * turn
    return excitation + mix(fault.parts, 0.0, fault_rng)


def _wandering_speed(
    num_samples: int, spread: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the relative speed (num_samples,): one offset per clip and a slow drift."""
    knots = np.linspace(0, num_samples, 2 + num_samples // (2 * SAMPLING_RATE))
    drift = 1 + spread * (rng.standard_normal() + 0.2 * rng.standard_normal(len(knots)))
    return np.interp(np.arange(num_samples), knots, drift)


@functools.lru_cache(maxsize=32)
def _body_gain(resonances: tuple[BodyResonance, ...], size: int) -> NDArray[np.complex64]:
    """Return the housing's complex gain (bins of an FFT): 1, and more around each resonance."""
    frequency_hz = fft.rfftfreq(size, 1 / SAMPLING_RATE)
    gain = np.ones(len(frequency_hz), dtype=np.complex64)
    for resonance in resonances:
        detuning = 2 * resonance.quality * (frequency_hz / resonance.ring_hz - 1)
        gain += ((10 ** (resonance.gain_db / 20) - 1) / (1 + 1j * detuning)).astype(np.complex64)
    return gain
