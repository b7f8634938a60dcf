"""The official metric of DCASE Task 2 (2022 to 2026): AUC per domain, partial AUC, their mean.

`evaluate.load` loads this file from its folder too, so it imports numpy, scipy and scikit-learn and
nothing of nearfar.
"""

import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

EPSILON = sys.float_info.epsilon  # the evaluator's floor under a ratio's bottom and in a mean
_DOMAINS = ("source", "target")  # nearfar.schema.DOMAINS, which this file may not import


class SectionMetrics(NamedTuple):
    """Metrics of one machine (year, machine type, section), each in 0..1."""

    auc_source: float
    auc_target: float
    pauc: float


class OverallMetrics(NamedTuple):
    """Metrics of one machine whose domains are unknown or do not exist (2020), each in 0..1."""

    auc: float
    pauc: float


class DomainDecisions(NamedTuple):
    """How good the 0/1 decisions are within one domain, each in 0..1."""

    precision: float
    recall: float
    f1: float


class DecisionMetrics(NamedTuple):
    """How good the 0/1 decisions on one machine are, per domain."""

    source: DomainDecisions
    target: DomainDecisions


def section_metrics(
    anomalous: ArrayLike,
    anomaly_scores: ArrayLike,
    domains: ArrayLike,
    *,
    max_fpr: float = 0.1,
) -> SectionMetrics:
    """Compute the official metrics of one section.

    As in the official evaluator, a domain's AUC compares *its* normal clips with the anomalies of
    *both* domains; the pAUC is over all clips and standardised (McClish, 1989), so that it is 0.5
    at chance and 0.4737 at worst for `max_fpr=0.1`.

    Args:
        anomalous: (N,) ground truth, bool or 0/1.
        anomaly_scores: (N,) finite, higher is more anomalous.
        domains: (N,), "source" or "target".
        max_fpr: Upper bound of the false-positive rate in the pAUC, in (0, 1].

    Raises:
        ValueError: The three do not fit together, a score is not finite, a domain is unknown, or a
            metric is undefined because a domain has no normal clip or there is no anomaly.
    """
    flags = _flags(anomalous, "anomalous")
    scores = _scores(anomaly_scores, len(flags))
    names = _known_domains(domains, len(flags))
    _require_defined(flags, names)
    source, target = (
        float(roc_auc_score(flags[kept], scores[kept]))
        for kept in (flags | (names == domain) for domain in _DOMAINS)
    )
    pauc = float(roc_auc_score(flags, scores, max_fpr=max_fpr))
    return SectionMetrics(auc_source=source, auc_target=target, pauc=pauc)


def overall_metrics(
    anomalous: ArrayLike, anomaly_scores: ArrayLike, *, max_fpr: float = 0.1
) -> OverallMetrics:
    """Compute AUC and pAUC over all clips, for data without known domains.

    Args:
        anomalous: (N,) ground truth, bool or 0/1.
        anomaly_scores: (N,) finite, higher is more anomalous.
        max_fpr: Upper bound of the false-positive rate in the pAUC, in (0, 1].

    Raises:
        ValueError: The two do not fit together, a score is not finite, or one condition is missing.
    """
    flags = _flags(anomalous, "anomalous")
    scores = _scores(anomaly_scores, len(flags))
    _require_defined(flags, None)
    auc = float(roc_auc_score(flags, scores))
    return OverallMetrics(auc=auc, pauc=float(roc_auc_score(flags, scores, max_fpr=max_fpr)))


