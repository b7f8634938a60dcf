"""Front ends that adapt a filter along the clip: far is the reference, near the primary channel.

d[n] is near, x[n] the vector of far's last num_taps samples up to n, zero before the clip; what is
kept is e[n] = d[n] - w[n]^T x[n], and w, zero at first, is changed so that e becomes small. Each
clip's filter starts anew, so that a clip's result depends on nothing else.
"""

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
from .spectral_front_ends import StftFrontEnd, delayed_frames

BLOCK_LENGTH = 64  # samples whose errors are found at once; changes speed, not the result


class AdaptiveFrontEnd(FrontEnd):
    """Base of the adaptive filters of samples; a subclass says what far predicts of near.

    Both channels are scaled jointly to a peak of 0.9, which is undone at the end.

    Args:
        num_taps: Length of the filter in samples; 512 is 32 ms at 16 kHz.
        step_size: How far each sample, or block, moves the filter; see the subclass.
        primary_delay: Samples by which near is delayed against far while the filter adapts. With 0
            it follows only sound that reaches far before near; with D also sound that reaches near
            up to D samples before far (D = 16 is 34 cm at 16 kHz), of its num_taps. The
            result is in near's time again.
    """

    def __init__(self, *, num_taps: int, step_size: float, primary_delay: int) -> None:
        super().__init__()
        check_taps(num_taps)
        check_primary_delay(primary_delay)
        self.num_taps = num_taps
        self.step_size = step_size
        self.primary_delay = primary_delay

    def clean(self, near: Tensor, far: Tensor) -> Tensor:
        """Clean clips without padding, (clips, num_samples) each.

        Raises:
            ValueError: They have no sample.
        """
        if near.shape[-1] == 0:
            raise ValueError("A clip of 0 samples cannot be cleaned. Leave it out of the batch.")
        scale = joint_scale(near, far)
        primary, reference = delay_primary(scale * near, scale * far, self.primary_delay)
        predicted = self.predict(primary, reference)[:, self.primary_delay :]
        # Not the filter's error, scaled back: where far predicts nothing, near stays bit by bit.
        return near - predicted / scale

    def predict(self, primary: Tensor, reference: Tensor) -> Tensor:
        """Return w[n]^T x[n], as primary and reference (clips, num_samples)."""
        raise NotImplementedError


