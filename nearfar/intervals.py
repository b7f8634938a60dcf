"""An interval of a mean over few independent results: factories, or training seeds."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return a mean and half the width of its 95 % interval (Student's t).

    Args:
        values: (N,), two or more: one per factory or seed; a paired difference, or another figure.
    """
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(half)


__all__ = ["mean_interval"]
