"""Bootstrap intervals of every metric, for one system or for the difference of two.

The test clips are drawn again, with replacement, within each machine x domain x condition, so that
every resample has the test set's own counts. An interval says how far a metric would move with
other clips of these machines; it says nothing about other machines or other training seeds.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import EPSILON, official_score, score_mean, year_metrics

_CLIPS_PER_BATCH = 1_000_000  # resamples x clips held at once: some 100 MB
_DOMAINS = ("source", "target")
# What each year's `year_metrics` is called among the values of `weighted_metrics`.
_YEAR_KEYS = {
    2020: ("auc", "pauc"),
    2021: tuple(
        f"within_domain_{metric}_{domain}" for metric in ("auc", "pauc") for domain in _DOMAINS
    ),
}
_KEYS_SINCE_2022 = ("auc_source", "auc_target", "pauc")

Values = dict[str, NDArray[np.float64]]


class BootstrapInterval(NamedTuple):
    """An estimate with its percentile interval (Efron, 1979), in raw 0..1 units."""

    estimate: float
    low: float
    high: float


def year_keys(year: int) -> tuple[str, ...]:
    """Return the keys of `weighted_metrics` that make the official score of a year."""
    return _YEAR_KEYS.get(year, _KEYS_SINCE_2022)


def bootstrap_interval(
    machines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    year: int = 2026,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    max_fpr: float = 0.1,
) -> BootstrapInterval:
    """Return the official score of one system with its bootstrap interval.

    Args:
        machines: Per machine ("2026/fan/00"): anomalous, domains, anomaly_scores, each (N,) as in
            `year_metrics`.
        year: Whose official score.
        num_resamples: How often the clips are drawn again.
        seed: The same seed draws the same clips, in every function of this module.
        confidence: Share of the resamples inside the interval, in (0, 1).
        max_fpr: As in `section_metrics`.

    Raises:
        ValueError: As `year_metrics`, with the machine named, or an argument out of range.
    """
    systems = {name: (values[0], values[1], (values[2],)) for name, values in machines.items()}
    estimate, resampled = _score_systems(systems, year, num_resamples, seed, max_fpr)
    return BootstrapInterval(float(estimate[0]), *interval(resampled[0], confidence=confidence))


def bootstrap_difference(
    machines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]],
    *,
    year: int = 2026,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    max_fpr: float = 0.1,
) -> BootstrapInterval:
    """Return the official score of system a minus that of b, with its paired bootstrap interval.

    Both systems are scored on the same resampled clips, so that what is hard for both cancels.

    Args:
        machines: Per machine ("2026/fan/00"): anomalous, domains, scores_a, scores_b, each (N,) as
            in `year_metrics`.
        year: Whose official score.
        num_resamples: How often the clips are drawn again.
        seed: The same seed draws the same clips, in every function of this module.
        confidence: Share of the resamples inside the interval, in (0, 1).
        max_fpr: As in `section_metrics`.

    Raises:
        ValueError: As `year_metrics`, with the machine named, or an argument out of range.
    """
    systems = {name: (values[0], values[1], values[2:]) for name, values in machines.items()}
    estimate, resampled = _score_systems(systems, year, num_resamples, seed, max_fpr)
    ends = interval(resampled[0] - resampled[1], confidence=confidence)
    return BootstrapInterval(float(estimate[0] - estimate[1]), *ends)


def resampled_metrics(
    machine: str,
    anomalous: NDArray[np.bool_],
    domains: NDArray[np.str_],
    anomaly_scores: NDArray[np.float64],
    *,
    decisions: NDArray[np.bool_] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    max_fpr: float = 0.1,
) -> Values:
    """Return every metric of one machine on resampled clips, (num_resamples,) each.

    Args:
        machine: Its name seeds the draws: they do not depend on which other machines are scored.
        anomalous: (N,) ground truth.
        domains: (N,); "" where unknown.
        anomaly_scores: (N,) finite.
        decisions: (N,) 1 = called anomalous; None leaves precision, recall and F1 out.
        num_resamples: How often the clips are drawn again.
        seed: The same seed draws the same clips, in every function of this module.
        max_fpr: As in `section_metrics`.
    """
    parts = [
        weighted_metrics(
            anomalous, anomaly_scores, domains, counts, decisions=decisions, max_fpr=max_fpr
        )
        for counts in _draws(machine, anomalous, domains, num_resamples, seed)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def interval(resampled: NDArray[np.float64], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the ends of the percentile interval of resampled values (R,)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0 and 1, such as 0.95.")
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def weighted_metrics(
    anomalous: NDArray[np.bool_],
    anomaly_scores: NDArray[np.float64],
    domains: NDArray[np.str_],
    counts: NDArray[np.int64],
    *,
    decisions: NDArray[np.bool_] | None = None,
    max_fpr: float = 0.1,
) -> Values:
    """Compute every metric of a machine for many weightings of the clips at once.

    Args:
        anomalous: (N,) ground truth.
        anomaly_scores: (N,), higher is more anomalous; ties count half.
        domains: (N,), "source" or "target"; anything else counts in no domain.
        counts: (R, N) how often each clip occurs in each resample. A domain and condition that
            occurs at all must occur in every resample.
        decisions: (N,) 1 = called anomalous.
        max_fpr: As in `section_metrics`.

    Returns:
        (R,) each, those that are defined: auc_source, auc_target, pauc; auc over all clips;
        within_domain_{auc,pauc}_{source,target}; with decisions {precision,recall,f1}_{source,
        target}, or without a domain in their names where no clip has a domain. An AUC equals
        scikit-learn's with `sample_weight=counts`.
    """
    order = np.argsort(-anomaly_scores, kind="stable")
    ordered = anomaly_scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # one step per distinct score

    def per_score(kept: NDArray[np.bool_]) -> NDArray[np.int64] | None:
        if not kept.any():
            return None
        return np.add.reduceat((counts * kept)[:, order], starts, axis=1)  # (R, N) -> (R, steps)

    anomalies, normals = per_score(anomalous), per_score(~anomalous)
    values: Values = {}
    if anomalies is not None and normals is not None:
        values["auc"] = _roc_area(normals, anomalies)
        values["pauc"] = _standardised(_roc_area(normals, anomalies, max_fpr=max_fpr), max_fpr)
    for domain in _DOMAINS:
        own_normals = per_score(~anomalous & (domains == domain))
        own_anomalies = per_score(anomalous & (domains == domain))
        if own_normals is not None and anomalies is not None:
            values[f"auc_{domain}"] = _roc_area(own_normals, anomalies)
        if own_normals is not None and own_anomalies is not None:
            own = (own_normals, own_anomalies)
            values[f"within_domain_auc_{domain}"] = _roc_area(*own)
            area = _roc_area(*own, max_fpr=max_fpr)
            values[f"within_domain_pauc_{domain}"] = _standardised(area, max_fpr)
    if decisions is not None:
        groups = {f"_{domain}": domains == domain for domain in _DOMAINS}
        if not any(kept.any() for kept in groups.values()):
            groups = {"": np.ones(len(domains), dtype=bool)}
        for suffix, kept in groups.items():
            values |= _quality(anomalous & kept, decisions & kept, counts, suffix)
    return values


def _quality(
    flags: NDArray[np.bool_], called: NDArray[np.bool_], counts: NDArray[np.int64], suffix: str
) -> Values:
    """Return precision, recall and F1 (R,) of decisions; nothing where there is no anomaly."""
    if not flags.any():
        return {}
    hits = (counts @ (flags & called)).astype(np.float64)
    precision = hits / np.maximum(counts @ called, EPSILON)
    recall = hits / (counts @ flags)
    f1 = 2 * precision * recall / np.maximum(precision + recall, EPSILON)
    return {f"precision{suffix}": precision, f"recall{suffix}": recall, f"f1{suffix}": f1}


def _standardised(partial: NDArray[np.float64], max_fpr: float) -> NDArray[np.float64]:
    least, most = 0.5 * max_fpr**2, max_fpr  # McClish: the area at chance, and the perfect one
    return np.asarray(0.5 * (1 + (partial - least) / (most - least)))


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
    year: int,
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
                [
                    year_metrics(year, anomalous, scores, domains, max_fpr=max_fpr)
                    for scores in systems
                ]
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        flags, names = np.asarray(anomalous, dtype=bool), np.asarray(domains, dtype=np.str_)
        parts: list[list[NDArray[np.float64]]] = []
        for counts in _draws(name, flags, names, num_resamples, seed):
            values = [
                weighted_metrics(flags, np.asarray(s, np.float64), names, counts, max_fpr=max_fpr)
                for s in systems
            ]
            parts.append([np.stack([v[k] for k in year_keys(year)], axis=1) for v in values])
        resampled.append(np.concatenate(parts, axis=1))  # (S, R, metrics)
    scores = [official_score(sections, year=year) for sections in zip(*as_they_are, strict=True)]
    return np.asarray(scores), score_mean(np.concatenate(resampled, axis=2), year=year)


def _draws(
    machine: str,
    anomalous: NDArray[np.bool_],
    domains: NDArray[np.str_],
    num_resamples: int,
    seed: int,
) -> Iterator[NDArray[np.int64]]:
    """Yield (batch, N) counts until there are num_resamples of them."""
    # Seeded by its name: a machine's draws do not depend on which others are scored.
    rng = np.random.default_rng([seed, *machine.encode()])
    batch = max(1, _CLIPS_PER_BATCH // len(anomalous))
    for start in range(0, num_resamples, batch):
        yield _draw(anomalous, domains, min(batch, num_resamples - start), rng)


def _draw(
    anomalous: NDArray[np.bool_],
    domains: NDArray[np.str_],
    num_resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return (R, N): how often each clip was drawn within its domain and condition."""
    counts = np.zeros((num_resamples, len(anomalous)), dtype=np.int64)
    for domain in sorted(set(domains.tolist())):
        for condition in (False, True):
            rows = np.flatnonzero((domains == domain) & (anomalous == condition))
            if not len(rows):
                continue
            drawn = rng.integers(len(rows), size=(num_resamples, len(rows)))
            drawn += np.arange(num_resamples)[:, None] * len(rows)  # one range of bins per resample
            bins = np.bincount(drawn.ravel(), minlength=drawn.size)
            counts[:, rows] = bins.reshape(drawn.shape)
    return counts
