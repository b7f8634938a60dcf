"""A listener for the tests of the factory: nearest neighbour on time-averaged log-mel spectra."""

import functools

import numpy as np
from scipy.stats import rankdata

from data_scripts.factory.parts import SAMPLING_RATE


@functools.cache
def mel_bank() -> np.ndarray:
    """Return 128 triangles over the bins of a 1024-point spectrum, (513, 128)."""
    mel = np.linspace(0, 2_595 * np.log10(1 + 8_000 / 700), 130)
    edges = 700 * (10 ** (mel / 2_595) - 1)
    frequency = np.fft.rfftfreq(1_024, 1 / SAMPLING_RATE)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Return the time-averaged log-mel spectrum (128,) in dB."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 1_024)[::512]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(1_024).astype(np.float32))))
    return (10 * np.log10(power @ mel_bank() + 1e-12)).mean(axis=0)


def shape(waveform: np.ndarray) -> np.ndarray:
    """Return the log-mel spectrum without the level, which is drawn for each clip."""
    spectrum = log_mel(waveform)
    return spectrum - spectrum.mean()


def nearest(test: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.linalg.norm(test[:, None] - references, axis=-1).min(axis=1)


def auc(anomalous: np.ndarray, normal: np.ndarray) -> float:
    """Return the area under the curve by ranks, so that ties count half."""
    ranks = rankdata(np.concatenate([anomalous, normal]))
    excess = ranks[: len(anomalous)].sum() - len(anomalous) * (len(anomalous) + 1) / 2
    return float(excess / (len(anomalous) * len(normal)))
