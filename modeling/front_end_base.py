"""What all front ends share: one clip at a time, in float32, at a common level."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

EPSILON = 1e-12  # of the power of two channels whose common peak is 0.9


class FrontEnd(nn.Module):
    """Base of the front ends; a subclass says how clips without padding are cleaned."""

    def forward(self, near: Tensor, far: Tensor, lengths: Tensor) -> Tensor:
        """Return the cleaned near waveform, (batch, num_samples) float32, zero behind each end.

        Args:
            near: (batch, num_samples) in [-1, 1], padded at the end.
            far: Same shape, same clock: sample i of both was taken at the same time.
            lengths: (batch,) int64, samples of each clip without its padding.

        Raises:
            ValueError: Shapes or lengths do not fit, or a clip is too short for the front end.
        """
        return clean_by_length(self.clean, near, far, lengths)

    def clean(self, near: Tensor, far: Tensor) -> Tensor:
        """Clean clips without padding, (clips, num_samples) each."""
        raise NotImplementedError


class NearFrontEnd(FrontEnd):
    """Take the near microphone as it is.

    See Also:
        ComplexLeastSquares, which uses the far microphone: take it when the room is loud.
    """

    def clean(self, near: Tensor, far: Tensor) -> Tensor:  # noqa: ARG002 - not used
        """Return near."""
        return near


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


def joint_scale(near: Tensor, far: Tensor) -> Tensor:
    """Return the factor (clips, 1) that brings the louder channel's peak to 0.9; silence: 1."""
    peak = torch.maximum(near.abs().amax(-1), far.abs().amax(-1))[:, None]
    return 0.9 / torch.where(peak > EPSILON, peak, 0.9)


def exponential_average(values: Tensor, smoothing: float) -> Tensor:
    """Average over time, the last dimension: A[t] = smoothing A[t-1] + (1 - smoothing) values[t].

    It starts from the mean over the clip, not from one value: a single frame is no average.
    """
    if smoothing == 0.0:
        return values
    average = values.mean(-1)
    averages = []
    for value in values.unbind(-1):
        average = smoothing * average + (1.0 - smoothing) * value
        averages.append(average)
    return torch.stack(averages, dim=-1)


def check_option(name: str, value: float | None, due: str, *, valid: bool) -> None:
    """Raise ValueError unless an option is valid, saying what it must be."""
    if not valid:
        raise ValueError(f"{name}={value!r} must be {due}. Set it in front_end_options.")


def check_taps(num_taps: int) -> None:
    """Raise ValueError unless a filter has a tap."""
    valid = isinstance(num_taps, int) and num_taps >= 1
    check_option("num_taps", num_taps, "a whole number, 1 or more", valid=valid)


__all__ = [
    "EPSILON",
    "FrontEnd",
    "NearFrontEnd",
    "check_option",
    "check_taps",
    "clean_by_length",
    "exponential_average",
    "joint_scale",
]
