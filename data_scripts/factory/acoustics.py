"""Where machines stand: a room, two microphones, and the noise of everything else in it.

A scene holds impulse responses by the image-source method (Allen and Berkley, 1979), computed once
per machine and domain. A clip's noise is drawn without knowing whether the machine is healthy.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .parts import SAMPLING_RATE, Tones, Waveform, coloured_noise, ring, unit_rms

Transfer = Callable[[NDArray[np.float64]], NDArray[np.complex64]]

NUM_NOISE_SOURCES = 4  # two background machines, voices, blows
_SPEED_OF_SOUND = 343.0  # m/s
_HIGHEST_REFLECTION = 8
_MARGIN = 0.4  # metres between anything and a wall
_TRIES = 10_000  # for all noise sources of a scene


@dataclass(frozen=True, slots=True)
class Noise:
    """What the noise of a place is made of.

    Attributes:
        hum_hz: Speeds of two background machines.
        voice_hz: Centre of the voices' lower band.
        ventilation_hz: Centre of the diffuse noise.
        levels_db: Typical levels at near: of the noise sources and, last, of the ventilation.
    """

    hum_hz: tuple[float, float]
    voice_hz: float
    ventilation_hz: float
    levels_db: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Hall:
    """A rectangular room, and the noise that is typical of it.

    Attributes:
        size: (3,) length, width and height in metres.
        absorption: Share of the sound energy that a wall takes, 0 to 1.
        noise: What is heard in it.
    """

    size: NDArray[np.float64]
    absorption: float
    noise: Noise


@dataclass(frozen=True, eq=False)
class Scene:
    """One machine's place in a hall.

    Attributes:
        responses: (1 + sources, 2, taps) float32, from the machine and then from each noise source
            to near and far; each way to near has an energy of 1.
        microphone_distance: Between the microphones, in metres.
        noise: What the noise sources play.
    """

    responses: NDArray[np.float32]
    microphone_distance: float
    noise: Noise


def draw_hall(rng: np.random.Generator) -> Hall:
    """Draw a room and its noise."""
    return Hall(
        size=rng.uniform([7.0, 6.0, 2.8], [11.0, 9.0, 4.0]),
        absorption=float(rng.uniform(0.25, 0.5)),
        noise=Noise(
            hum_hz=(float(rng.uniform(20, 45)), float(rng.uniform(45, 95))),
            voice_hz=float(rng.uniform(400, 900)),
            ventilation_hz=float(rng.uniform(200, 800)),
            levels_db=tuple(rng.uniform([-6, -6, -6, -8, -5], [2, 2, 2, 0, 1]).tolist()),
        ),
    )


def draw_scene(rng: np.random.Generator, hall: Hall) -> Scene:
    """Place a machine, two microphones and noise sources in a hall; compute the responses.

    The near microphone stands 0.2 to 0.6 m from the machine, the far one 2 to 4 m; noise sources
    are closer to the far one. Another scene of the hall has other places, and its background
    machines run at other speeds and levels.
    """
    machine = _point(rng, hall.size)
    near = _point_at(rng, hall.size, machine, 0.2, 0.6)
    noise_sources: list[NDArray[np.float64]] = []
    while len(noise_sources) < NUM_NOISE_SOURCES:  # far may hang where no source is closer to it
        far = _point_at(rng, hall.size, machine, 2.0, 4.0)
        noise_sources = _noise_sources(rng, hall.size, machine, far)
    sources = [machine, *noise_sources]
    responses = _impulse_responses(hall, sources, [near, far])
    energy = np.square(responses[:, 0]).sum(axis=-1)  # of each way to near
    levels_db = np.array(hall.noise.levels_db) + 2.0 * rng.standard_normal(NUM_NOISE_SOURCES + 1)
    first_hz, second_hz = np.array(hall.noise.hum_hz) * rng.uniform(0.9, 1.1, size=2)
    return Scene(
        responses=responses / np.sqrt(energy)[:, None, None],
        microphone_distance=_distance(near, far),
        noise=Noise(
            hum_hz=(float(first_hz), float(second_hz)),
            voice_hz=hall.noise.voice_hz * float(rng.uniform(0.85, 1.15)),
            ventilation_hz=hall.noise.ventilation_hz * float(rng.uniform(0.85, 1.15)),
            levels_db=tuple(levels_db.tolist()),
        ),
    )


def noise_at_microphones(
    scene: Scene, num_samples: int, *, lead_in: int, spread_db: float, rng: np.random.Generator
) -> Waveform:
    """Return a clip's noise (2, num_samples), near and far, with an RMS of 1 at near.

    Args:
        scene: Where.
        num_samples: Of the clip.
        lead_in: Samples simulated before it, so that the room already rings.
        spread_db: Standard deviation of each source's level between clips.
        rng: Source of all that differs between clips.
    """
    total = lead_in + num_samples
    sources = [
        _background_machine(total, scene.noise.hum_hz[0], rng),
        _background_machine(total, scene.noise.hum_hz[1], rng),
        _voices(total, scene.noise.voice_hz, rng),
        _blows(total, rng),
    ]
    levels_db = np.array(scene.noise.levels_db) + spread_db * rng.standard_normal(len(sources) + 1)
    gains = 10 ** (levels_db / 20)
    size = fft.next_fast_len(total, real=True)  # wrapped tails fall into the lead-in
    spectra = fft.rfft(np.stack(sources) * gains[:-1, None].astype(np.float32), size)
    heard = np.einsum("sb,scb->cb", spectra, _transfer(scene, size)[1:])  # (2, bins)
    at_microphones = fft.irfft(heard, size)[:, lead_in:total]
    ventilation_hz = scene.noise.ventilation_hz * 2 ** (0.3 * rng.standard_normal())
    at_microphones += gains[-1] * diffuse_noise(
        num_samples, scene.microphone_distance, ventilation_hz, rng
    )
    near_rms = np.sqrt(np.mean(np.square(at_microphones[0], dtype=np.float64)))
    return np.asarray(at_microphones / near_rms, dtype=np.float32)


def machine_at_microphones(
    scene: Scene, excitation: Waveform, body: Transfer, *, lead_in: int
) -> Waveform:
    """Return the machine's sound (2, num_samples - lead_in), at near and far.

    Args:
        scene: Where.
        excitation: (num_samples,), before the housing.
        body: From a frequency in Hz (bins,) to the housing's complex gain.
        lead_in: Samples at the beginning, in which the room begins to ring.
    """
    size = fft.next_fast_len(len(excitation), real=True)  # wrapped tails fall into the lead-in
    spectrum = fft.rfft(excitation, size) * body(fft.rfftfreq(size, 1 / SAMPLING_RATE))
    heard = fft.irfft(spectrum * _transfer(scene, size)[0], size)
    return np.asarray(heard[:, lead_in : len(excitation)], dtype=np.float32)


@functools.lru_cache(maxsize=8)
def _transfer(scene: Scene, size: int) -> NDArray[np.complex64]:
    """Return the spectra (1 + sources, 2, bins) of a scene's responses, the machine's first."""
    return np.asarray(fft.rfft(scene.responses, size), dtype=np.complex64)


def diffuse_noise(
    num_samples: int, microphone_distance: float, centre_hz: float, rng: np.random.Generator
) -> Waveform:
    """Return noise (2, num_samples) that comes from everywhere, each channel with an RMS of 1.

    Its coherence is sin(x) / x with x = 2 pi f d / c (Cook et al., 1955): one channel mixes the
    other with an independent noise, frequency by frequency.
    """
    first, second = (coloured_noise(num_samples, centre_hz, 2.0, rng) for _ in range(2))
    size = fft.next_fast_len(num_samples, real=True)
    frequency = fft.rfftfreq(size, 1 / SAMPLING_RATE)
    coherence = np.sinc(2 * frequency * microphone_distance / _SPEED_OF_SOUND).astype(np.float32)
    mixed = coherence * fft.rfft(first, size)
    mixed += np.sqrt(1 - coherence**2) * fft.rfft(second, size)
    return np.stack([first, unit_rms(fft.irfft(mixed, size)[:num_samples])])


def _background_machine(num_samples: int, speed_hz: float, rng: np.random.Generator) -> Waveform:
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


def _voices(num_samples: int, centre_hz: float, rng: np.random.Generator) -> Waveform:
    """Return babble-like noise: two bands, each with slow level changes of its own."""
    voices = np.zeros(num_samples, dtype=np.float32)
    for band_hz, share in ((centre_hz, 1.0), (3.2 * centre_hz, rng.uniform(0.2, 0.8))):
        band = coloured_noise(num_samples, band_hz * 2 ** (0.3 * rng.standard_normal()), 0.8, rng)
        steps = np.arange(0, num_samples + 2 * SAMPLING_RATE, SAMPLING_RATE // 5)  # 5 per second
        levels = np.exp(0.6 * rng.standard_normal(len(steps)))
        voices += share * band * np.interp(np.arange(num_samples), steps, levels)
    return unit_rms(voices)


def _blows(num_samples: int, rng: np.random.Generator) -> Waveform:
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


def _point(rng: np.random.Generator, room: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw a point of the room where machines stand: 0.5 to 1.5 m above the floor."""
    return rng.uniform([_MARGIN, _MARGIN, 0.5], [*(room[:2] - _MARGIN), 1.5])


