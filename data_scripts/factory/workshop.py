"""The halls of preset `challenge`: reverberant, with sources that stand still and one that moves.

What no front end can lean on alone: at least three sources at once (one microphone tells one source
from the rest), a diffuse field, the microphones' own noise, reverberation longer than 64 ms, and a
far microphone that hears the machine, in some places almost as loud as near does.
"""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .noises import background_machine, calls, hum, noise_spectrum, self_noise
from .parts import SAMPLING_RATE, Waveform, unit_rms
from .recordings import Recordings
from .rooms import (
    OCTAVES_HZ,
    Place,
    Point,
    diffuse_coherence,
    distance,
    draw_point,
    draw_point_at,
    impulse_responses,
    transfer,
)

_HIGHEST_REFLECTION = 16
_STANDING = 3  # a background machine, a blower, voices and blows
_STOPS = 5  # of the moving source's path
_SHELVES_HZ = (200.0, 1_000.0, 4_000.0)
_DOMAIN_SPREAD_DB = 1.5  # standard deviation of a source's level between places of one hall


@dataclass(frozen=True, slots=True)
class Colour:
    """How a microphone hears: a high-pass and shelves, all of first order.

    Attributes:
        high_pass_hz: Below it, 6 dB per octave are lost.
        shelves_db: What frequencies above each of `_SHELVES_HZ` gain.
        gain_db: Of all frequencies.
    """

    high_pass_hz: float
    shelves_db: tuple[float, ...]
    gain_db: float

    def response(self, frequency_hz: NDArray[np.float64]) -> NDArray[np.complex64]:
        """Return the complex gain (bins,)."""
        gain = 10 ** (self.gain_db / 20) / (
            1 - 1j * self.high_pass_hz / np.maximum(frequency_hz, 1)
        )
        for corner_hz, shelf_db in zip(_SHELVES_HZ, self.shelves_db, strict=True):
            turn = 1j * frequency_hz / corner_hz
            gain *= (1 + 10 ** (shelf_db / 20) * turn) / (1 + turn)
        return np.asarray(gain, dtype=np.complex64)


@dataclass(frozen=True, eq=False)
class Workshop:
    """A rectangular room, a machine and its microphones, and the noise that is typical of it.

    Attributes:
        size: (3,) length, width and height in metres.
        machine: Where it stands, (3,).
        near: The microphone beside it.
        far: The other one.
        standing: Where the background machine and the blower stand.
        absorption: Share of the sound energy that a wall takes, for each of `OCTAVES_HZ`.
        colours: Of near and far.
        hum_hz: Speeds of the background machine and of what moves.
        blower_hz: Centres of the two bands of a blower's noise.
        voice_hz: Centre of the voices' lower band.
        ventilation_hz: Centre of the diffuse noise.
        levels_db: Typical levels at near: of the standing sources, the moving one and the diffuse
            field.
        self_noise_db: Of near and far, relative to the noise of the hall at near.
        snr_offset_db: By how much the machine is louder over the noise than in a typical hall.
        level_offset_db: By how much the recordings are louder.
    """

    size: Point
    machine: Point
    near: Point
    far: Point
    standing: tuple[Point, Point]
    absorption: tuple[float, ...]
    colours: tuple[Colour, Colour]
    hum_hz: tuple[float, float]
    blower_hz: tuple[float, float]
    voice_hz: float
    ventilation_hz: float
    levels_db: tuple[float, ...]
    self_noise_db: tuple[float, float]
    snr_offset_db: float
    level_offset_db: float


