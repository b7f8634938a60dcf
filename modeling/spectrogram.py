"""Log-mel spectrograms as Kaldi computes them, batched, in torch, on any device."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PREEMPHASIS = 0.97
ENERGY_FLOOR = 1.1920928955078125e-07  # float32 epsilon
LOW_FREQUENCY_HZ = 20.0

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
        subtract_mean: Whether each clip's mean is subtracted before it is cut into frames.
    """

    def __init__(
        self,
        *,
        sampling_rate: int = 16_000,
        num_mel_bins: int = 128,
        window: Window = "povey",
        scale: float = 1.0,
        subtract_mean: bool = False,
    ) -> None:
        super().__init__()
        self.sampling_rate = sampling_rate
        self.num_mel_bins = num_mel_bins
        self.window = window
        self.scale = scale
        self.subtract_mean = subtract_mean
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

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the log-mel spectrogram, (batch, frames, num_mel_bins) float32.

        Args:
            waveform: (batch, num_samples) in [-1, 1], padded at the end.
            lengths: (batch,) samples of each clip without its padding. Only `subtract_mean` needs
                them; None means that no clip is padded.
        """
        num_samples = waveform.shape[-1]
        if num_samples < self.frame_length:
            raise ValueError(
                f"The waveform has {num_samples} samples; one frame at {self.sampling_rate} Hz "
                f"takes {self.frame_length}. Leave the clip out, or pad it with zeros."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            waveform = waveform.float()
            if self.subtract_mean:
                waveform = waveform - own_mean(waveform, lengths)
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
            f"window={self.window!r}, scale={self.scale}, subtract_mean={self.subtract_mean}"
        )


def own_mean(waveform: Tensor, lengths: Tensor | None) -> Tensor:
    """Return each clip's mean over its own samples, (batch, 1)."""
    if lengths is None:
        return waveform.mean(dim=-1, keepdim=True)
    own = torch.arange(waveform.shape[-1], device=waveform.device) < lengths[:, None]
    return waveform.where(own, 0.0).sum(dim=-1, keepdim=True) / lengths[:, None]


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


__all__ = ["KaldiLogMel"]