def _noise_sources(
    rng: np.random.Generator,
    room: NDArray[np.float64],
    machine: NDArray[np.float64],
    far: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    """Draw points that are closer to far than to the machine: all of them, or what was found."""
    points: list[NDArray[np.float64]] = []
    for _ in range(_TRIES):
        point = _point(rng, room)
        if max(1.0, _distance(point, far)) < _distance(point, machine):
            points.append(point)
            if len(points) == NUM_NOISE_SOURCES:
                break
    return points


def _point_at(
    rng: np.random.Generator,
    room: NDArray[np.float64],
    origin: NDArray[np.float64],
    nearest: float,
    farthest: float,
) -> NDArray[np.float64]:
    """Draw a point inside the room, `nearest` to `farthest` metres from `origin`."""
    while True:
        direction = rng.standard_normal(3)
        point = origin + rng.uniform(nearest, farthest) * direction / np.linalg.norm(direction)
        if (point > 0.3).all() and (point < room - 0.3).all():
            return np.asarray(point, dtype=np.float64)


def _distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(first - second))


def _impulse_responses(
    hall: Hall,
    sources: list[NDArray[np.float64]],
    microphones: list[NDArray[np.float64]],
) -> NDArray[np.float32]:
    """Return (sources, microphones, taps) float32."""
    try:
        import pyroomacoustics
    except ImportError as error:
        raise ImportError(
            "The simulated factory needs pyroomacoustics, which is not installed. "
            "Install it with: pip install 'nearfar[factory]'."
        ) from error
    # One thread: the order of its sums, and so the last bit, would depend on their number.
    threads = pyroomacoustics.constants.get("num_threads")
    pyroomacoustics.constants.set("num_threads", 1)
    try:
        box = pyroomacoustics.ShoeBox(
            hall.size,
            fs=SAMPLING_RATE,
            materials=pyroomacoustics.Material(hall.absorption),
            max_order=_HIGHEST_REFLECTION,
            use_rand_ism=False,
        )
        for position in sources:
            box.add_source(position)
        box.add_microphone_array(np.stack(microphones, axis=1))
        box.compute_rir()
    finally:
        pyroomacoustics.constants.set("num_threads", threads)
    taps = max(len(response) for channel in box.rir for response in channel)
    responses = np.zeros((len(sources), len(microphones), taps), dtype=np.float32)
    for microphone, channel in enumerate(box.rir):
        for source, response in enumerate(channel):
            responses[source, microphone, : len(response)] = response
    return responses