def decision_metrics(
    anomalous: ArrayLike, decisions: ArrayLike, domains: ArrayLike
) -> DecisionMetrics:
    """Compute precision, recall and F1 of 0/1 decisions, each *within* one domain.

    Unlike the AUC, a domain's values see no clip of the other domain. Precision is 0 where nothing
    was called anomalous, as in the official evaluator.

    Args:
        anomalous: (N,) ground truth, bool or 0/1.
        decisions: (N,) bool or 0/1, 1 = called anomalous.
        domains: (N,), "source" or "target".

    Raises:
        ValueError: The three do not fit together, a domain is unknown, or a domain has no anomaly,
            which leaves its recall undefined.
    """
    flags = _flags(anomalous, "anomalous")
    called = _flags(decisions, "decisions")
    if len(called) != len(flags):
        raise ValueError(f"{len(called)} decisions came for {len(flags)} clips; give one per clip.")
    names = _known_domains(domains, len(flags))

    def within(domain: str) -> DomainDecisions:
        kept = names == domain
        hits = float(np.sum(called & flags & kept))
        anomalies = float(np.sum(flags & kept))
        if not anomalies:
            raise ValueError(
                f"Recall in the {domain} domain is undefined: it has no anomalous clip."
            )
        precision = hits / max(float(np.sum(called & kept)), EPSILON)
        recall = hits / anomalies
        f1 = 2 * precision * recall / max(precision + recall, EPSILON)
        return DomainDecisions(precision=precision, recall=recall, f1=f1)

    return DecisionMetrics(source=within("source"), target=within("target"))


def official_score(sections: ArrayLike) -> float:
    """Return Omega: the harmonic mean over every metric of every section.

    Args:
        sections: A sequence of `SectionMetrics`, or any (sections, 3) values in 0..1.

    Raises:
        ValueError: There is no section, or a value lies outside 0..1.
    """
    values = np.asarray(sections, dtype=np.float64)
    if values.size == 0:
        raise ValueError("The official score of no section is undefined; give at least one.")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"Section metrics lie in 0..1, but these span {values.min()} to {values.max()}. "
            "Divide percentages by 100."
        )
    return float(harmonic_mean(values.ravel()))


def harmonic_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Return the harmonic mean over the last axis; 0 counts as float epsilon, as officially."""
    floored = np.maximum(np.asarray(values, dtype=np.float64), EPSILON)
    return np.asarray(hmean(floored, axis=-1), dtype=np.float64)


def _flags(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    """Return (N,) bool, or raise: an unlabelled clip (None, -1) is not a normal one."""
    flags = np.asarray(values)
    if flags.ndim != 1:
        raise ValueError(f"{name} has shape {flags.shape}; expected one value per clip, (N,).")
    if flags.dtype != np.bool_:
        odd = sum(value not in (0, 1) for value in flags.tolist())
        if odd:
            raise ValueError(
                f"{odd} of {len(flags)} values of {name} are neither 0 nor 1. "
                "Leave out clips whose condition is unknown."
            )
    return flags.astype(np.bool_)


def _scores(values: ArrayLike, num_clips: int) -> NDArray[np.float64]:
    """Return (N,) finite float64, or raise."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.shape != (num_clips,):
        raise ValueError(
            f"anomaly_scores has shape {scores.shape}; expected ({num_clips},), one score per clip."
        )
    bad = int(np.sum(~np.isfinite(scores)))
    if bad:
        raise ValueError(f"{bad} of {num_clips} anomaly scores are NaN or infinite.")
    return scores


def _known_domains(values: ArrayLike, num_clips: int) -> NDArray[np.str_]:
    """Return (N,) domain names, or raise where one is unknown."""
    domains = np.asarray(values)
    if domains.shape != (num_clips,):
        raise ValueError(
            f"domains has shape {domains.shape}; expected ({num_clips},), one domain per clip."
        )
    unknown = [domain for domain in domains.tolist() if domain not in _DOMAINS]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {num_clips} domains are neither 'source' nor 'target' (the first "
            f"is {unknown[0]!r}). Where domains are unknown, use overall_metrics."
        )
    return domains.astype(np.str_)


def _require_defined(flags: NDArray[np.bool_], domains: NDArray[np.str_] | None) -> None:
    """Raise ValueError with everything that is missing for an AUC."""
    missing = [] if flags.any() else ["an anomalous clip"]
    if domains is None:
        missing += [] if (~flags).any() else ["a normal clip"]
    else:
        missing += [
            f"a normal clip of the {domain} domain"
            for domain in _DOMAINS
            if not (~flags & (domains == domain)).any()
        ]
    if missing:
        raise ValueError(
            f"The AUC is undefined among these {len(flags)} clips: it needs "
            f"{' and '.join(missing)}."
        )
