"""Bootstrap intervals of the official score, for one system or for the difference of two.

The test clips are drawn again, with replacement, within each machine x domain x condition, so that
every resample has the test set's own counts. An interval says how far the score would move with
other clips of these machines; it says nothing about other machines or other training seeds.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import harmonic_mean, official_score, section_metrics

_CLIPS_PER_BATCH = 1_000_000  # resamples x clips held at once: some 100 MB


class BootstrapInterval(NamedTuple):
    """An estimate with its percentile interval (Efron, 1979), in raw 0..1 units."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    machines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    max_fpr: float = 0.1,
) -> BootstrapInterval:
    """Return the official score of one system with its bootstrap interval.

    Args:
        machines: Per machine ("2026/fan/00"): anomalous, domains, anomaly_scores, each (N,) as in
            `section_metrics`.
        num_resamples: How often the clips are drawn again.
        seed: The same seed draws the same clips, for this function and for `bootstrap_difference`.
        confidence: Share of the resamples inside the interval, in (0, 1).
        max_fpr: As in `section_metrics`.

    Raises:
        ValueError: As `section_metrics`, with the machine named, or an argument out of range.
    """
    systems = {name: (values[0], values[1], (values[2],)) for name, values in machines.items()}
    estimate, resampled = _score_systems(systems, num_resamples, seed, max_fpr)
    return _interval(estimate[0], resampled[0], confidence)


def bootstrap_difference(
    machines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    max_fpr: float = 0.1,
) -> BootstrapInterval:
    """Return the official score of system a minus that of b, with its paired bootstrap interval.

    Both systems are scored on the same resampled clips, so that what is hard for both cancels.

    Args:
        machines: Per machine ("2026/fan/00"): anomalous, domains, scores_a, scores_b, each (N,) as
            in `section_metrics`.
        num_resamples: How often the clips are drawn again.
        seed: The same seed draws the same clips.
        confidence: Share of the resamples inside the interval, in (0, 1).
        max_fpr: As in `section_metrics`.

    Raises:
        ValueError: As `section_metrics`, with the machine named, or an argument out of range.
    """
    systems = {name: (values[0], values[1], values[2:]) for name, values in machines.items()}
    estimate, resampled = _score_systems(systems, num_resamples, seed, max_fpr)
    return _interval(estimate[0] - estimate[1], resampled[0] - resampled[1], confidence)


def weighted_metrics(
    anomalous: NDArray[np.bool_],
    anomaly_scores: NDArray[np.float64],
    domains: NDArray[np.str_],
    counts: NDArray[np.int64],
    *,
    max_fpr: float = 0.1,
) -> NDArray[np.float64]:
    """Compute `section_metrics` for many weightings of the clips at once.

    Args:
        anomalous: (N,) ground truth.
        anomaly_scores: (N,), higher is more anomalous; ties count half.
        domains: (N,), "source" or "target".
        counts: (R, N) how often each clip occurs in each resample. Each resample must hold an
            anomaly and a normal clip of each domain.
        max_fpr: As in `section_metrics`.

    Returns:
        (R, 3) auc_source, auc_target, pauc; equal to scikit-learn's with `sample_weight=counts`.
    """
    order = np.argsort(-anomaly_scores, kind="stable")
    ordered = anomaly_scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # one step per distinct score

    def per_score(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.add.reduceat((counts * kept)[:, order], starts, axis=1)  # (R, N) -> (R, steps)

    anomalies = per_score(anomalous)
    source, target = (per_score(~anomalous & (domains == name)) for name in ("source", "target"))
    least, most = 0.5 * max_fpr**2, max_fpr  # McClish: the area at chance, and the perfect one
    partial = _roc_area(source + target, anomalies, max_fpr=max_fpr)
    pauc = 0.5 * (1 + (partial - least) / (most - least))
    return np.stack([_roc_area(source, anomalies), _roc_area(target, anomalies), pauc], axis=1)


def _roc_area(
    normals: NDArray[np.int64], anomalies: NDArray[np.int64], *, max_fpr: float = 1.0
) -> NDArray[np.float64]:
    """Return the area under each ROC curve up to max_fpr, from (R, steps) counts per score."""
    step_fpr, step_tpr = (counts / counts.sum(1, keepdims=True) for counts in (normals, anomalies))
    right = np.cumsum(step_fpr, axis=1)
    width = np.minimum(right, max_fpr) - np.minimum(right - step_fpr, max_fpr)
    # The step that crosses max_fpr counts in part, its TPR interpolated linearly.
    used = np.divide(width, step_fpr, out=np.zeros_like(width), where=step_fpr > 0)
    height = np.cumsum(step_tpr, axis=1) - step_tpr + 0.5 * used * step_tpr
    return np.asarray((width * height).sum(1))


def _score_systems(
    machines: Mapping[str, tuple[ArrayLike, ArrayLike, tuple[ArrayLike, ...]]],
    num_resamples: int,
    seed: int,
    max_fpr: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the systems' scores, (S,) on the clips as they are and (S, R) on resampled clips."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; it takes at least 1.")
    if not machines:
        raise ValueError("There is no machine to score; give at least one.")
    as_they_are, resampled = [], []
    for name, (anomalous, domains, systems) in machines.items():
        try:
            as_they_are.append(
                [section_metrics(anomalous, scores, domains, max_fpr=max_fpr) for scores in systems]
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        flags, names = np.asarray(anomalous, dtype=bool), np.asarray(domains, dtype=np.str_)
        arrays = [np.asarray(scores, dtype=np.float64) for scores in systems]
        # Seeded by its name: a machine's draws do not depend on which others are scored.
        rng = np.random.default_rng([seed, *name.encode()])
        batch = max(1, _CLIPS_PER_BATCH // len(flags))
        parts = []
        for start in range(0, num_resamples, batch):
            counts = _draw(flags, names, min(batch, num_resamples - start), rng)
            parts.append(
                [weighted_metrics(flags, a, names, counts, max_fpr=max_fpr) for a in arrays]
            )
        resampled.append(np.concatenate(parts, axis=1))  # (S, R, 3)
    scores = [official_score(sections) for sections in zip(*as_they_are, strict=True)]
    return np.asarray(scores), harmonic_mean(np.concatenate(resampled, axis=2))


def _draw(
    anomalous: NDArray[np.bool_],
    domains: NDArray[np.str_],
    num_resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return (R, N): how often each clip was drawn within its domain and condition."""
    counts = np.zeros((num_resamples, len(anomalous)), dtype=np.int64)
    for domain in ("source", "target"):
        for condition in (False, True):
            rows = np.flatnonzero((domains == domain) & (anomalous == condition))
            if not len(rows):
                continue
            drawn = rng.integers(len(rows), size=(num_resamples, len(rows)))
            drawn += np.arange(num_resamples)[:, None] * len(rows)  # one range of bins per resample
            bins = np.bincount(drawn.ravel(), minlength=drawn.size)
            counts[:, rows] = bins.reshape(drawn.shape)
    return counts


def _interval(
    estimate: np.float64, resampled: NDArray[np.float64], confidence: float
) -> BootstrapInterval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0 and 1, such as 0.95.")
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return BootstrapInterval(estimate=float(estimate), low=float(low), high=float(high))
