"""Near and far waveforms of any lengths -> one padded batch with a sample mask."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import BatchFeature, SequenceFeatureExtractor, TensorType

CHANNELS = {"near": 0, "far": 1}  # where a two-channel recording holds which microphone


class AsdFeatureExtractor(SequenceFeatureExtractor):
    """Check, scale and pad the clips of a batch.

    Args:
        sampling_rate: Of every clip, in hertz. Nothing is resampled here.
        peak_normalize: Divide near and far of a clip by one number, the larger peak of the two plus
            1e-6: their ratio, which is what a front end works with, stays.
        clip_seconds: Clips are cut to this length, or filled up to it with zeros, which then count
            as sound, before anything else hears them; None: clips are heard whole.
        min_num_samples: Shortest clip accepted; 2800 samples give BEATs one patch.
        for_encoder: Emit `input_values` for a bare encoder instead of near and far.
        feature_size: 1, the channels per waveform.
        padding_value: 0.0, behind a clip's end.
        **kwargs: As transformers' feature extractors.
    """

    model_input_names = ["near_values", "far_values", "has_far", "attention_mask"]  # noqa: RUF012 as its base

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        *,
        peak_normalize: bool = False,
        clip_seconds: float | None = None,
        min_num_samples: int = 2800,
        for_encoder: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.peak_normalize = peak_normalize
        if clip_seconds is not None and not clip_seconds * sampling_rate >= min_num_samples:
            raise ValueError(
                f"clip_seconds={clip_seconds} is less than the {min_num_samples} samples that a "
                "clip must have. Give more, or None for whole clips."
            )
        self.clip_seconds = clip_seconds
        self.min_num_samples = min_num_samples
        self.for_encoder = for_encoder
        if for_encoder:
            self.model_input_names = ["input_values", "attention_mask"]

    def __call__(
        self,
        near: ArrayLike | Sequence[ArrayLike],
        far: ArrayLike | Sequence[ArrayLike | None] | None = None,
        *,
        sampling_rate: int | None = None,
        file_names: Sequence[str] | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Return one batch of clips, padded with zeros behind each clip's end.

        Args:
            near: One clip, (num_samples,), or a sequence of them. Floating values are taken as they
                are and should lie in [-1, 1]; int16 and int32 are divided by 32768 and 2 ** 31.
            far: The far microphone, in the same form, each as long as its near clip; None, or None
                for a clip, where there was no such microphone.
            sampling_rate: Of all of them, in hertz; required.
            file_names: Names of the clips for error messages.
            return_tensors: "pt" for torch tensors, None or "np" for numpy arrays.

        Returns:
            `near_values` and `far_values` (batch, num_samples) float32, far zero where missing;
            `has_far` (batch,) bool; `attention_mask` (batch, num_samples) int64, 1 = sound. With
            `for_encoder`: `input_values`, which are the near clips, and `attention_mask`.

        Raises:
            ValueError: No or another sampling rate, a clip with two dimensions, too few samples, a
                value that is not finite, or near and far of different lengths or numbers.
            TypeError: Samples of another type than floating, int16 or int32.
        """
        near_clips = as_clips(near)
        far_clips = [None] * len(near_clips) if far is None else as_clips(far)
        self.check_batch(near_clips, far_clips, sampling_rate, file_names)
        pairs = []
        for i, (near_clip, far_clip) in enumerate(zip(near_clips, far_clips, strict=True)):
            name = f"Clip {i}" if file_names is None else file_names[i]
            pairs.append(self.pair(near_clip, far_clip, name))

        lengths = np.array([len(near_clip) for near_clip, _ in pairs])
        inside = np.arange(lengths.max()) < lengths[:, None]  # (B, num_samples)
        values = np.full((2, *inside.shape), self.padding_value, dtype=np.float32)
        for i, pair in enumerate(pairs):
            for channel, clip in zip(CHANNELS.values(), pair, strict=True):
                values[channel, i, : lengths[i]] = 0.0 if clip is None else clip
        mask = inside.astype(np.int64)
        if self.for_encoder:
            batch = {"input_values": values[CHANNELS["near"]], "attention_mask": mask}
        else:
            batch = {
                "near_values": values[CHANNELS["near"]],
                "far_values": values[CHANNELS["far"]],
                "has_far": np.array([far_clip is not None for _, far_clip in pairs]),
                "attention_mask": mask,
            }
        return BatchFeature(batch, tensor_type=return_tensors)

    def check_batch(
        self,
        near: Sequence[ArrayLike],
        far: Sequence[ArrayLike | None],
        sampling_rate: int | None,
        file_names: Sequence[str] | None,
    ) -> None:
        """Raise ValueError for what is wrong with the call and not with one clip."""
        if sampling_rate != self.sampling_rate:
            came = f"got {sampling_rate} Hz" if sampling_rate else "no sampling_rate was given"
            raise ValueError(
                f"This model expects {self.sampling_rate} Hz, but {came}. Resample the clips, and "
                f"pass sampling_rate={self.sampling_rate}."
            )
        if not near:
            raise ValueError("There is no clip in this batch. Pass at least one.")
        if len(far) != len(near):
            raise ValueError(
                f"{len(near)} near clips came with {len(far)} far clips. Pass one far clip, or "
                "None, per near clip."
            )
        if file_names is not None and len(file_names) != len(near):
            raise ValueError(f"{len(near)} near clips came with {len(file_names)} file names.")
        if self.for_encoder and any(clip is not None for clip in far):
            raise ValueError(
                "This extractor feeds a bare encoder, which has one input; far was given, too. "
                "Construct it with for_encoder=False, or leave far out."
            )

    def pair(
        self, near: ArrayLike, far: ArrayLike | None, name: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return both channels of a clip, checked and scaled; errors begin with its name."""
        channels = [self.waveform(near, f"{name} (near)")]
        if far is not None:
            channels.append(self.waveform(far, f"{name} (far)"))
            if len(channels[0]) != len(channels[1]):
                raise ValueError(
                    f"{name} has {len(channels[0])} near samples, but {len(channels[1])} far ones. "
                    "Both microphones of a clip have one clock: cut them together."
                )
        if self.peak_normalize:
            peak = max(np.abs(channel).max() for channel in channels)
            channels = [channel / (peak + np.float32(1e-6)) for channel in channels]
        if self.clip_seconds is not None:
            due = round(self.clip_seconds * self.sampling_rate)
            channels = [
                np.pad(channel[:due], (0, max(0, due - len(channel)))) for channel in channels
            ]
        return channels[0], None if far is None else channels[1]

    def waveform(self, samples: ArrayLike, name: str) -> NDArray[np.float32]:
        """Return one channel as float32, or raise naming it."""
        waveform = np.asarray(samples)
        if waveform.ndim != 1:
            raise ValueError(
                f"{name} has shape {waveform.shape}, expected (num_samples,). Pass the channels of "
                f"a recording apart: {CHANNELS['near']} is near, {CHANNELS['far']} is far; pass "
                "several clips as a list."
            )
        if waveform.dtype in (np.int16, np.int32):
            waveform = waveform / -float(np.iinfo(waveform.dtype).min)
        if not np.issubdtype(waveform.dtype, np.floating):
            raise TypeError(
                f"{name} has samples of type {waveform.dtype}, expected floating ones in [-1, 1], "
                "int16 or int32."
            )
        if len(waveform) < self.min_num_samples:
            raise ValueError(
                f"{name} has {len(waveform)} samples, expected {self.min_num_samples} or more "
                f"({self.min_num_samples / self.sampling_rate:.3f} seconds). Leave it out."
            )
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused
            waveform = waveform.astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(waveform))
        if len(wrong):
            raise ValueError(
                f"{name} has {len(wrong)} samples that are NaN or infinite, the first at sample "
                f"{wrong[0]}. Read the recording again, or leave it out."
            )
        return waveform


def as_clips(clips: ArrayLike | Sequence[ArrayLike | None]) -> list[Any]:
    """Return a list of clips, whether one or a list was given."""
    if isinstance(clips, (list, tuple)) and not (clips and np.isscalar(clips[0])):
        return list(clips)
    return [clips]


AsdFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["CHANNELS", "AsdFeatureExtractor"]
