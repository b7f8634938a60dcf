"""librosa's log-mel spectrogram, a second time: in float64 and plain loops."""

import math

import numpy as np


def plain_log_mel(samples: np.ndarray, *, bins: int, n_fft: int, hop: int, rate: int) -> np.ndarray:
    """Return decibels (frames, bins), as librosa documents its defaults."""

    def to_mel(hertz: float) -> float:
        if hertz < 1000:
            return 3 * hertz / 200
        return 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    def to_hertz(mel: float) -> float:
        return 200 * mel / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [to_hertz(m) for m in np.linspace(0, to_mel(rate / 2), bins + 2)]
    filters = np.zeros((bins, n_fft // 2 + 1))
    for i in range(bins):
        low, middle, high = edges[i : i + 3]
        for k in range(n_fft // 2 + 1):
            f = k * rate / n_fft
            height = min((f - low) / (middle - low), (high - f) / (high - middle))
            filters[i, k] = 2 / (high - low) * max(0.0, height)
    n = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), n) / n_fft)
    padded_samples = np.concatenate([np.zeros(n_fft // 2), samples, np.zeros(n_fft // 2)])
    frames = []
    for t in range(1 + len(samples) // hop):
        power = np.abs(dft @ (window * padded_samples[t * hop : t * hop + n_fft])) ** 2
        frames.append([10 * math.log10(max(p, np.finfo(np.float64).eps)) for p in filters @ power])
    return np.array(frames)
