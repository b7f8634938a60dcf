"""Real noise for the factory: a folder of recordings, of which each clip hears an excerpt."""

import functools
import hashlib
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
from scipy.signal import resample_poly

from .parts import SAMPLING_RATE, Waveform, unit_rms

_SUFFIXES = (".wav", ".flac", ".ogg")
_FADE = 800  # samples over which one excerpt gives way to the next
_SHORTEST = 2 * _FADE  # at 16 kHz
_SILENCE = 1e-4  # RMS of full scale; below it nothing but the converter's noise is left


@dataclass(frozen=True, slots=True)
class Recordings:
    """The recordings of a folder and the folders in it, in the order of their names."""

    paths: tuple[Path, ...]

    @classmethod
    def find(cls, folder: str | Path) -> Self:
        """List a folder's recordings and check that each one can be used.

        Raises:
            FileNotFoundError: The folder is missing or holds no recording.
            ValueError: A recording is damaged, silent, too short, or has a sample that is no
                finite number; the message names it.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"noise_dir={str(folder)!r} is not a folder. Give a folder of recordings "
                f"({', '.join(_SUFFIXES)})."
            )
        # A name with a leading dot is what some archives add for another operating system.
        paths = tuple(
            path
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in _SUFFIXES and path.is_file() and path.name[0] != "."
        )
        if not paths:
            raise FileNotFoundError(
                f"noise_dir={str(folder)!r} holds no recording ({', '.join(_SUFFIXES)}). "
                "Give the folder that does."
            )
        for path in paths:
            _read(path)
        return cls(paths)

    @property
    def digest(self) -> str:
        """A text that changes when a recording comes, goes or changes."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def excerpt(self, num_samples: int, rng: np.random.Generator) -> Waveform:
        """Return (num_samples,) of recordings drawn by `rng`, one fading into the next; RMS 1."""
        played = np.zeros(num_samples + _FADE, dtype=np.float32)
        rise = np.sqrt(np.linspace(0, 1, _FADE, dtype=np.float32))  # powers add to 1
        start = 0
        while start < num_samples:
            recording = _read(self.paths[rng.integers(len(self.paths))])
            first = int(rng.integers(0, len(recording) - _SHORTEST + 1))
            piece = recording[first : first + len(played) - start].copy()
            if start:
                piece[:_FADE] *= rise
            piece[-_FADE:] *= rise[::-1]
            played[start : start + len(piece)] += piece
            start += len(piece) - _FADE
        return unit_rms(played[:num_samples])


@functools.lru_cache(maxsize=512)
def _read(path: Path) -> Waveform:
    """Return a recording, (num_samples,) at 16 kHz, its channels averaged, with an RMS of 1."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path} cannot be read ({error.error_string}). Convert it to WAV, or remove it."
        ) from error
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} has a sample that is not a finite number. Remove it.")
    mono = samples.mean(axis=1)
    if rate != SAMPLING_RATE:
        common = gcd(rate, SAMPLING_RATE)
        mono = resample_poly(mono, SAMPLING_RATE // common, rate // common).astype(np.float32)
    if len(mono) < _SHORTEST:
        raise ValueError(
            f"{path} lasts {len(mono) / SAMPLING_RATE:.3f} s, expected at least "
            f"{_SHORTEST / SAMPLING_RATE} s. Remove it."
        )
    if np.sqrt(np.mean(np.square(mono, dtype=np.float64))) < _SILENCE:
        raise ValueError(f"{path} is silent. Remove it.")
    return unit_rms(mono)
