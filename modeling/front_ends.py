"""Near and far waveform -> cleaned near waveform, before any encoder.

Front ends have no learnt weights and compute in float32 (float64 for float64 waveforms), whatever
the precision of the model around them. They share three laws: a silent far channel returns near,
scaling both channels scales the result, and a clip is cleaned as if it were alone: neither its
padding nor the clips beside it matter.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NearFrontEnd(nn.Module):
    """Take the near microphone as it is.

    See Also:
        ComplexLeastSquares, which uses the far microphone: take it when the room is loud.
    """

    def forward(self, near: Tensor, far: Tensor, lengths: Tensor) -> Tensor:
        """Return near, (batch, num_samples) float32, zero behind each clip's end.

        Args:
            near: (batch, num_samples) in [-1, 1], padded at the end.
            far: Same shape; not used.
            lengths: (batch,) int64, samples of each clip without its padding.
        """
        return clean_by_length(lambda near, _: near, near, far, lengths)


class ComplexLeastSquares(nn.Module):
    """Subtract what a linear, time-invariant path makes of the far channel.

    Per frequency f, over the frames t of the whole clip, the path from far to near is the complex
    least-squares fit H[f] = sum_t C[f, t] conj(F[f, t]) / (sum_t |F[f, t]|^2 + 1e-12) of the near
    spectrum C on the far spectrum F, and C - H F is kept (cancellation W1 of DCASE 2026 Task 2).
    Whatever both microphones hear goes, the machine too where far hears it well.

    Args:
        n_fft: Window length in samples; 1024 is 64 ms at 16 kHz.
        hop_length: Samples from one window to the next, at most half a window.

    See Also:
        NearFrontEnd, which cancels nothing: take it when far hears the machine as well as near.
    """

    def __init__(self, *, n_fft: int = 1024, hop_length: int = 512) -> None:
        super().__init__()
        if not 0 < hop_length <= n_fft // 2:
            raise ValueError(
                f"hop_length={hop_length} must lie between 1 and half of n_fft={n_fft}, or "
                "samples between two windows are lost."
            )
        self.n_fft = n_fft
        self.hop_length = hop_length

    def forward(self, near: Tensor, far: Tensor, lengths: Tensor) -> Tensor:
        """Return the cleaned near waveform, (batch, num_samples) float32, zero behind each end.

        Args:
            near: (batch, num_samples) in [-1, 1], padded at the end.
            far: Same shape, same clock: sample i of both was taken at the same time.
            lengths: (batch,) int64, samples of each clip without its padding.

        Raises:
            ValueError: A clip is no longer than half a window.
        """
        return clean_by_length(self.clean, near, far, lengths)

    def clean(self, near: Tensor, far: Tensor) -> Tensor:
        """Clean clips without padding, (clips, num_samples) each."""
        num_samples = near.shape[-1]
        if num_samples <= self.n_fft // 2:
            raise ValueError(
                f"A clip of {num_samples} samples is too short for n_fft={self.n_fft}, which "
                f"takes {self.n_fft // 2 + 1} or more. Use longer clips, or lower n_fft in "
                "front_end_options."
            )
        peak = torch.maximum(near.abs().amax(-1), far.abs().amax(-1))[:, None]
        scale = 0.9 / torch.where(peak > 1e-12, peak, 0.9)  # one for both channels; silence: 1
        near_spectrum, far_spectrum = self.stft(scale * near), self.stft(scale * far)
        # (clips, bins, frames) -> (clips, bins, 1)
        cross = (near_spectrum * far_spectrum.conj()).sum(-1, keepdim=True)
        path = cross / (far_spectrum.abs().square().sum(-1, keepdim=True) + 1e-12)
        # Subtracted in time: the same by linearity, but near is not rounded by an STFT and back.
        return near - self.istft(path * far_spectrum, num_samples) / scale

    def stft(self, waveform: Tensor) -> Tensor:
        """Return the spectrum (clips, bins, 1 + num_samples // hop_length)."""
        return torch.stft(
            waveform,
            self.n_fft,
            self.hop_length,
            window=self.window(waveform),
            return_complex=True,
        )

    def istft(self, spectrum: Tensor, num_samples: int) -> Tensor:
        """Return the waveform (clips, num_samples) of a spectrum.

        The last window may reach the clip's end only with its vanishing flank, by which the
        inverse divides: a filtered window is not small there, and the last samples would be a
        click. Where that flank is below a tenth (up to 0.1 n_fft samples), zeros are returned.
        """
        last_centre = num_samples // self.hop_length * self.hop_length
        reach = int(self.n_fft / math.pi * math.acos(math.sqrt(0.1)))  # cos^2(pi reach/n_fft) = 0.1
        covered = min(num_samples, last_centre + reach)
        window = self.window(spectrum.real)
        waveform = torch.istft(spectrum, self.n_fft, self.hop_length, window=window, length=covered)
        return F.pad(waveform, (0, num_samples - covered))

    def window(self, like: Tensor) -> Tensor:
        """Return the periodic Hann window in the type and on the device of a tensor."""
        # Not a buffer: from_pretrained fills non-persistent buffers with garbage.
        return torch.hann_window(self.n_fft, dtype=like.dtype, device=like.device)


def clean_by_length(
    clean: Callable[[Tensor, Tensor], Tensor], near: Tensor, far: Tensor, lengths: Tensor
) -> Tensor:
    """Apply a front end to groups of equally long clips, so that none of them sees padding.

    An STFT reflects the signal at its end, a peak or a least-squares sum runs over all samples: on
    a padded batch each of them would make a clip's result depend on its neighbours' length.

    Args:
        clean: Takes near and far, (clips, length) each, without padding.
        near: (batch, num_samples).
        far: Same shape.
        lengths: (batch,) int64, samples of each clip without its padding.

    Raises:
        ValueError: near and far differ in shape, or a length is not in 0..num_samples.
    """
    if near.shape != far.shape:
        raise ValueError(
            f"near {tuple(near.shape)} and far {tuple(far.shape)} must have one shape. "
            "Cut or pad the pair together, in AsdFeatureExtractor."
        )
    num_samples = near.shape[-1]
    distinct = lengths.unique().tolist()
    if lengths.shape != near.shape[:1] or not all(0 <= n <= num_samples for n in distinct):
        raise ValueError(
            f"lengths {lengths.tolist()} must give one number of samples, 0 to {num_samples}, "
            f"for each of the {len(near)} clips."
        )
    dtype = torch.promote_types(near.dtype, torch.float32)
    near, far = near.to(dtype), far.to(dtype)
    with torch.autocast(near.device.type, enabled=False):
        if distinct == [num_samples]:
            return clean(near, far)
        cleaned = torch.zeros_like(near)
        for length in distinct:
            group = (lengths == length).to(near.device)
            cleaned[group, :length] = clean(near[group, :length], far[group, :length])
        return cleaned


FRONT_ENDS = {  # name in AsdConfig -> constructor
    "near": NearFrontEnd,
    "complex_least_squares": ComplexLeastSquares,
}

__all__ = ["FRONT_ENDS", "ComplexLeastSquares", "NearFrontEnd", "clean_by_length"]
