"""Where the cells of an anomaly map lie: seconds and hertz of patches and of spectrogram frames."""

from typing import Any, NamedTuple

import numpy as np
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from .modeling_fisher import FisherModel
from .spectrogram import LOW_FREQUENCY_HZ, LibrosaLogMel


class MapAxes(NamedTuple):
    """Edges of the cells of a map, ascending; cell i lies between edges i and i + 1.

    Attributes:
        time_edges_seconds: From the beginning of the clip.
        band_edges_hz: Low frequencies first.
    """

    time_edges_seconds: list[float]
    band_edges_hz: list[float]


def patch_axes(encoder: Any, num_time: int) -> MapAxes:  # noqa: ANN401  any of ENCODERS
    """Return where an encoder's patches lie, at its configuration's sampling rate.

    A frame stands for the time halfway to its neighbours, a mel filter for the frequencies halfway
    to its neighbours' middles, in mel.

    Args:
        encoder: Of the patches.
        num_time: Patches along time.
    """
    encoder = getattr(encoder, "encoder", encoder)  # that of a noise-aware one hears likewise
    rate, bins = encoder.config.sampling_rate, np.array(patch_bins(encoder))
    if isinstance(encoder, FisherModel):
        frame, hop = encoder.log_stft.frame_length(rate), encoder.log_stft.hop_length(rate)
        hertz = (bins - 0.5) * rate / frame
    else:
        frame, hop = encoder.log_mel.frame_length, encoder.log_mel.hop_length
        low, high = (hertz_to_mel(edge, mel_scale="kaldi") for edge in (LOW_FREQUENCY_HZ, rate / 2))
        step = (high - low) / (encoder.config.num_mel_bins + 1)
        hertz = mel_to_hertz(low + (bins + 0.5) * step, mel_scale="kaldi")
    starts = (frame - hop) / 2 + hop * encoder.config.patch_size * np.arange(num_time + 1)
    return MapAxes((starts / rate).tolist(), np.maximum(hertz, 0.0).tolist())


def patch_bins(encoder: Any) -> list[int]:  # noqa: ANN401  any of ENCODERS
    """Return the edges of an encoder's bands of patches, in bins of its spectrogram.

    Bins between FISHER's sub-bands that no patch holds count with the band below them.
    """
    encoder = getattr(encoder, "encoder", encoder)  # as above
    config = encoder.config
    if not isinstance(encoder, FisherModel):
        return list(range(0, config.num_mel_bins + 1, config.patch_size))
    columns = config.band_width // config.patch_size
    starts = [
        band * config.band_width + column * config.patch_size
        for band in range(encoder.num_bands())
        for column in range(columns)
    ]
    return [*starts, encoder.num_bands() * config.band_width]


def frame_axes(log_mel: LibrosaLogMel, num_frames: int) -> MapAxes:
    """Return where the frames and filters of the baselines' spectrogram lie.

    Args:
        log_mel: The spectrogram.
        num_frames: Of the clip.
    """
    middles = np.arange(num_frames + 1) - 0.5
    seconds = np.maximum(middles, 0.0) * log_mel.hop_length / log_mel.sampling_rate
    high = hertz_to_mel(log_mel.sampling_rate / 2, mel_scale="slaney")
    bins = np.arange(log_mel.num_mel_bins + 1) + 0.5
    hertz: Any = mel_to_hertz(bins * high / (log_mel.num_mel_bins + 1), mel_scale="slaney")
    return MapAxes(seconds.tolist(), hertz.tolist())


__all__ = ["MapAxes", "frame_axes", "patch_axes", "patch_bins"]
