"""Front ends that clean the short-time spectrum of near: least squares and gains per frequency.

C[f, t] and F[f, t] are the spectra of near and far. Each front end computes the part R of C that
goes, and the waveform of R is subtracted from near. By linearity that is the waveform of C - R, but
near is not rounded by an STFT and back, and comes back bit by bit where nothing goes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .front_end_base import (
    EPSILON,
    FrontEnd,
    check_option,
    check_taps,
    exponential_average,
    joint_scale,
)


class StftFrontEnd(FrontEnd):
    """Base of the front ends in the STFT domain; a subclass says what part of near goes.

    Both channels are scaled jointly to a peak of 0.9, so that constants that only keep a quotient
    finite mean the same at every level. Windows are periodic Hann, centred, the clip reflected at
    its ends.

    Args:
        n_fft: Window length in samples; 1024 is 64 ms at 16 kHz.
        hop_length: Samples from one window to the next, at most half a window.
    """

    def __init__(self, *, n_fft: int, hop_length: int) -> None:
        super().__init__()
        if not 0 < hop_length <= n_fft // 2:
            raise ValueError(
                f"hop_length={hop_length} must lie between 1 and half of n_fft={n_fft}, or "
                "samples between two windows are lost."
            )
        self.n_fft = n_fft
        self.hop_length = hop_length

    def removed(self, near: Tensor, far: Tensor) -> Tensor:
        """Return what goes of the near spectrum, (clips, bins, frames) complex, as near and far."""
        raise NotImplementedError

    def clean(self, near: Tensor, far: Tensor) -> Tensor:
        """Clean clips without padding, (clips, num_samples) each.

        Raises:
            ValueError: They are no longer than half a window.
        """
        num_samples = near.shape[-1]
        self.check_length(num_samples)
        scale = joint_scale(near, far)
        removed = self.removed(self.stft(scale * near), self.stft(scale * far))
        return near - self.istft(removed, num_samples) / scale

    def check_length(self, num_samples: int) -> None:
        """Raise ValueError where a clip cannot be reflected by half a window."""
        if num_samples <= self.n_fft // 2:
            raise ValueError(
                f"A clip of {num_samples} samples is too short for n_fft={self.n_fft}, which "
                f"takes {self.n_fft // 2 + 1} or more. Use longer clips, or lower n_fft in "
                "front_end_options."
            )

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


class ComplexLeastSquares(StftFrontEnd):
    """Subtract what a linear, time-invariant path makes of the far channel.

    Per frequency f, over the frames t of the whole clip, the path from far to near is the complex
    least-squares fit H[f] = sum_t C[f, t] conj(F[f, t]) / (sum_t |F[f, t]|^2 + 1e-12) of the near
    spectrum C on the far spectrum F, and C - H F is kept (cancellation W1 of DCASE 2026 Task 2).
    Whatever both microphones hear goes, the machine too where far hears it well.

    With several taps the path reaches over frames: u_t = (F[f, t], ..., F[f, t - num_taps + 1]),
    zero before the clip, h[f] = (sum_t u_t u_t^H + e I)^-1 sum_t u_t conj(C[f, t]), and
    C[f, t] - h^H u_t is kept. The regularisation e is `regularization` times the mean of
    sum_t |u_t|^2 over the taps, but no less than that sum's rounding error. (With one tap:
    e = regularization sum_t |F|^2 + 1e-12.)

    Cost per frame and bin: num_taps^2 multiplications, and one linear system per clip and bin.

    Args:
        n_fft: Window length in samples; 1024 is 64 ms at 16 kHz.
        hop_length: Samples from one window to the next, at most half a window.
        num_taps: Frames of far that a frame of near is explained by, its own and those before; more
            than one where a room's echo outlasts the window; with a hop of a quarter window they
            also model what one tap misses of a short path. A clip of T independent frames loses
            about num_taps / T of its machine's energy, too.
        regularization: Share of far's energy added to the denominator, which pulls the path to 0;
            at 1, half is subtracted of what would be.

    See Also:
        NearFrontEnd, which cancels nothing: take it when far hears the machine as well as near.
        Rls, which follows a path that changes within a clip.
    """

    def __init__(
        self,
        *,
        n_fft: int = 1024,
        hop_length: int = 512,
        num_taps: int = 1,
        regularization: float = 0.0,
    ) -> None:
        super().__init__(n_fft=n_fft, hop_length=hop_length)
        check_taps(num_taps)
        check_option("regularization", regularization, "0 or more", valid=regularization >= 0)
        self.num_taps = num_taps
        self.regularization = regularization

    def removed(self, near: Tensor, far: Tensor) -> Tensor:
        """Return far as it came along the path."""
        if self.num_taps > 1:
            return self.removed_by_taps(near, far)
        # (clips, bins, frames) -> (clips, bins, 1)
        cross = (near * far.conj()).sum(-1, keepdim=True)
        power = far.abs().square().sum(-1, keepdim=True)
        path = cross / ((1.0 + self.regularization) * power + EPSILON)
        return path * far

    def removed_by_taps(self, near: Tensor, far: Tensor) -> Tensor:
        """Return far as it came along a path of several frames."""
        taps = delayed_frames(far, self.num_taps).movedim(0, 2)  # (clips, bins, taps, frames)
        correlation = taps @ taps.mH  # (clips, bins, taps, taps)
        cross = taps @ near.conj()[..., None]  # (clips, bins, taps, 1)
        energy = correlation.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
        share = max(self.regularization, self.num_taps**2 * torch.finfo(energy.dtype).eps)
        identity = torch.eye(self.num_taps, dtype=energy.dtype, device=far.device)
        path = torch.linalg.solve(correlation + (share * energy + EPSILON) * identity, cross)
        predicted: Tensor = (path.mH @ taps).squeeze(-2)
        return predicted


class SpectralSubtraction(StftFrontEnd):
    """Subtract far's magnitude from near's, and keep near's phase (after Boll, 1979).

    |Y| = |C| - oversubtraction |F| where that is positive, else floor |C|. It needs no common
    phase, only that the noise is as loud at both microphones in every frame; so it follows noise
    that moves, and leaves tonal rests ("musical noise") where near and far differ.

    Cost: one STFT of each channel and one back.

    Args:
        oversubtraction: Factor of far's magnitude; 0 switches the front end off.
        floor: Share of near's magnitude kept where far is louder, in [0, 1]; above 0 it keeps
            log-mels finite.
        n_fft: Window length in samples; 512 is 32 ms at 16 kHz.
        hop_length: Samples from one window to the next, at most half a window.

    See Also:
        ComplexLeastSquares, which follows the phase, too, and takes more where the path is steady.
    """

    def __init__(
        self,
        *,
        oversubtraction: float = 1.0,
        floor: float = 0.1,
        n_fft: int = 512,
        hop_length: int = 256,
    ) -> None:
        super().__init__(n_fft=n_fft, hop_length=hop_length)
        check_option("oversubtraction", oversubtraction, "0 or more", valid=oversubtraction >= 0)
        check_option("floor", floor, "between 0 and 1", valid=0 <= floor <= 1)
        self.oversubtraction = oversubtraction
        self.floor = floor

    def removed(self, near: Tensor, far: Tensor) -> Tensor:
        """Return far's magnitude with near's phase, or all but the floor."""
        noise = self.oversubtraction * far.abs()
        return torch.where(near.abs() > noise, noise * near.sgn(), (1.0 - self.floor) * near)


class WienerGain(StftFrontEnd):
    """Weigh near by the share of its power that far does not have, as a Wiener filter does.

    G = (A|C|^2 + 1e-12) / (A|C|^2 + oversubtraction A|F|^2 + 1e-12), no less than floor, and G C is
    kept (the form of CARE-ASD, DCASE 2026). A averages over frames: A x[t] = smoothing A x[t-1] +
    (1 - smoothing) x[t], starting from the mean over the clip. Only powers count, no phase. Near
    and far at one level give G = 1/2, so the noise is never taken whole.

    Cost: one STFT of each channel and one back; smoothing adds a loop over frames.

    Args:
        oversubtraction: Factor of far's power; 0 switches the front end off.
        floor: Least gain, in [0, 1].
        smoothing: In [0, 1); 0 takes each frame by itself, 0.9 averages over about ten, which
            leaves fewer tonal rests and follows moving noise more slowly.
        n_fft: Window length in samples; 512 is 32 ms at 16 kHz.
        hop_length: Samples from one window to the next, at most half a window.

    See Also:
        SpectralSubtraction, which takes more. CoherenceGain, which does not need equal levels.
    """

    def __init__(
        self,
        *,
        oversubtraction: float = 1.0,
        floor: float = 0.0,
        smoothing: float = 0.0,
        n_fft: int = 512,
        hop_length: int = 256,
    ) -> None:
        super().__init__(n_fft=n_fft, hop_length=hop_length)
        check_option("oversubtraction", oversubtraction, "0 or more", valid=oversubtraction >= 0)
        check_option("floor", floor, "between 0 and 1", valid=0 <= floor <= 1)
        check_option("smoothing", smoothing, "at least 0 and below 1", valid=0 <= smoothing < 1)
        self.oversubtraction = oversubtraction
        self.floor = floor
        self.smoothing = smoothing

    def removed(self, near: Tensor, far: Tensor) -> Tensor:
        """Return (1 - G) C."""
        near_power = exponential_average(power(near), self.smoothing)
        noise_power = self.oversubtraction * exponential_average(power(far), self.smoothing)
        # 1 - G, not G: exactly 0 where far is silent
        share = noise_power / (near_power + noise_power + EPSILON)
        return share.clamp_max(1.0 - self.floor) * near


class CoherenceGain(StftFrontEnd):
    """Weigh near by the part of it that is not coherent with far.

    With A an average over frames, the magnitude-squared coherence is c = |A(C conj F)|^2 /
    (A|C|^2 A|F|^2 + 1e-24), at most 1, and (1 - c) C is kept (the form of CARE-ASD, DCASE 2026).
    Levels do not matter, a common path does. Unlike cancellation it takes the machine along with
    the noise of the same bin: it mutes bins in which noise rules. An average over n independent
    frames finds a coherence of about 1/n where there is none.

    Cost: one STFT of each channel and one back; smoothing adds a loop over frames.

    Args:
        smoothing: None averages over the whole clip, one gain per frequency. A number in [0, 1)
            follows changes: A x[t] = smoothing A x[t-1] + (1 - smoothing) x[t], starting from the
            mean over the clip; 0.95 averages over about twenty frames. At 0 nothing is left: one
            frame is coherent with any other.
        n_fft: Window length in samples; 1024 is 64 ms at 16 kHz. Longer than the path.
        hop_length: Samples from one window to the next, at most half a window.

    See Also:
        ComplexLeastSquares, which cancels the coherent part and keeps the machine in its bin.
    """

    def __init__(
        self, *, smoothing: float | None = None, n_fft: int = 1024, hop_length: int = 512
    ) -> None:
        super().__init__(n_fft=n_fft, hop_length=hop_length)
        valid = smoothing is None or 0 <= smoothing < 1
        check_option("smoothing", smoothing, "None, or at least 0 and below 1", valid=valid)
        self.smoothing = smoothing

    def removed(self, near: Tensor, far: Tensor) -> Tensor:
        """Return c C."""
        cross, near_power, far_power = (
            values.mean(-1, keepdim=True)
            if self.smoothing is None
            else exponential_average(values, self.smoothing)
            for values in (near * far.conj(), power(near), power(far))
        )
        coherence = power(cross) / (near_power * far_power + EPSILON**2)
        return coherence.clamp_max(1.0) * near


def power(spectrum: Tensor) -> Tensor:
    """Return the squared magnitude; unlike that of `abs`, its gradient is smooth at 0."""
    return spectrum.real.square() + spectrum.imag.square()


def delayed_frames(spectrum: Tensor, num_taps: int) -> Tensor:
    """Return (num_taps, clips, bins, frames): the spectrum of 0, 1, ... frames before, or 0."""
    num_frames = spectrum.shape[-1]
    return torch.stack([F.pad(spectrum, (tap, 0))[..., :num_frames] for tap in range(num_taps)])


__all__ = [
    "CoherenceGain",
    "ComplexLeastSquares",
    "SpectralSubtraction",
    "StftFrontEnd",
    "WienerGain",
    "delayed_frames",
]
