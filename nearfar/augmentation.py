"""What training does to a batch of waveforms; batched, on the batch's device.

All that is drawn is drawn for each clip from the seed, the epoch and the clip alone: it is the same
whatever the batch, the number of processes, or an interruption in between.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Stream(IntEnum):
    """What a random number is for; each purpose has numbers of its own."""

    FAR_MIXING = 0
    CROP = 1
    MIXUP = 2
    MIXUP_SHARE = 3
    NOISE = 4
    NOISE_LEVEL = 5
    NOISE_SAMPLES = 6
    GAIN = 7
    TIME_MASK = 8
    FREQUENCY_MASK = 9
    ORDER = 10
    # Added to the above for what happens to a partner before it is mixed into a clip.
    OF_MIXUP = 32
    OF_NOISE = 64


def clip_generator(
    index: int | Tensor, *, seed: int, epoch: int, stream: int
) -> np.random.Generator:
    """Return the random numbers of one clip, in one epoch, for one purpose."""
    return np.random.default_rng((seed, epoch, int(stream), int(index)))


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
        clip_generator(i, seed=seed, epoch=epoch, stream=stream).uniform(low, high) for i in indices
    ]
    return torch.tensor(drawn, dtype=torch.float32)


def clip_beta(
    indices: Sequence[int] | Tensor, *, alpha: float, seed: int, epoch: int, stream: int
) -> Tensor:
    """Draw one number per clip from Beta(alpha, alpha), (batch,) float32; as `clip_uniform`."""
    drawn = [
        clip_generator(i, seed=seed, epoch=epoch, stream=stream).beta(alpha, alpha) for i in indices
    ]
    return torch.tensor(drawn, dtype=torch.float32)


def draw_partner(
    index: int, num_clips: int, *, probability: float, seed: int, epoch: int, stream: int
) -> int | None:
    """Draw which clip is mixed into one, or None with 1 - `probability`."""
    rng = clip_generator(index, seed=seed, epoch=epoch, stream=stream)
    if rng.uniform() >= probability:
        return None
    return int(rng.integers(num_clips))


def white_noise(
    indices: Sequence[int] | Tensor, num_samples: int, *, seed: int, epoch: int
) -> Tensor:
    """Draw standard normal samples, (batch, num_samples) float32, each clip's own.

    A longer draw begins with the shorter one, so a clip's noise does not depend on its padding.
    """
    drawn: list[NDArray[np.float32]] = [
        clip_generator(i, seed=seed, epoch=epoch, stream=Stream.NOISE_SAMPLES).standard_normal(
            num_samples, dtype=np.float32
        )
        for i in indices
    ]
    return torch.from_numpy(np.stack(drawn))


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


def piece_in_a_loop(values: Tensor, start: Tensor, lengths: Tensor, num_samples: int) -> Tensor:
    """Return `num_samples` of each clip, which begins anew where it ends.

    Args:
        values: (batch, any).
        start: (batch,) int64, first sample of each clip's piece.
        lengths: (batch,) int64, samples of each clip without its padding.
        num_samples: Length of the pieces.
    """
    index = start[:, None] + torch.arange(num_samples, device=values.device)
    return values.gather(1, index % lengths[:, None])


def fit_length(values: Tensor, num_samples: int) -> Tensor:
    """Cut or extend clips (batch, any) to `num_samples`, by zeros at the end."""
    return F.pad(values, (0, num_samples - values.shape[1]))  # negative: cut


def mix_clips(values: Tensor, partners: Tensor, position: Tensor, share: Tensor) -> Tensor:
    """Return share * clip + (1 - share) * partner for the clips that have one (mixup).

    Zhang et al., 2018. For waveforms and for soft labels alike.

    Args:
        values: (batch, size); clips without a partner stay as they are.
        partners: (partners, size).
        position: (partners,) int64, each partner's clip; none twice.
        share: (partners,), the clip's own, in [0, 1].
    """
    own = share.to(values)[:, None]
    return values.index_copy(0, position, own * values[position] + (1 - own) * partners)


def add_noise(signal: Tensor, noise: Tensor, snr_db: Tensor, attention_mask: Tensor) -> Tensor:
    """Return signal + noise, the noise scaled to a signal-to-noise ratio over each clip's samples.

    A silent clip, or one with silent noise, stays as it is.

    Args:
        signal: (batch, num_samples), zero in its padding.
        noise: Same shape, of any level; what lies in the padding is left out.
        snr_db: (batch,), mean power of signal over that of noise, in dB.
        attention_mask: (batch, num_samples), 1 = sound.
    """
    noise = noise * attention_mask
    power, noise_power = (x.square().sum(dim=1) for x in (signal, noise))
    wanted = power * 10.0 ** (-snr_db.to(signal) / 10)
    gain = (wanted / noise_power.clamp_min(torch.finfo(signal.dtype).tiny)).sqrt()
    return signal + torch.where(noise_power > 0, gain, 0.0)[:, None] * noise


def mask_spans(
    indices: Sequence[int] | Tensor,
    longest: int,
    *,
    probability: float,
    seed: int,
    epoch: int,
    stream: int,
) -> Tensor:
    """Draw a mask along one axis of a spectrogram per clip, (batch, 2) float32.

    Args:
        indices: Of the clips.
        longest: Frames or bins.
        probability: That a clip has a mask at all.
        seed: As `clip_uniform`'s, like the two after it.
        epoch: Counted from 0.
        stream: The purpose.

    Returns:
        Where it begins, as a share in [0, 1) of the room there is, and its width, a whole number
        from U{0, ..., longest}.
    """
    spans = []
    for index in indices:
        rng = clip_generator(index, seed=seed, epoch=epoch, stream=stream)
        masked = rng.uniform() < probability
        width = int(rng.integers(longest + 1))
        # As float32 the share must not become 1.
        spans.append((min(rng.uniform(), 1 - 2.0**-24), width if masked else 0))
    return torch.tensor(spans, dtype=torch.float32)