@dataclass(frozen=True, eq=False)
class Workplace(Place):
    """One machine's place in a workshop.

    Each way to near has an energy of 1, that of the moving source on the mean over its path.

    Attributes:
        workshop: With the sources' pitches and levels as they are from this place.
    """

    workshop: Workshop
    lead_in: ClassVar[int] = 8_192

    def noise_at_microphones(
        self,
        num_samples: int,
        *,
        spread_db: float,
        rng: np.random.Generator,
        recordings: Recordings | None = None,
    ) -> Waveform:
        """Return a clip's noise (2, num_samples); recordings take the place of voices and blows."""
        hall, total = self.workshop, self.lead_in + num_samples
        size = fft.next_fast_len(total, real=True)  # wrapped tails fall into the lead-in
        spread = spread_db * rng.standard_normal(len(hall.levels_db))
        gains = (10 ** ((np.array(hall.levels_db) + spread) / 20)).astype(np.float32)
        other = (
            calls(total, hall.voice_hz, rng)
            if recordings is None
            else recordings.excerpt(total, rng)
        )
        cart = unit_rms(background_machine(total, hall.hum_hz[1], rng))
        stops, shares = ride(total, rng)
        played = np.stack(
            [
                gains[0] * hum(total, hall.hum_hz[0], rng),
                gains[2] * other,
                *(gains[3] * cart * shares),
            ]
        )
        wander = 2 ** (0.2 * rng.standard_normal(3))
        blower = noise_spectrum(size, (np.array(hall.blower_hz) * wander[:2]).tolist(), rng)
        first, second = (
            noise_spectrum(size, [hall.ventilation_hz * wander[2]], rng) for _ in range(2)
        )
        sources = np.concatenate([fft.rfft(played, size), (gains[1] * blower)[None]])
        ways = [1, 3, *(1 + _STANDING + stops), 2]
        heard = np.einsum("sb,scb->cb", sources, transfer(self, size)[ways])  # (2, bins)
        coherence, colours = _diffuse_field(self, size)
        heard += (
            gains[4] * colours * [first, coherence * first + np.sqrt(1 - coherence**2) * second]
        )
        noise = fft.irfft(heard, size)[:, self.lead_in : total]
        near_rms = np.sqrt(np.mean(np.square(noise[0], dtype=np.float64)))
        noise = np.asarray(noise / near_rms, dtype=np.float32)
        return noise + self_noise(num_samples, np.array(hall.self_noise_db), rng)


def draw_workshop(rng: np.random.Generator) -> Workshop:
    """Draw a room, its machine and microphones, and its noise.

    The near microphone stands 0.2 to 0.6 m from the machine, the far one 1 to 4 m.
    """
    size = rng.uniform([7.0, 6.0, 2.8], [14.0, 10.0, 4.5])
    machine = draw_point(rng, size)
    near = draw_point_at(rng, size, machine, 0.2, 0.6)
    far = draw_point_at(rng, size, machine, 1.0, 4.0)
    first, second = (_draw_source(rng, size, machine, near, far) for _ in range(2))
    absorption = rng.uniform(0.12, 0.25)  # more of high frequencies
    return Workshop(
        size=size,
        machine=machine,
        near=near,
        far=far,
        standing=(first, second),
        absorption=tuple((absorption * np.linspace(0.8, 1.6, len(OCTAVES_HZ))).tolist()),
        colours=(_draw_colour(rng, 0.0), _draw_colour(rng, 6.0)),
        hum_hz=(float(rng.uniform(20, 45)), float(rng.uniform(45, 95))),
        blower_hz=(float(rng.uniform(150, 500)), float(rng.uniform(900, 3_500))),
        voice_hz=float(rng.uniform(400, 900)),
        ventilation_hz=float(rng.uniform(200, 800)),
        levels_db=tuple(rng.uniform([-6, -6, -8, -6, -8], [2, 2, 0, 2, 0]).tolist()),
        self_noise_db=(float(rng.uniform(-45, -30)), float(rng.uniform(-45, -30))),
        snr_offset_db=float(rng.uniform(-3.0, 3.0)),
        level_offset_db=float(rng.uniform(-6.0, 4.0)),
    )