class SampleAdaptiveFrontEnd(AdaptiveFrontEnd):
    """Base of the filters that move with every sample: w[n+1] = w[n] + g[n] e[n] x[n].

    A subclass gives the gains g, which depend on far only. The result is that of the loop over
    samples, but computed in blocks. Within a block that starts at sample m,
    e[n] = d[n] - w[m]^T x[n] - sum_{m <= i < n} x[n]^T x[i] g[i] e[i], a triangular system of
    equations. Products with w go through an FFT; the inner products x[n]^T x[i] follow from those
    with x[m] by x[n+1]^T x[i+1] = x[n]^T x[i] + x[n+1] x[i+1] - x[n+1-num_taps] x[i+1-num_taps].

    Cost: one turn of a Python loop per 64 samples, for all equally long clips of a batch together;
    with 512 taps about 1,000 operations per sample, half in FFTs and half in inner products, which
    start from an FFT again every 8 blocks, so that rounding does not add up over the clip.
    """

    def gains(self, energy: Tensor) -> Tensor:
        """Return g[n] from the energies x[n]^T x[n] of far, both (clips, num_samples)."""
        raise NotImplementedError

    def predict(self, primary: Tensor, reference: Tensor) -> Tensor:
        """Return w[n]^T x[n], as primary and reference (clips, num_samples)."""
        num_samples, block = primary.shape[-1], BLOCK_LENGTH
        gains = self.gains(window_energy(reference, self.num_taps))
        num_blocks = -(-num_samples // block)
        missing = num_blocks * block - num_samples
        primary_blocks, gain_blocks = (
            F.pad(x, (0, missing)).unflatten(1, (num_blocks, block)) for x in (primary, gains)
        )
        n_fft = self.num_taps + block
        padded = F.pad(reference, (n_fft, missing))  # sample n of far is padded[n_fft + n]
        is_tap = (torch.arange(n_fft, device=padded.device) < self.num_taps).to(padded.dtype)
        weights = torch.zeros_like(padded[:, :n_fft])
        spectrum = torch.fft.rfft(weights)
        errors = []
        for first in range(0, num_blocks, 8):  # so many blocks' inner products fit the cache
            here = slice(first, min(first + 8, num_blocks))
            far = padded[:, here.start * block : n_fft + here.stop * block]
            # Of a block and then of the taps before it, so that zeros are added behind its errors.
            frames = torch.fft.rfft(far[:, block:].unfold(1, n_fft, block).roll(block, -1))
            conjugates = frames.conj().resolve_conj()
            products = inner_products(far, self.num_taps, block)
            by_block = (frames, conjugates, products, primary_blocks[:, here], gain_blocks[:, here])
            blocks = zip(*(x.unbind(1) for x in by_block), strict=True)
            for frame, conjugate, product, near, gain in blocks:
                predicted = torch.fft.irfft(frame * spectrum, n_fft)[:, :block]
                system, known = product * gain[:, None], (near - predicted)[..., None]
                error = torch.linalg.solve_triangular(
                    system, known, upper=False, unitriangular=True
                )[..., 0]
                errors.append(error)
                moves = torch.fft.rfft(gain * error, n_fft)
                change = torch.fft.irfft(moves * conjugate, n_fft)
                weights = torch.addcmul(weights, change, is_tap)
                spectrum = torch.fft.rfft(weights)
        return primary - torch.cat(errors, dim=1)[:, :num_samples]


class Lms(SampleAdaptiveFrontEnd):
    """Least mean squares: w[n+1] = w[n] + step_size e[n] x[n] (Widrow and Hoff, 1960).

    The level that it needs is far's: both channels are divided by the square root of the greatest
    energy x[n]^T x[n] in the clip. So the result scales with its input, and any step between 0 and
    2 is stable, whatever far does; but where far is quiet, the filter hardly moves.

    Cost: see SampleAdaptiveFrontEnd.

    Args:
        num_taps: Length of the filter in samples; 512 is 32 ms at 16 kHz.
        step_size: In (0, 2), without unit: share of the error that one sample would correct
            where far is loudest. Larger steps follow faster and leave more noise.
        primary_delay: Samples by which near is delayed against far, see AdaptiveFrontEnd.

    See Also:
        Nlms, which follows quiet passages as fast as loud ones: take that one.
    """

    def __init__(
        self, *, num_taps: int = 512, step_size: float = 0.1, primary_delay: int = 0
    ) -> None:
        super().__init__(num_taps=num_taps, step_size=step_size, primary_delay=primary_delay)
        check_option("step_size", step_size, "between 0 and 2", valid=0 < step_size < 2)

    def gains(self, energy: Tensor) -> Tensor:
        """Return the step, divided by the greatest energy."""
        loudest = energy.amax(-1, keepdim=True).clamp_min(EPSILON)
        return (self.step_size / loudest).expand_as(energy)


class Nlms(SampleAdaptiveFrontEnd):
    """Normalised least mean squares: each step is divided by far's energy in the filter.

    w[n+1] = w[n] + step_size e[n] x[n] / (r + x[n]^T x[n]) (Nagumo and Noda, 1967; Haykin, Adaptive
    Filter Theory), r = regularization times the mean of x[n]^T x[n] over the clip. Any step between
    0 and 2 is stable. White noise takes about num_taps / step_size samples to be followed;
    coloured noise longer, band by band.

    Cost: see SampleAdaptiveFrontEnd.

    Args:
        num_taps: Length of the filter in samples; 512 is 32 ms at 16 kHz.
        step_size: In (0, 2), without unit: share of the error that one sample corrects. Larger
            steps follow faster and leave more: step_size / (2 - step_size) of the rest is noise of
            the filter itself.
        regularization: Share of far's mean energy below which steps shrink.
        primary_delay: Samples by which near is delayed against far, see AdaptiveFrontEnd.

    See Also:
        FrequencyDomainNlms, which is faster and follows coloured noise in all bands alike. Rls,
        which follows soonest. ComplexLeastSquares, where the path is the same for the whole clip.
    """

    def __init__(
        self,
        *,
        num_taps: int = 512,
        step_size: float = 0.1,
        regularization: float = 1e-3,
        primary_delay: int = 0,
    ) -> None:
        super().__init__(num_taps=num_taps, step_size=step_size, primary_delay=primary_delay)
        check_option("step_size", step_size, "between 0 and 2", valid=0 < step_size < 2)
        check_option("regularization", regularization, "0 or more", valid=regularization >= 0)
        self.regularization = regularization

    def gains(self, energy: Tensor) -> Tensor:
        """Return the step, divided by the energy; 0 where far is silent, and nothing can be learnt.

        Denominators lie above the rounding error of the inner products.
        """
        rounding = 100 * torch.finfo(energy.dtype).eps * energy.amax(-1, keepdim=True)
        least = (self.regularization * energy.mean(-1, keepdim=True)).maximum(rounding)
        gains = self.step_size / (least + energy).clamp_min(EPSILON)
        return torch.where(energy > 0, gains, 0.0)


class FrequencyDomainNlms(AdaptiveFrontEnd):
    """Block NLMS in the frequency domain: overlap-save, each bin with a step of its own.

    Blocks are num_taps long, transforms twice that (Shynk, 1992, constrained, 50 % overlap). X is
    the transform of the last two blocks of far, the error e of a block is d - the second half of
    IFFT(X W), E the transform of (0, e), P[k] = power_smoothing P[k] + (1 - power_smoothing)
    |X[k]|^2, from the clip's mean, and r = regularization times the mean of |X|^2 over bins and
    blocks. The direction v is the first half of IFFT(conj(X) E / (P + r)), and w changes by
    step_size min(1, e^T s / s^T s) v, where s is what v would add to the block's prediction; not at
    all if that is negative. The last factor is not in the paper: of a tone, which leaks into all
    bins, each would correct the whole, and the filter would grow without end.

    Cost: six FFTs of 2 num_taps for num_taps samples; by far the cheapest of the long filters.

    Args:
        num_taps: Length of the filter and of a block in samples; 512 is 32 ms at 16 kHz.
        step_size: In (0, 1], without unit: about half of it is the share of the error that one
            block corrects in every bin.
        power_smoothing: In [0, 1), of far's power over blocks; at 0.9 about ten.
        regularization: Share of far's mean power below which a bin's steps shrink.
        primary_delay: Samples by which near is delayed against far, see AdaptiveFrontEnd.

    See Also:
        Nlms, whose filter moves with every sample: take it for paths that change within a block.
    """

    def __init__(
        self,
        *,
        num_taps: int = 512,
        step_size: float = 0.2,
        power_smoothing: float = 0.9,
        regularization: float = 1e-3,
        primary_delay: int = 0,
    ) -> None:
        super().__init__(num_taps=num_taps, step_size=step_size, primary_delay=primary_delay)
        check_option("step_size", step_size, "above 0, at most 1", valid=0 < step_size <= 1)
        valid = 0 <= power_smoothing < 1
        check_option("power_smoothing", power_smoothing, "at least 0 and below 1", valid=valid)
        check_option("regularization", regularization, "0 or more", valid=regularization >= 0)
        self.power_smoothing = power_smoothing
        self.regularization = regularization

    def predict(self, primary: Tensor, reference: Tensor) -> Tensor:
        """Return w^T x[n], as primary and reference (clips, num_samples)."""
        num_samples, taps = primary.shape[-1], self.num_taps
        missing = -num_samples % taps
        blocks = F.pad(primary, (0, missing)).unflatten(1, (-1, taps))
        frames = torch.fft.rfft(F.pad(reference, (taps, missing)).unfold(1, 2 * taps, taps))
        power = frames.abs().square()  # (clips, blocks, bins)
        least = self.regularization * power.mean((1, 2))[:, None, None]
        power = exponential_average(power.mT, self.power_smoothing).mT + least
        steps = frames.conj() * power.clamp_min(EPSILON).reciprocal()
        weights = torch.zeros_like(frames[:, 0])  # of the filter, transformed
        predictions = []
        for frame, step, block in zip(*(x.unbind(1) for x in (frames, steps, blocks)), strict=True):
            predicted = torch.fft.irfft(frame * weights, 2 * taps)[:, taps:]
            predictions.append(predicted)
            error = block - predicted
            moves = step * torch.fft.rfft(F.pad(error, (taps, 0)))
            change = torch.fft.rfft(torch.fft.irfft(moves, 2 * taps)[:, :taps], 2 * taps)
            added = torch.fft.irfft(frame * change, 2 * taps)[:, taps:]
            best = (error * added).sum(-1) / added.square().sum(-1).clamp_min(EPSILON**2)
            weights = weights + best.clamp(0.0, 1.0)[:, None] * self.step_size * change
        return torch.cat(predictions, dim=1)[:, :num_samples]


class Rls(StftFrontEnd):
    """Recursive least squares in sub-bands: a filter of a few frames in each bin of the STFT.

    Per bin, u = (F[t], ..., F[t - num_taps + 1]) and w, zero at first: e = C[t] - w^H u is kept;
    k = P u / (forgetting + u^H P u), w changes by k conj(e), and P becomes
    (P - k u^H P) / forgetting, kept Hermitian (Haykin, Adaptive Filter Theory). P starts as I / d,
    d = regularization times the bin's mean |F|^2 over the clip, and is scaled back to a mean
    diagonal of 1 / d where far is so quiet that it would grow without end. Sub-bands, because a
    filter of 512 samples would take 512^2 multiplications per sample.

    With forgetting near 1 the last filter is that of ComplexLeastSquares; but it is found on the
    way, without what comes later, and may change along the clip.

    Cost per frame and bin: about 4 num_taps^2 multiplications; a loop over frames, for all bins and
    equally long clips together.

    Args:
        n_fft: Window length in samples; 1024 is 64 ms at 16 kHz. Longer than the path.
        hop_length: Samples from one window to the next, at most half a window.
        num_taps: Frames of far that a frame of near is explained by, its own and those before.
        forgetting: In (0, 1], the weight of a frame relative to the next; the filter remembers
            about 1 / (1 - forgetting) frames, and takes about num_taps times (1 - forgetting) / 2
            of the machine.
        regularization: How much a bin's filter is held to 0 at first, in frames of mean far power.
        primary_delay: Samples by which near is delayed against far, see AdaptiveFrontEnd. The
            window lets a path be non-causal by a small part of it without.

    See Also:
        ComplexLeastSquares, where the path is the same for the whole clip. Nlms, which needs no
        window and moves with every sample.
    """

    def __init__(
        self,
        *,
        n_fft: int = 1024,
        hop_length: int = 256,
        num_taps: int = 2,
        forgetting: float = 0.998,
        regularization: float = 0.1,
        primary_delay: int = 0,
    ) -> None:
        super().__init__(n_fft=n_fft, hop_length=hop_length)
        check_taps(num_taps)
        check_option("forgetting", forgetting, "above 0, at most 1", valid=0 < forgetting <= 1)
        check_option("regularization", regularization, "above 0", valid=regularization > 0)
        check_primary_delay(primary_delay)
        self.num_taps = num_taps
        self.forgetting = forgetting
        self.regularization = regularization
        self.primary_delay = primary_delay

    def clean(self, near: Tensor, far: Tensor) -> Tensor:
        """Clean clips without padding, (clips, num_samples) each.

        Raises:
            ValueError: They are no longer than half a window.
        """
        self.check_length(near.shape[-1])
        primary, reference = delay_primary(near, far, self.primary_delay)
        return super().clean(primary, reference)[:, self.primary_delay :]

    def removed(self, near: Tensor, far: Tensor) -> Tensor:
        """Return w^H u of each frame."""
        # In units of d, which do not change w^H u, P starts as I.
        level = self.regularization * far.abs().square().mean(-1, keepdim=True) + EPSILON
        taps = delayed_frames(far * level.rsqrt(), self.num_taps)
        identity = torch.eye(self.num_taps, dtype=far.dtype, device=far.device)
        inverse = identity[:, :, None, None].expand(-1, -1, *far.shape[:2])
        weights = torch.zeros_like(taps[..., 0])  # (taps, clips, bins)
        predictions = []
        by_frame = (x.movedim(-1, 0).contiguous() for x in (taps, near))
        for u, primary in zip(*by_frame, strict=True):
            predicted = (weights.conj() * u).sum(0)
            predictions.append(predicted)
            direction = (inverse * u).sum(1)  # P u
            spread = self.forgetting + (u.conj() * direction).sum(0).real
            gain = direction * spread.reciprocal()  # faster than to divide complex numbers
            weights = weights + gain * (primary - predicted).conj()
            inverse = inverse - gain[:, None] * direction.conj()  # u^H P is the adjoint of P u
            # What rounding adds to P - P^H is never corrected and grows as forgetting^-t.
            inverse = 0.5 * (inverse + inverse.transpose(0, 1).conj())
            diagonal = inverse.diagonal(dim1=0, dim2=1).real.mean(-1)
            inverse = inverse * diagonal.clamp_min(self.forgetting).reciprocal()
        return torch.stack(predictions, dim=-1)


def check_primary_delay(primary_delay: int) -> None:
    """Raise ValueError unless a delay is a number of samples."""
    valid = isinstance(primary_delay, int) and primary_delay >= 0
    check_option("primary_delay", primary_delay, "a whole number, 0 or more", valid=valid)


def delay_primary(near: Tensor, far: Tensor, delay: int) -> tuple[Tensor, Tensor]:
    """Return near, `delay` samples later, and far; silence fills both up."""
    return F.pad(near, (delay, 0)), F.pad(far, (0, delay))


def window_energy(waveform: Tensor, length: int) -> Tensor:
    """Return the energy of the last `length` samples at each, (clips, num_samples) both.

    Without cancellation, so that silence after a bang has no energy: a window is the last samples
    of one block of `length` samples and the first ones of the next.
    """
    num_samples = waveform.shape[-1]
    squares = F.pad(waveform.square(), (length, -num_samples % length)).unflatten(1, (-1, length))
    until = squares.cumsum(-1).flatten(1)
    behind = F.pad(squares.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1)).flatten(1)
    energy: Tensor = until[:, length : length + num_samples] + behind[:, :num_samples]
    return energy


