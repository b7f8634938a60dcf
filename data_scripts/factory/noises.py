"""Sounds of a hall that are not the machine's: each drawn without knowing of its condition."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .parts import (
    SAMPLING_RATE,
    Tones,
    Waveform,
    coloured_noise,
    octaves_of,
    ring,
    unit_rms,
)
from .rooms import diffuse_coherence


def diffuse_noise(
    num_samples: int, microphone_distance: float, centre_hz: float, rng: np.random.Generator
) -> Waveform:
    """Return noise (2, num_samples) that comes from everywhere, each channel with an RMS of 1.

    One channel mixes the other with an independent noise, frequency by frequency.
    """
    first, second = (coloured_noise(num_samples, centre_hz, 2.0, rng) for _ in range(2))
    size = fft.next_fast_len(num_samples, real=True)
    frequency = fft.rfftfreq(size, 1 / SAMPLING_RATE)
    coherence = diffuse_coherence(frequency, microphone_distance)
    mixed = coherence * fft.rfft(first, size)
    mixed += np.sqrt(1 - coherence**2) * fft.rfft(second, size)
    return np.stack([first, unit_rms(fft.irfft(mixed, size)[:num_samples])])


def noise_spectrum(
    size: int, centres_hz: Sequence[float], rng: np.random.Generator, *, width_octaves: float = 1.5
) -> NDArray[np.complex64]:
    """Return the spectrum (bins,) of a steady noise with bells over log-frequency, RMS about 1.

    Its phases are random, so nothing says where the noise begins: `size` samples are one turn.
    """
    octaves = octaves_of(size)
    bells = np.zeros(len(octaves), dtype=np.float32)
    for centre_hz in centres_hz:
        distance = (octaves - np.float32(np.log2(centre_hz))) / np.float32(width_octaves)
        bells += np.exp(-0.5 * distance * distance)
    # Parseval: each bin stands for two, and its parts have a variance of 1 each.
    bells *= np.float32(size / (2 * np.sqrt(np.square(bells, dtype=np.float64).sum())))
    spectrum = rng.standard_normal((len(octaves), 2), dtype=np.float32).view(np.complex64)[:, 0]
    return np.asarray(spectrum * bells, dtype=np.complex64)


def hum(num_samples: int, speed_hz: float, rng: np.random.Generator) -> Waveform:
    """Return the tones of a machine that runs steadily; its speed differs by clip."""
    angle = np.arange(num_samples, dtype=np.float64)
    angle *= speed_hz * (1 + 0.06 * rng.standard_normal()) / SAMPLING_RATE
    orders, slope_db = tuple(range(1, 41)), rng.uniform(0.4, 1.2)
    tones = Tones(orders, tuple(-slope_db * order for order in orders), spread_db=5.0)
    return tones.render(angle, 1.0, rng)


def calls(num_samples: int, centre_hz: float, rng: np.random.Generator) -> Waveform:
    """Return voices, in two bands that swell and fade together, with blows among them."""
    size = fft.next_fast_len(num_samples, real=True)
    bands_hz = np.array([1.0, 3.2]) * centre_hz * 2 ** (0.3 * rng.standard_normal(2))
    spectrum = noise_spectrum(size, bands_hz.tolist(), rng, width_octaves=0.8)
    steps = np.arange(0, num_samples + 2 * SAMPLING_RATE, SAMPLING_RATE // 5)  # 5 per second
    levels = np.exp(0.6 * rng.standard_normal(len(steps)))
    swelling = np.interp(np.arange(num_samples), steps, levels).astype(np.float32)
    spoken = unit_rms(fft.irfft(spectrum, size)[:num_samples] * swelling)
    share = np.float32(rng.random())
    return unit_rms(share * spoken + (1 - share) * blows(num_samples, rng))


def background_machine(num_samples: int, speed_hz: float, rng: np.random.Generator) -> Waveform:
    """Return a hum with harmonics and some hiss; its speed differs by some per cent per clip."""
    speed_hz *= 1 + 0.06 * rng.standard_normal()
    angle = np.arange(num_samples, dtype=np.float64) * (speed_hz / SAMPLING_RATE) + rng.random()
    slope_db = rng.uniform(0.4, 1.2)
    orders = tuple(range(1, 41))
    tones = Tones(orders, tuple(-slope_db * order for order in orders), spread_db=5.0)
    hiss = coloured_noise(num_samples, 700 * 2 ** (0.8 * rng.standard_normal()), 1.3, rng)
    return np.asarray(
        tones.render(angle, 1.0, rng) + rng.uniform(0.3, 1.0) * hiss, dtype=np.float32
    )


def voices(num_samples: int, centre_hz: float, rng: np.random.Generator) -> Waveform:
    """Return babble-like noise: two bands, each with slow level changes of its own."""
    voices = np.zeros(num_samples, dtype=np.float32)
    for band_hz, share in ((centre_hz, 1.0), (3.2 * centre_hz, rng.uniform(0.2, 0.8))):
        band = coloured_noise(num_samples, band_hz * 2 ** (0.3 * rng.standard_normal()), 0.8, rng)
        steps = np.arange(0, num_samples + 2 * SAMPLING_RATE, SAMPLING_RATE // 5)  # 5 per second
        levels = np.exp(0.6 * rng.standard_normal(len(steps)))
        voices += share * band * np.interp(np.arange(num_samples), steps, levels)
    return unit_rms(voices)


def blows(num_samples: int, rng: np.random.Generator) -> Waveform:
    """Return blows at random moments, each clip with its own two resonances."""
    seconds = num_samples / SAMPLING_RATE
    blows = np.zeros(num_samples, dtype=np.float32)
    for _ in range(2):
        count = 1 + rng.poisson(rng.uniform(0.5, 3.0) * seconds)
        blows += ring(
            rng.integers(0, num_samples, count),
            rng.lognormal(0, 0.5, count),
            num_samples,
            ring_hz=float(np.exp(rng.uniform(np.log(300), np.log(5_000)))),
            quality=float(rng.uniform(10, 60)),
        )
    return unit_rms(blows)


def self_noise(
    num_samples: int, levels_db: NDArray[np.float64], rng: np.random.Generator
) -> Waveform:
    """Return the microphones' own noise (2, num_samples), white, at a level for each (2,)."""
    gains = (10 ** (levels_db / 20)).astype(np.float32)
    return gains[:, None] * rng.standard_normal((2, num_samples), dtype=np.float32)
