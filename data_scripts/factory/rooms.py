"""Rooms: places in them, impulse responses between them, and what the microphones hear of a source.

Impulse responses are those of the image-source method (Allen and Berkley, 1979), computed once per
machine and domain.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .parts import SAMPLING_RATE, Waveform
from .recordings import Recordings

Point = NDArray[np.float64]  # (3,) in metres
Transfer = Callable[[int], NDArray[np.complex64]]

SPEED_OF_SOUND = 343.0  # m/s
OCTAVES_HZ = (125, 250, 500, 1_000, 2_000, 4_000, 8_000)  # where a wall's absorption is given
_MARGIN = 0.4  # metres between anything and a wall


@dataclass(frozen=True, eq=False)
class Place(ABC):
    """Where a machine stands, two microphones, and what else they hear.

    Attributes:
        responses: (1 + sources, 2, taps) float32, from the machine and then from each noise source
            to near and far.
        microphone_distance: Between the microphones, in metres.
        lead_in: Samples simulated before a clip, in which the room begins to ring.
        snr_offset_db: By how much the machine is louder over the noise than elsewhere.
        level_offset_db: By how much the recordings are louder than elsewhere.
    """

    responses: NDArray[np.float32]
    microphone_distance: float
    lead_in: ClassVar[int]
    snr_offset_db: float = field(default=0.0, kw_only=True)
    level_offset_db: float = field(default=0.0, kw_only=True)

    @abstractmethod
    def noise_at_microphones(
        self,
        num_samples: int,
        *,
        spread_db: float,
        rng: np.random.Generator,
        recordings: Recordings | None = None,
    ) -> Waveform:
        """Return a clip's noise (2, num_samples), near and far; near has an RMS of 1.

        The microphones' own noise comes on top of that.

        Args:
            num_samples: Of the clip.
            spread_db: Standard deviation of each source's level between clips.
            rng: Source of all that differs between clips.
            recordings: Real noise that takes the place of a simulated source.
        """


def transfer(place: Place, size: int) -> NDArray[np.complex64]:
    """Return the spectra (1 + sources, 2, bins) of a place's responses, the machine's first."""
    return _transfer(place, size)


@functools.lru_cache(maxsize=6)
def _transfer(place: Place, size: int) -> NDArray[np.complex64]:
    return np.asarray(fft.rfft(place.responses, size), dtype=np.complex64)


def machine_at_microphones(place: Place, excitation: Waveform, body: Transfer) -> Waveform:
    """Return the machine's sound (2, num_samples - lead in), at near and far.

    Args:
        place: Where.
        excitation: (num_samples,) with the lead-in, before the housing.
        body: From the size of an FFT to the housing's complex gain (bins,).
    """
    size = fft.next_fast_len(len(excitation), real=True)  # wrapped tails fall into the lead-in
    spectrum = fft.rfft(excitation, size) * body(size)
    heard = fft.irfft(spectrum * transfer(place, size)[0], size)
    return np.asarray(heard[:, place.lead_in : len(excitation)], dtype=np.float32)


def diffuse_coherence(
    frequency_hz: NDArray[np.float64], microphone_distance: float
) -> NDArray[np.float32]:
    """Return how alike two microphones hear sound that comes from everywhere, -1 to 1 per bin.

    It is sin(x) / x with x = 2 pi f d / c (Cook et al., 1955).
    """
    return np.sinc(2 * frequency_hz * microphone_distance / SPEED_OF_SOUND).astype(np.float32)


def draw_point(rng: np.random.Generator, room: Point) -> Point:
    """Draw a point of a room (its size) where machines stand: 0.5 to 1.5 m above the floor."""
    return rng.uniform([_MARGIN, _MARGIN, 0.5], [*(room[:2] - _MARGIN), 1.5])


def draw_point_at(
    rng: np.random.Generator, room: Point, origin: Point, nearest: float, farthest: float
) -> Point:
    """Draw a point inside the room, `nearest` to `farthest` metres from `origin`."""
    while True:
        direction = rng.standard_normal(3)
        point = origin + rng.uniform(nearest, farthest) * direction / np.linalg.norm(direction)
        if (point > 0.3).all() and (point < room - 0.3).all():
            return np.asarray(point, dtype=np.float64)


def distance(first: Point, second: Point) -> float:
    """Return the distance of two points in metres."""
    return float(np.linalg.norm(first - second))


def impulse_responses(
    room: Point,
    absorption: float | Sequence[float],
    highest_reflection: int,
    sources: Sequence[Point],
    microphones: Sequence[Point],
) -> NDArray[np.float32]:
    """Return impulse responses (sources, microphones, taps) float32.

    Args:
        room: Its size.
        absorption: Share of the sound energy that the walls take, 0 to 1: one number, or one for
            each of `OCTAVES_HZ`; then the air absorbs, too.
        highest_reflection: Walls that a path meets at most.
        sources: Where sound is made.
        microphones: Where it is heard.

    Raises:
        ImportError: pyroomacoustics is missing.
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise ImportError(
            "The simulated factory needs pyroomacoustics, which is not installed. "
            "Install it with: pip install 'nearfar[factory]'."
        ) from error
    by_octave = not isinstance(absorption, float)
    material = {"coeffs": absorption, "center_freqs": OCTAVES_HZ} if by_octave else absorption
    # One thread: the order of its sums, and so the last bit, would depend on their number.
    threads = pyroomacoustics.constants.get("num_threads")
    pyroomacoustics.constants.set("num_threads", 1)
    try:
        box = pyroomacoustics.ShoeBox(
            room,
            fs=SAMPLING_RATE,
            materials=pyroomacoustics.Material(material),
            max_order=highest_reflection,
            use_rand_ism=False,
            air_absorption=by_octave,
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