def draw_workplace(rng: np.random.Generator, workshop: Workshop) -> Workplace:
    """Place what makes noise in a workshop; compute the responses.

    The machine, its microphones, the background machine and the blower stay where they are. In
    another workplace, calls come from elsewhere, what moves takes another path, and all sources
    have other pitches and levels.
    """
    room, machine, near, far = workshop.size, workshop.machine, workshop.near, workshop.far
    standing = [*workshop.standing, _draw_source(rng, room, machine, near, far)]
    start = draw_point(rng, room)
    end = draw_point_at(rng, room, start, 2.0, 4.0)
    path = list(np.linspace(start, end, _STOPS))
    responses = impulse_responses(
        room,
        workshop.absorption,
        _HIGHEST_REFLECTION,
        [machine, *standing, *path],
        [near, far],
    )[..., : Workplace.lead_in]
    size = fft.next_fast_len(2 * responses.shape[-1], real=True)
    frequency = fft.rfftfreq(size, 1 / SAMPLING_RATE)
    colours = np.stack([colour.response(frequency) for colour in workshop.colours])
    coloured = fft.irfft(fft.rfft(responses, size) * colours, size)[..., : responses.shape[-1]]
    energy = np.square(coloured[:, 0], dtype=np.float64).sum(axis=-1)  # of each way to near
    energy[1 + _STANDING :] = energy[1 + _STANDING :].mean()
    levels_db = np.array(workshop.levels_db) + _DOMAIN_SPREAD_DB * rng.standard_normal(5)
    pitch = rng.uniform(0.93, 1.07, size=6).tolist()
    return Workplace(
        responses=np.asarray(coloured / np.sqrt(energy)[:, None, None], dtype=np.float32),
        microphone_distance=distance(near, far),
        snr_offset_db=workshop.snr_offset_db,
        level_offset_db=workshop.level_offset_db,
        workshop=replace(
            workshop,
            hum_hz=(workshop.hum_hz[0] * pitch[0], workshop.hum_hz[1] * pitch[1]),
            blower_hz=(workshop.blower_hz[0] * pitch[2], workshop.blower_hz[1] * pitch[3]),
            voice_hz=workshop.voice_hz * pitch[4],
            ventilation_hz=workshop.ventilation_hz * pitch[5],
            levels_db=tuple(levels_db.tolist()),
        ),
    )


def _draw_source(rng: np.random.Generator, room: Point, *others: Point) -> Point:
    """Draw where a source of noise stands: more than a metre from the machine and microphones."""
    while True:
        point = draw_point(rng, room)
        if min(distance(point, other) for other in others) > 1.0:
            return point


def _draw_colour(rng: np.random.Generator, gain_spread_db: float) -> Colour:
    return Colour(
        high_pass_hz=float(rng.uniform(30, 90)),
        shelves_db=tuple(rng.uniform(-3, 3, size=len(_SHELVES_HZ)).tolist()),
        gain_db=float(rng.uniform(-gain_spread_db, gain_spread_db)),
    )


def ride(num_samples: int, rng: np.random.Generator) -> tuple[NDArray[np.intp], Waveform]:
    """Move along the path: return the stops passed and each one's share (stops, num_samples).

    Between two stops, one gives way to the other; the squares of the shares add to 1.
    """
    here, there = rng.uniform(0, _STOPS - 1, size=2)
    position = np.linspace(here, there, num_samples, dtype=np.float32)
    stops = np.arange(int(min(here, there)), int(np.ceil(max(here, there))) + 1)
    shares = np.maximum(1 - np.abs(position - stops[:, None].astype(np.float32)), 0)
    return stops, np.sqrt(shares)


@functools.lru_cache(maxsize=6)
def _diffuse_field(
    place: Workplace, size: int
) -> tuple[NDArray[np.float32], NDArray[np.complex64]]:
    """Return the coherence (bins,) of near and far in it, and both colours (2, bins)."""
    frequency = fft.rfftfreq(size, 1 / SAMPLING_RATE)
    colours = np.stack([colour.response(frequency) for colour in place.workshop.colours])
    return diffuse_coherence(frequency, place.microphone_distance), colours
