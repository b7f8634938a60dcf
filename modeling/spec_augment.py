"""Masks on an encoder's spectrogram, in training (SpecAugment: Park et al., 2019)."""

import torch
from torch import Tensor


def mask_spectrogram(features: Tensor, num_frames: Tensor, masks: Tensor) -> Tensor:
    """Return a spectrogram with a run of frames and a run of bins of each clip set to 0.

    0 is the mean of a normalised spectrogram. A run lies inside the clip, so that it does not
    depend on the padding; one that is longer than the clip covers it.

    Args:
        features: (batch, frames, bins), normalised.
        num_frames: (batch,), frames of each clip without its padding.
        masks: (batch, 4) of floats: where the run of frames begins, as a share in [0, 1) of the
            room there is, and its width in frames; the same of the run of bins.
    """
    frames = torch.arange(features.shape[1], device=features.device)
    bins = torch.arange(features.shape[2], device=features.device)
    num_bins = torch.full_like(num_frames, features.shape[2])
    masked_frames = _run(frames, num_frames, masks[:, 0], masks[:, 1])  # (B, frames)
    masked_bins = _run(bins, num_bins, masks[:, 2], masks[:, 3])  # (B, bins)
    return features.masked_fill(masked_frames[:, :, None] | masked_bins[:, None], 0.0)


def _run(positions: Tensor, size: Tensor, share: Tensor, width: Tensor) -> Tensor:
    """Return which positions (size,) lie in each clip's run, (batch, size) bool."""
    # In float64, as the share of a long clip's frames is not whole in float32.
    width = width.double().minimum(size.double())
    start = (share.double() * (size - width + 1)).floor()
    return (positions >= start[:, None]) & (positions < (start + width)[:, None])


__all__ = ["mask_spectrogram"]
