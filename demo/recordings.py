"""Recordings that strangers upload: read without trust, in bounded memory, cut into windows."""

from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from data_scripts.clip_files import SAMPLING_RATE
from nearfar.schema import FAR, NEAR

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC")  # a lossy format has taken out what is listened for
MAX_RATE = 96_000  # hertz
MAX_SECONDS = 300.0
MIN_SECONDS = 1.0
SILENCE = 1e-4  # of full scale: -80 dB
LOUDEST = 16.0  # of full scale, which a float file may exceed, but not as integers do
LONGEST_NAME = 80


class RecordingError(ValueError):
    """A recording that cannot be used; the message is for the person who gave it."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What one or two microphones heard, at 16 kHz.

    Attributes:
        name: Of its file, without folders.
        near: (num_samples,) float32.
        far: The same of the far microphone, or None.
        notes: What the listener should know of how it was read.
    """

    name: str
    near: NDArray[np.float32]
    far: NDArray[np.float32] | None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.near) / SAMPLING_RATE

    def part(self, start: int, end: int) -> "Recording":
        """Return the samples from `start` to `end`."""
        far = None if self.far is None else self.far[start:end]
        return Recording(self.name, self.near[start:end], far, self.notes)


def read_recording(near_path: str | Path | None, far_path: str | Path | None = None) -> Recording:
    """Read a near recording with a far one beside it, or one two-channel file.

    Args:
        near_path: WAV or FLAC; of two channels the first is near, the second far.
        far_path: One channel, or None.

    Raises:
        RecordingError: Says what came, what was due, and what to do.
    """
    if near_path is None:
        raise RecordingError(
            "There is no recording yet. Drop a WAV or FLAC file, record one, or try an example."
        )
    name = display_name(near_path)
    channels, notes = _read(near_path, name)
    if far_path is not None:
        if len(channels) == 2:
            raise RecordingError(
                f"{name} has two channels, near and far, but a far recording came as well. Keep "
                "one of the two."
            )
        far_name = display_name(far_path)
        far_channels, _ = _read(far_path, far_name)
        if len(far_channels) == 2:
            raise RecordingError(
                f"{far_name} has two channels, expected one. Give a two-channel file as the near "
                "recording, alone."
            )
        channels += far_channels
    near, far = channels[NEAR], channels[FAR] if len(channels) == 2 else None
    if _swing(near) < SILENCE:
        raise RecordingError(
            f"{name} is silent: nothing in the near channel is louder than -80 dB of full scale. "
            "Check the microphone and its cable, then record again."
        )
    if far is not None and len(near) != len(far):
        raise RecordingError(
            f"Near lasts {len(near) / SAMPLING_RATE:.2f} s, but far {len(far) / SAMPLING_RATE:.2f} "
            "s. Both microphones must run on one clock: record them together, or cut both at the "
            "same two moments."
        )
    if far is not None and _swing(far) < SILENCE:
        far = None
        notes.append("The far channel is silent, so near was judged without it.")
    if np.mean(np.abs(near) >= 0.999) > 1e-3:
        notes.append("The near channel clips: lower the gain for a trustworthy verdict.")
    return Recording(name, near, far, tuple(notes))


def window_starts(num_samples: int, window: int) -> list[int]:
    """Return where the windows of a recording begin, in samples.

    Up to one and a half windows are judged as a whole; of longer ones every window has the same
    length, and the last ends where the recording ends.
    """
    if num_samples <= 1.5 * window:
        return [0]
    starts = list(range(0, num_samples - window + 1, window))
    if starts[-1] + window < num_samples:
        starts.append(num_samples - window)
    return starts


def display_name(path: str | Path) -> str:
    """Return a file's name as it may be shown: printable, and not long."""
    name = "".join(c if c.isprintable() else "?" for c in Path(path).name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _swing(channel: NDArray[np.float32]) -> float:
    """Return how far a channel moves to either side; a constant is no sound."""
    return float(np.ptp(channel)) / 2


def _read(path: str | Path, name: str) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Return the channels of a file at 16 kHz, and notes."""
    try:
        # A descriptor has no name, so what is in the file decides, and not how it is called.
        with (
            Path(path).open("rb") as opened,
            soundfile.SoundFile(opened.fileno(), closefd=False) as file,
        ):
            _check_header(file, name)
            rate = file.samplerate
            # A header may promise less than follows, or more.
            samples = file.read(int(MAX_SECONDS * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, EOFError) as error:
        raise RecordingError(
            f"{name} is not a sound that can be read here. Give a WAV or FLAC file."
        ) from error
    if len(samples) < MIN_SECONDS * rate:
        raise RecordingError(
            f"{name} lasts {len(samples) / rate:.2f} s, expected {MIN_SECONDS:g} s or more. Record "
            "for longer."
        )
    if not np.isfinite(samples).all():
        raise RecordingError(
            f"{name} holds samples that are no finite numbers. Export it again, as 16-bit WAV."
        )
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise RecordingError(
            f"{name} holds samples up to {peak:.3g}, expected -1 to 1: whole numbers were written "
            "as a float file. Export it again, as 16-bit WAV."
        )
    channels = [np.ascontiguousarray(channel) for channel in samples.T]
    if rate == SAMPLING_RATE:
        return channels, []
    common = gcd(rate, SAMPLING_RATE)
    up, down = SAMPLING_RATE // common, rate // common
    resampled = [resample_poly(channel, up, down).astype(np.float32) for channel in channels]
    return resampled, [f"Resampled from {rate} Hz to {SAMPLING_RATE} Hz."]


def _check_header(file: soundfile.SoundFile, name: str) -> None:
    """Refuse what is too large or of the wrong kind before any sample is decoded."""
    if file.format not in FORMATS:
        raise RecordingError(
            f"{name} is a {file.format} file, expected WAV or FLAC: lossy formats leave out what "
            "is listened for. Record in WAV."
        )
    if file.channels > 2:
        raise RecordingError(
            f"{name} has {file.channels} channels, expected one (near) or two (near, far). Export "
            "the two microphones that belong to this machine."
        )
    if not SAMPLING_RATE <= file.samplerate <= MAX_RATE:
        raise RecordingError(
            f"{name} is sampled at {file.samplerate} Hz, expected {SAMPLING_RATE} to {MAX_RATE}: "
            "the detector listens up to 8 kHz, and a lower rate does not hold that. Record again "
            "at 16 kHz."
        )
    if file.frames > MAX_SECONDS * file.samplerate:
        raise RecordingError(
            f"{name} lasts {file.frames / file.samplerate / 60:.0f} minutes, at most "
            f"{MAX_SECONDS / 60:.0f} are taken here. Cut out the part in question."
        )