def inner_products(far: Tensor, num_taps: int, block: int) -> Tensor:
    """Return x[n]^T x[i] for all n > i of each block, where x is the last num_taps samples of far.

    Args:
        far: (clips, num_taps + block + blocks * block); the blocks and what lies before them.
        num_taps: Length of x.
        block: Samples per block.

    Returns:
        (clips, blocks, block, block); entries above the diagonal are without meaning.
    """
    n_fft = num_taps + block
    before = far[:, 1 : 1 + n_fft]  # up to the first sample
    taps = F.pad(before[:, block:], (block, 0))
    lags = torch.fft.irfft(torch.fft.rfft(taps) * torch.fft.rfft(before).conj(), n_fft)
    new, old = (x.unfold(1, block, 1) for x in (far[:, num_taps + 1 :], far[:, 1:-num_taps]))
    change = torch.addcmul(new * new[..., -1:], old, old[..., -1:], value=-1.0)
    change[:, 0] = lags[:, :block].flip(-1)  # lags block - 1, ..., 0 of the first sample
    # Sums along the samples, in each block and then over blocks. Two lags are one complex number,
    # which torch adds as fast as a real one.
    pairs = torch.view_as_complex(change.contiguous().unflatten(-1, (-1, 2)))
    sums = pairs.unflatten(1, (-1, block)).cumsum(2)
    earlier = F.pad(sums[:, :-1, -1].cumsum(1), (0, 0, 1, 0))
    products = torch.view_as_real(sums + earlier[:, :, None])
    # A sample's row holds the lags block - 1, ..., 0. Read in rows that begin at the end of the
    # first and overlap by one, sample j's product with sample i < j stands in row j, column i.
    square: Tensor = products.flatten(2)[..., block - 1 :].unfold(2, block, block - 1)
    return square


__all__ = [
    "AdaptiveFrontEnd",
    "FrequencyDomainNlms",
    "Lms",
    "Nlms",
    "Rls",
    "SampleAdaptiveFrontEnd",
]
