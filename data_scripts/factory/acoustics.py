"""The halls of preset `easy`: a dry room, four sources of noise that stand still, and ventilation.

A clip's noise is drawn without knowing whether the machine is healthy.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .noises import background_machine, blows, diffuse_noise, self_noise, voices
from .parts import Waveform
from .recordings import Recordings
from .rooms import Place, distance, draw_point, draw_point_at, impulse_responses, transfer

NUM_NOISE_SOURCES = 4  # two background machines, voices, blows
_HIGHEST_REFLECTION = 8
_SELF_NOISE_DB = -35.0  # below the room's noise at near
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
class Scene(Place):
    """One machine's place in a hall; each way to near has an energy of 1.

    Attributes:
        noise: What the noise sources play.
    """

    noise: Noise
    lead_in: ClassVar[int] = 4_096

    def noise_at_microphones(
        self,
        num_samples: int,
        *,
        spread_db: float,
        rng: np.random.Generator,
        recordings: Recordings | None = None,
    ) -> Waveform:
        """Return a clip's noise (2, num_samples); recordings take the place of the voices."""
        total = self.lead_in + num_samples
        sources = [
            background_machine(total, self.noise.hum_hz[0], rng),
            background_machine(total, self.noise.hum_hz[1], rng),
            voices(total, self.noise.voice_hz, rng)
            if recordings is None
            else recordings.excerpt(total, rng),
            blows(total, rng),
        ]
        levels_db = np.array(self.noise.levels_db) + spread_db * rng.standard_normal(
            len(sources) + 1
        )
        gains = 10 ** (levels_db / 20)
        size = fft.next_fast_len(total, real=True)  # wrapped tails fall into the lead-in
        spectra = fft.rfft(np.stack(sources) * gains[:-1, None].astype(np.float32), size)
        heard = np.einsum("sb,scb->cb", spectra, transfer(self, size)[1:])  # (2, bins)
        at_microphones = fft.irfft(heard, size)[:, self.lead_in : total]
        ventilation_hz = self.noise.ventilation_hz * 2 ** (0.3 * rng.standard_normal())
        at_microphones += gains[-1] * diffuse_noise(
            num_samples, self.microphone_distance, ventilation_hz, rng
        )
        near_rms = np.sqrt(np.mean(np.square(at_microphones[0], dtype=np.float64)))
        noise = np.asarray(at_microphones / near_rms, dtype=np.float32)
        return noise + self_noise(num_samples, np.full(2, _SELF_NOISE_DB), rng)


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
    machine = draw_point(rng, hall.size)
    near = draw_point_at(rng, hall.size, machine, 0.2, 0.6)
    noise_sources: list[NDArray[np.float64]] = []
    while len(noise_sources) < NUM_NOISE_SOURCES:  # far may hang where no source is closer to it
        far = draw_point_at(rng, hall.size, machine, 2.0, 4.0)
        noise_sources = _noise_sources(rng, hall.size, machine, far)
    responses = impulse_responses(
        hall.size,
        hall.absorption,
        _HIGHEST_REFLECTION,
        [machine, *noise_sources],
        [near, far],
    )
    energy = np.square(responses[:, 0]).sum(axis=-1)  # of each way to near
    levels_db = np.array(hall.noise.levels_db) + 2.0 * rng.standard_normal(NUM_NOISE_SOURCES + 1)
    first_hz, second_hz = np.array(hall.noise.hum_hz) * rng.uniform(0.9, 1.1, size=2)
    return Scene(
        responses=responses / np.sqrt(energy)[:, None, None],
        microphone_distance=distance(near, far),
        noise=Noise(
            hum_hz=(float(first_hz), float(second_hz)),
            voice_hz=hall.noise.voice_hz * float(rng.uniform(0.85, 1.15)),
            ventilation_hz=hall.noise.ventilation_hz * float(rng.uniform(0.85, 1.15)),
            levels_db=tuple(levels_db.tolist()),
        ),
    )


def _noise_sources(
    rng: np.random.Generator,
    room: NDArray[np.float64],
    machine: NDArray[np.float64],
    far: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    """Draw points that are closer to far than to the machine: all of them, or what was found."""
    points: list[NDArray[np.float64]] = []
    for _ in range(_TRIES):
        point = draw_point(rng, room)
        if max(1.0, distance(point, far)) < distance(point, machine):
            points.append(point)
            if len(points) == NUM_NOISE_SOURCES:
                break
    return points
