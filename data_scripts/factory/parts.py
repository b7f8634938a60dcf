"""What a machine's sound is made of: tones, hiss and impacts, all driven by one shaft angle.

A part renders one component from the angle of the main shaft, so that a speed that wanders moves
every component together, as in a real machine. Parts are immutable descriptions; each `render` is
vectorised and takes its randomness from the generator it is given.

Every part has a `level_db` (RMS relative to the machine's reference), a `load_db` (added at full
load) and a `speed_db` (added for each doubling of the speed), and a method

    render(angle, speed_ratio, rng) -> (num_samples,) float32 with an RMS of 1

where `angle` (num_samples,) is that of the main shaft in revolutions, increasing, `speed_ratio` the
speed relative to the machine's nominal one, and `rng` the source of what differs between clips.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

SAMPLING_RATE = 16_000
_TABLE_SIZE = 16_384  # of one revolution: linear interpolation stays below -60 dB up to order 500
_HIGHEST_HZ = 7_600.0  # tones above it are left out, so that none folds back

Waveform = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tones:
    """Harmonics of a shaft that turns `ratio` times per revolution of the main shaft.

    Attributes:
        orders: Cycles per revolution of that shaft, each at least 1.
        amplitudes_db: One per order; only their differences matter.
        ratio: Revolutions per revolution of the main shaft.
        spread_db: Standard deviation of each amplitude between clips.
    """

    orders: tuple[int, ...]
    amplitudes_db: tuple[float, ...]
    ratio: float = 1.0
    level_db: float = 0.0
    load_db: float = 0.0
    speed_db: float = 0.0
    spread_db: float = 1.5

    def render(
        self, angle: NDArray[np.float64], speed_ratio: float, rng: np.random.Generator
    ) -> Waveform:
        """Tabulate the waveform of one revolution and read it by the angle (module docstring)."""
        del speed_ratio  # the angle carries it
        orders = np.asarray(self.orders)
        spread_db = self.spread_db * rng.standard_normal(len(orders))
        amplitudes = 10 ** ((np.asarray(self.amplitudes_db) + spread_db) / 20)
        phases = np.exp(2j * np.pi * rng.random(len(orders)))
        shaft_hz = self.ratio * (angle[-1] - angle[0]) / len(angle) * SAMPLING_RATE
        audible = orders * shaft_hz < _HIGHEST_HZ
        spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=np.complex128)
        spectrum[orders[audible]] = (amplitudes * phases)[audible]
        table = fft.irfft(spectrum).astype(np.float32)
        position = _of_turn(angle * self.ratio) * _TABLE_SIZE
        left = position.astype(np.int32)
        fraction = (position - left).astype(np.float32)
        # An angle a rounding below 1 reaches the table's end: that is its beginning.
        table = np.append(table, table[0])
        steps = np.append(np.diff(table), table[1] - table[0])
        return unit_rms(table[left] + fraction * steps[left])


@dataclass(frozen=True, slots=True)
class Hiss:
    """Broadband noise around one frequency, pulsating with the shaft.

    Attributes:
        centre_hz: Of a bell on the logarithmic frequency axis, at nominal speed.
        width_octaves: Standard deviation of the bell.
        order: Pulsations per revolution of the main shaft.
        depth: 0 is steady, 1 is silent between pulses.
        sharpness: 1 is nearly sinusoidal; larger is a short burst per pulsation.
        follows_speed: Whether the centre is proportional to the speed (a flow) or fixed.
        phase: Pulsations by which the pulses come early, 0 to 1.
    """

    centre_hz: float
    width_octaves: float
    order: float = 1.0
    depth: float = 0.0
    sharpness: float = 1.0
    follows_speed: bool = False
    level_db: float = 0.0
    load_db: float = 0.0
    speed_db: float = 0.0
    phase: float = 0.0

    def render(
        self, angle: NDArray[np.float64], speed_ratio: float, rng: np.random.Generator
    ) -> Waveform:
        """Return the component with an RMS of 1 (module docstring)."""
        centre_hz = self.centre_hz * (speed_ratio if self.follows_speed else 1.0)
        noise = coloured_noise(len(angle), centre_hz, self.width_octaves, rng)
        if self.depth:
            turn = _of_turn(angle * self.order + self.phase).astype(np.float32)
            cosine = np.cos(2 * np.pi * turn)
            noise *= 1 - self.depth + self.depth * np.exp(self.sharpness * (cosine - 1))
        return unit_rms(noise)


@dataclass(frozen=True, slots=True)
class Impacts:
    """Blows at a fixed rate per revolution that make a resonance ring.

    Attributes:
        order: Blows per revolution of the main shaft; not an integer for a bearing.
        ring_hz: Resonance.
        quality: Its quality factor; it rings for about quality / ring_hz seconds.
        jitter: Standard deviation of a blow's time in periods (a bearing's balls slip).
        modulation: How much a blow's strength follows the shaft (the load zone), 0 to 1.
        modulation_order: Cycles of that per revolution: 1 is the shaft, a cage turns slower.
        phase: Periods by which the blows come late, 0 to 1.
    """

    order: float
    ring_hz: float
    quality: float
    jitter: float = 0.01
    modulation: float = 0.0
    level_db: float = 0.0
    load_db: float = 0.0
    speed_db: float = 0.0
    modulation_order: float = 1.0
    phase: float = 0.0

    def render(
        self, angle: NDArray[np.float64], speed_ratio: float, rng: np.random.Generator
    ) -> Waveform:
        """Return the component with an RMS of 1 (module docstring)."""
        del speed_ratio  # the angle carries it
        count = np.arange(np.ceil(angle[0] * self.order), angle[-1] * self.order)
        slips = self.phase + self.jitter * rng.standard_normal(len(count))
        moments = (count + slips) / self.order
        strength = np.exp(0.25 * rng.standard_normal(len(count)))
        strength *= 1 + self.modulation * np.cos(2 * np.pi * moments * self.modulation_order)
        struck = np.searchsorted(angle, moments)
        return unit_rms(
            ring(struck, strength, len(angle), ring_hz=self.ring_hz, quality=self.quality)
        )


Part = Tones | Hiss | Impacts


def ring(
    samples: NDArray[np.intp],
    strength: NDArray[np.float64],
    num_samples: int,
    *,
    ring_hz: float,
    quality: float,
) -> Waveform:
    """Return (num_samples,) of a resonance struck at `samples`, each with its `strength`."""
    blows = np.zeros(num_samples)
    inside = (samples > 0) & (samples < num_samples)
    np.add.at(blows, samples[inside], strength[inside])
    # A damped sine is the response of two poles: r exp(+-it), t = 2 pi f / rate.
    radius = np.exp(-np.pi * ring_hz / quality / SAMPLING_RATE)
    turn = 2 * np.pi * ring_hz / SAMPLING_RATE
    poles = [1.0, -2 * radius * np.cos(turn), radius**2]
    return np.asarray(signal.lfilter([np.sin(turn)], poles, blows), dtype=np.float32)


def _of_turn(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `turns` modulo 1, in place; exactly what `np.mod` gives, in a third of its time."""
    turns -= np.floor(turns)
    return turns


def coloured_noise(
    num_samples: int, centre_hz: float, width_octaves: float, rng: np.random.Generator
) -> Waveform:
    """Return Gaussian noise (num_samples,) whose magnitude is a bell over log-frequency, RMS 1."""
    size = fft.next_fast_len(num_samples, real=True)
    octaves = octaves_of(size)
    spectrum = rng.standard_normal((len(octaves), 2), dtype=np.float32).view(np.complex64)[:, 0]
    bell = (octaves - np.float32(np.log2(centre_hz))) / np.float32(width_octaves)
    return unit_rms(fft.irfft(spectrum * np.exp(-0.5 * bell * bell), size)[:num_samples])


@functools.lru_cache(maxsize=4)
def octaves_of(size: int) -> NDArray[np.float32]:
    """Return the base-2 logarithm of the frequencies in Hz of `rfft` of that size."""
    frequency = np.maximum(fft.rfftfreq(size, 1 / SAMPLING_RATE), 1.0)
    return np.asarray(np.log2(frequency), dtype=np.float32)


def unit_rms(waveform: Waveform) -> Waveform:
    """Return `waveform` with an RMS of 1; silence stays silence."""
    rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    return np.asarray(waveform / max(rms, 1e-12), dtype=np.float32)
