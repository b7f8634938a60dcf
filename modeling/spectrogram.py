"""Spectrograms as the encoders' authors compute them, batched, in torch, on any device.

Log-mel as Kaldi does (BEATs, EAT) and as librosa does (the official baselines); the log-magnitude
of a short-time Fourier transform (FISHER).
"""

import functools
import sys
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

PREEMPHASIS = 0.97
ENERGY_FLOOR = 1.1920928955078125e-07  # float32 epsilon
LOW_FREQUENCY_HZ = 20.0
MAGNITUDE_FLOOR = 1e-10
LOWEST_SAMPLING_RATE_HZ = 100  # below it, 10 ms hold no sample

Window = Literal["povey", "hanning"]


class KaldiLogMel(nn.Module):
    """Kaldi's log-mel filter bank ("fbank", without dither and energy): 25 ms frames every 10 ms.

    Per frame: remove the mean, pre-emphasise by 0.97 (the first sample is its own predecessor),
    window, zero-pad to a power of two, take the power spectrum, sum it under triangles that are
    linear in mel from 20 Hz to half the sampling rate, take ln(max(energy, float32 epsilon)). Only
    whole frames count, so a frame depends on its own samples alone, never on padding behind it.

    The result is float32 whatever the module's dtype or autocast. The module has no parameters and
    no buffers: its tables are made in float64, when first needed on a device (a buffer outside the
    state dict would come back from `from_pretrained` as garbage).

    With 128 filters at 16 kHz, filter 3 lies between two FFT bins and sees neither: its output is
    always ln(float32 epsilon) = -15.94, as in Kaldi.

    Args:
        sampling_rate: Of the waveform, in hertz.
        num_mel_bins: Number of filters.
        window: "povey" is a Hann window to the power 0.85, "hanning" the Hann window itself.
        scale: The waveform in [-1, 1] is multiplied by it; 2 ** 15 gives Kaldi's 16-bit integers.
    """

    def __init__(
        self,
        *,
        sampling_rate: int = 16_000,
        num_mel_bins: int = 128,
        window: Window = "povey",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.sampling_rate = sampling_rate
        self.num_mel_bins = num_mel_bins
        self.window = window
        self.scale = scale
        self.frame_length = sampling_rate * 25 // 1000  # samples
        self.hop_length = sampling_rate * 10 // 1000
        self.n_fft = 1 << (self.frame_length - 1).bit_length()
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def num_frames(self, num_samples: int) -> int:
        """Return how many whole frames a waveform of `num_samples` holds."""
        return max(0, 1 + (num_samples - self.frame_length) // self.hop_length)

    def num_samples(self, num_frames: int) -> int:
        """Return the fewest samples that hold `num_frames` (at least one) whole frames."""
        return self.frame_length + (num_frames - 1) * self.hop_length

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram, (batch, frames, num_mel_bins) float32.

        Args:
            waveform: (batch, num_samples) in [-1, 1], padded at the end.
        """
        num_samples = waveform.shape[-1]
        if num_samples < self.frame_length:
            raise ValueError(
                f"The waveform has {num_samples} samples; one frame at {self.sampling_rate} Hz "
                f"takes {self.frame_length}. Leave the clip out, or pad it with zeros."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            waveform = waveform.float()
            window, mel_filters = self.tables(waveform.device)
            frames = (self.scale * waveform).unfold(-1, self.frame_length, self.hop_length)
            # Measured from its first sample, a constant frame stays exactly 0; a rounded mean of it
            # would leave noise that the logarithm shows, other noise on every device.
            frames = frames - frames[..., :1]
            frames = frames - frames.mean(dim=-1, keepdim=True)  # (B, T, frame_length)
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * window, n=self.n_fft)
            power = spectrum.real.square() + spectrum.imag.square()  # (B, T, n_fft / 2 + 1)
            log_mel: Tensor = (power @ mel_filters).clamp_min(ENERGY_FLOOR).log()
            return log_mel

    def time_average(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean log-mel spectrum of each clip's own frames, (batch, num_mel_bins).

        Args:
            waveform: (batch, num_samples) in [-1, 1], padded at the end.
            lengths: (batch,) int64, samples of each clip without its padding.
        """
        frames: Tensor = self(waveform)  # (B, T, num_mel_bins)
        counts = 1 + (lengths - self.frame_length) // self.hop_length  # (B,)
        valid = (frames.new_ones(frames.shape[:2]).cumsum(dim=1) <= counts[:, None])[..., None]
        return (frames * valid).sum(dim=1) / counts[:, None]

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's own
    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the window (frame_length,) and the filters (bins, num_mel_bins) on a device."""
        if device not in self._tables:
            self._tables[device] = self._build_tables(device)
        return self._tables[device]

    def _build_tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mel_filters = kaldi_mel_filters(self.num_mel_bins, self.n_fft, self.sampling_rate)
        tables = kaldi_window(self.window, self.frame_length), mel_filters
        # A tensor made under inference mode could not take part in a backward pass later on.
        with torch.inference_mode(mode=False):
            window, filters = (
                torch.tensor(table, dtype=torch.float32, device=device) for table in tables
            )
        return window, filters

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return (
            f"sampling_rate={self.sampling_rate}, num_mel_bins={self.num_mel_bins}, "
            f"window={self.window!r}, scale={self.scale}"
        )


class LogStft(nn.Module):
    """Log-magnitude spectrogram of any sampling rate: 25 ms frames every 10 ms, bins of 40 Hz.

    Subtract each clip's mean, cut into frames, window by a periodic Hann window, take the Fourier
    transform without zero-padding, take ln(magnitude + 1e-10). A bin stands for the same frequency
    at every rate; a higher rate only adds bins above. Lengths in samples are rounded down, so at
    44,100 Hz a frame has 1,102 of them and a bin is 40.02 Hz wide. Only whole frames count, so a
    frame depends on its own samples and the clip's mean alone, never on padding behind it.

    The result is float32 whatever the module's dtype or autocast. The module has no parameters and
    no buffers: its window is computed with each call, as its length follows the sampling rate.

    The floor lies far below float32's rounding: where a sound is digitally silent for a while, the
    result there is rounding noise, other noise on every device. A clip that is constant as a whole
    is at the floor.
    """

    @staticmethod
    def frame_length(sampling_rate: int) -> int:
        """Return the samples of a frame, or raise ValueError if the rate is none."""
        return 25 * checked_sampling_rate(sampling_rate) // 1000

    @staticmethod
    def hop_length(sampling_rate: int) -> int:
        """Return the samples from one frame to the next."""
        return 10 * checked_sampling_rate(sampling_rate) // 1000

    def num_bins(self, sampling_rate: int) -> int:
        """Return how many bins there are from 0 Hz to half the sampling rate."""
        return self.frame_length(sampling_rate) // 2 + 1

    def num_frames(self, num_samples: int, sampling_rate: int) -> int:
        """Return how many whole frames a waveform of `num_samples` holds."""
        hop_length = self.hop_length(sampling_rate)
        return max(0, 1 + (num_samples - self.frame_length(sampling_rate)) // hop_length)

    def num_samples(self, num_frames: int, sampling_rate: int) -> int:
        """Return the fewest samples that hold `num_frames` (at least one) whole frames."""
        return self.frame_length(sampling_rate) + (num_frames - 1) * self.hop_length(sampling_rate)

    def forward(
        self, waveform: Tensor, sampling_rate: int, lengths: Tensor | None = None
    ) -> Tensor:
        """Return the spectrogram, (batch, frames, bins) float32, bin 0 at 0 Hz.

        Args:
            waveform: (batch, num_samples) in [-1, 1], padded at the end.
            sampling_rate: Of the waveform, in hertz.
            lengths: (batch,) samples of each clip without its padding; None means that no clip is
                padded.

        Raises:
            ValueError: The waveform is shorter than a frame, or the rate is no whole number from
                100 on.
        """
        frame_length = self.frame_length(sampling_rate)
        num_samples = waveform.shape[-1]
        if num_samples < frame_length:
            raise ValueError(
                f"The waveform has {num_samples} samples; one frame at {sampling_rate} Hz takes "
                f"{frame_length}. Leave the clip out, or pad it with zeros."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            waveform = waveform.float()
            # In float64, because what rounding leaves of a constant shows in the logarithm, and
            # would depend on the length of the padding. The Metal backend knows no float64.
            precise = waveform if waveform.device.type == "mps" else waveform.double()
            waveform = waveform - own_mean(precise, lengths).float()
            frames = waveform.unfold(-1, frame_length, self.hop_length(sampling_rate))
            window = torch.hann_window(frame_length, dtype=torch.float32, device=waveform.device)
            spectrum = torch.fft.rfft(frames * window)  # (B, T, bins)
            # Not the root of a sum of squares: its gradient at a magnitude of 0 is no number.
            log_magnitude: Tensor = (spectrum.abs() + MAGNITUDE_FLOOR).log()
            return log_magnitude


class LibrosaLogMel(nn.Module):
    """Log-mel spectrogram in decibels, by librosa's defaults: 10 * log10(max(power, 2.2e-16)).

    Zeros are put before and behind the clip, half a frame each, so that frame t has its middle at
    sample t * hop_length; periodic Hann window, power spectrum, Slaney's mel filters, each divided
    by its width, from 0 Hz to half the sampling rate. What the last frames hear behind a clip's end
    is zero, so a clip that is padded with zeros has, up to its own `num_frames`, its own frames.

    The result is float32 whatever the module's dtype or autocast. There are no parameters and no
    buffers.

    Args:
        sampling_rate: Of the waveform, in hertz.
        num_mel_bins: Number of filters.
        n_fft: Samples of a frame, an even number.
        hop_length: Samples from one frame to the next.
    """

    def __init__(
        self,
        *,
        sampling_rate: int = 16_000,
        num_mel_bins: int = 128,
        n_fft: int = 1024,
        hop_length: int = 512,
    ) -> None:
        super().__init__()
        self.sampling_rate = checked_sampling_rate(sampling_rate)
        self.num_mel_bins = num_mel_bins
        self.n_fft = n_fft
        self.hop_length = hop_length

    def num_samples(self, num_frames: int) -> int:
        """Return the fewest samples that have `num_frames` frames."""
        return (num_frames - 1) * self.hop_length

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return how many frames clips of `num_samples` (batch,) have, (batch,)."""
        return 1 + num_samples // self.hop_length

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the spectrogram in dB, (batch, frames, num_mel_bins) float32.

        Args:
            waveform: (batch, num_samples) in [-1, 1], zero behind each clip's end.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            padded = F.pad(waveform.float(), (self.n_fft // 2, self.n_fft // 2))
            window = torch.hann_window(self.n_fft, dtype=torch.float32, device=waveform.device)
            frames = padded.unfold(-1, self.n_fft, self.hop_length)  # (B, T, n_fft)
            spectrum = torch.fft.rfft(frames * window)
            power = spectrum.real.square() + spectrum.imag.square()  # (B, T, n_fft / 2 + 1)
            filters = slaney_mel_filters(self.num_mel_bins, self.n_fft, self.sampling_rate)
            mel = power @ torch.tensor(filters, device=waveform.device)
            decibels: Tensor = 10 * mel.clamp_min(sys.float_info.epsilon).log10()
            return decibels


@functools.lru_cache(maxsize=8)
def slaney_mel_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> NDArray[np.float32]:
    """Return triangles that are linear in frequency, (n_fft / 2 + 1, num_mel_bins), as librosa."""
    filters: NDArray[np.float32] = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    ).astype(np.float32)
    return filters


def own_mean(waveform: Tensor, lengths: Tensor | None) -> Tensor:
    """Return each clip's mean over its own samples, (batch, 1)."""
    if lengths is None:
        return waveform.mean(dim=-1, keepdim=True)
    own = torch.arange(waveform.shape[-1], device=waveform.device) < lengths[:, None]
    return waveform.where(own, 0.0).sum(dim=-1, keepdim=True) / lengths[:, None]


def checked_sampling_rate(sampling_rate: int) -> int:
    """Return a sampling rate, or raise ValueError if it is not a whole number from 100 Hz on."""
    whole = isinstance(sampling_rate, int | np.integer) and not isinstance(sampling_rate, bool)
    if not whole or sampling_rate < LOWEST_SAMPLING_RATE_HZ:
        raise ValueError(
            f"sampling_rate={sampling_rate!r} is not a whole number of hertz from "
            f"{LOWEST_SAMPLING_RATE_HZ} on. Give the rate at which the waveform was recorded."
        )
    return int(sampling_rate)


def kaldi_window(name: Window, length: int) -> NDArray[np.float64]:
    """Return a symmetric window of `length` samples."""
    hanning = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    if name == "hanning":
        return hanning
    if name == "povey":
        return hanning**0.85
    raise ValueError(f"window={name!r} is not one of 'hanning', 'povey'.")


def kaldi_mel_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> NDArray[np.float64]:
    """Return triangles of height 1, linear in mel, (n_fft / 2 + 1, num_mel_bins).

    Kaldi leaves out the bin at half the sampling rate, so the last row is zero.
    """
    frequencies = np.concatenate(
        [[LOW_FREQUENCY_HZ, sampling_rate / 2], np.arange(n_fft // 2 + 1) * sampling_rate / n_fft]
    )
    low, high, *bins = 1127.0 * np.log1p(frequencies / 700.0)  # mel
    edges = np.linspace(low, high, num_mel_bins + 2)
    bin_mel = np.asarray(bins, dtype=np.float64)[:, None]
    rising = (bin_mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bin_mel) / (edges[2:] - edges[1:-1])
    filters: NDArray[np.float64] = np.minimum(rising, falling).clip(min=0.0)
    filters[-1] = 0.0
    return filters


__all__ = ["KaldiLogMel", "LibrosaLogMel", "LogStft"]
