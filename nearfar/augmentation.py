"""What training does to a batch of waveforms; batched, on the batch's device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def clip_uniform(
    indices: Sequence[int] | Tensor,
    *,
    low: float,
    high: float,
    seed: int,
    epoch: int,
    stream: int = 0,
) -> Tensor:
    """Draw one number per clip from U(low, high), (batch,) float32.

    A clip's number depends on the seed, the epoch and the clip alone, so that it is the same
    whatever the batch, the number of processes, or an interruption in between. Another `stream`
    gives other numbers, for another purpose.
    """
    drawn = [
        np.random.default_rng((seed, epoch, stream, int(i))).uniform(low, high) for i in indices
    ]
    return torch.tensor(drawn, dtype=torch.float32)


def mix_far(near: Tensor, far: Tensor, gain: Tensor) -> Tensor:
    """Return near + gain * far: the machine as it would sound in more of the room's noise.

    UNIS, DCASE 2026 Task 2 technical report: gain ~ U(0, 0.5), in training only.

    Args:
        near: (batch, num_samples) float32.
        far: Same shape; zeros where a clip has no far channel, which leaves near as it is.
        gain: (batch,).
    """
    return near + gain.to(near)[:, None] * far


def crop(values: Tensor, start: Tensor, num_samples: int) -> Tensor:
    """Cut `num_samples` out of each clip.

    Args:
        values: (batch, longer) of anything that has one value per sample.
        start: (batch,) int64, first sample of each clip's piece.
        num_samples: Length of the pieces.
    """
    index = start.to(values.device)[:, None] + torch.arange(num_samples, device=values.device)
    return values.gather(1, index)
