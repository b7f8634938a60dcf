"""The official metrics of DCASE Task 2, 2020 to 2026, and the score that each year makes of them.

2020: the arithmetic mean of AUC and pAUC, which know no domains. 2021: the harmonic mean of AUC and
pAUC, both within each domain. Since 2022: the harmonic mean of each domain's AUC against the
anomalies of both, and of the pAUC over all clips.

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
YEARS = range(2020, 2027)
_DOMAINS = ("source", "target")  # nearfar.schema.DOMAINS, which this file may not import


class SectionMetrics(NamedTuple):
    """Metrics of one machine (year, machine type, section) since 2022, each in 0..1."""

    auc_source: float
    auc_target: float
    pauc: float


class WithinDomainMetrics(NamedTuple):
    """Metrics of one machine in 2021, each in 0..1: no clip of the other domain counts."""

    auc_source: float
    auc_target: float
    pauc_source: float
    pauc_target: float


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


def within_domain_metrics(
    anomalous: ArrayLike, anomaly_scores: ArrayLike, domains: ArrayLike, *, max_fpr: float = 0.1
) -> WithinDomainMetrics:
    """Compute AUC and pAUC of each domain from its own clips only.

    The official metrics of 2021. For other years they are a diagnostic, which some papers report:
    never to be compared with the official values of `section_metrics`.

    Args:
        anomalous: (N,) ground truth, bool or 0/1.
        anomaly_scores: (N,) finite, higher is more anomalous.
        domains: (N,), "source" or "target".
        max_fpr: Upper bound of the false-positive rate in the pAUC, in (0, 1].

    Raises:
        ValueError: As `section_metrics`, or a domain lacks normal or anomalous clips.
    """
    flags = _flags(anomalous, "anomalous")
    scores = _scores(anomaly_scores, len(flags))
    names = _known_domains(domains, len(flags))
    within = []
    for domain in _DOMAINS:
        kept = names == domain
        try:
            within.append(overall_metrics(flags[kept], scores[kept], max_fpr=max_fpr))
        except ValueError as error:
            raise ValueError(f"In the {domain} domain: {error}") from error
    source, target = within
    return WithinDomainMetrics(source.auc, target.auc, source.pauc, target.pauc)


def year_metrics(
    year: int,
    anomalous: ArrayLike,
    anomaly_scores: ArrayLike,
    domains: ArrayLike,
    *,
    max_fpr: float = 0.1,
) -> OverallMetrics | WithinDomainMetrics | SectionMetrics:
    """Compute the metrics of one section that make the official score of a year.

    Args:
        year: 2020 to 2026.
        anomalous: (N,) ground truth, bool or 0/1.
        anomaly_scores: (N,) finite, higher is more anomalous.
        domains: (N,), "source" or "target"; not read for 2020.
        max_fpr: Upper bound of the false-positive rate in the pAUC, in (0, 1].

    Raises:
        ValueError: As the function of that year, or there is no definition for the year.
    """
    check_year(year)
    if year == 2020:
        return overall_metrics(anomalous, anomaly_scores, max_fpr=max_fpr)
    of_year = within_domain_metrics if year == 2021 else section_metrics
    return of_year(anomalous, anomaly_scores, domains, max_fpr=max_fpr)


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
    called = _called(decisions, len(flags))
    names = _known_domains(domains, len(flags))
    source, target = (
        _quality(flags[names == domain], called[names == domain], f"the {domain} domain")
        for domain in _DOMAINS
    )
    return DecisionMetrics(source=source, target=target)


def overall_decisions(anomalous: ArrayLike, decisions: ArrayLike) -> DomainDecisions:
    """Compute precision, recall and F1 over all clips, for data without known domains.

    Args:
        anomalous: (N,) ground truth, bool or 0/1.
        decisions: (N,) bool or 0/1, 1 = called anomalous.

    Raises:
        ValueError: The two do not fit together, or there is no anomaly.
    """
    flags = _flags(anomalous, "anomalous")
    return _quality(flags, _called(decisions, len(flags)), "this machine")


def official_score(sections: ArrayLike, *, year: int = 2026) -> float:
    """Return the official score of a year: one mean over every metric of every section.

    Args:
        sections: What `year_metrics` returned for each section, or any such values in 0..1:
            (sections, 3), in 2020 (sections, 2), in 2021 (sections, 4).
        year: Whose definition counts: the arithmetic mean in 2020, the harmonic one since.

    Raises:
        ValueError: There is no section, a value lies outside 0..1, or the sections' metrics are
            not those of the year.
    """
    check_year(year)
    values = np.asarray(sections, dtype=np.float64)
    if values.size == 0:
        raise ValueError("The official score of no section is undefined; give at least one.")
    width = {2020: 2, 2021: 4}.get(year, 3)
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(
            f"The official score of {year} takes {width} metrics of each section, got an array "
            f"of shape {values.shape}. Compute them with year_metrics."
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"Section metrics lie in 0..1, but these span {values.min()} to {values.max()}. "
            "Divide percentages by 100."
        )
    return float(score_mean(values.ravel(), year=year))


def score_mean(values: ArrayLike, *, year: int) -> NDArray[np.float64]:
    """Return the mean over the last axis that makes the official score of a year."""
    if year == 2020:
        return np.asarray(np.asarray(values, dtype=np.float64).mean(axis=-1))
    return harmonic_mean(values)


def harmonic_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Return the harmonic mean over the last axis; 0 counts as float epsilon, as officially."""
    floored = np.maximum(np.asarray(values, dtype=np.float64), EPSILON)
    return np.asarray(hmean(floored, axis=-1), dtype=np.float64)


def check_year(year: int) -> None:
    """Raise ValueError unless the challenge of that year defined a score."""
    if year not in YEARS:
        raise ValueError(
            f"year={year!r} has no official score. Choose from {', '.join(map(str, YEARS))}."
        )


def _called(decisions: ArrayLike, num_clips: int) -> NDArray[np.bool_]:
    called = _flags(decisions, "decisions")
    if len(called) != num_clips:
        raise ValueError(f"{len(called)} decisions came for {num_clips} clips; give one per clip.")
    return called


def _quality(flags: NDArray[np.bool_], called: NDArray[np.bool_], where: str) -> DomainDecisions:
    hits, anomalies = float(np.sum(called & flags)), float(np.sum(flags))
    if not anomalies:
        raise ValueError(f"Recall in {where} is undefined: it has no anomalous clip.")
    precision = hits / max(float(np.sum(called)), EPSILON)
    recall = hits / anomalies
    f1 = 2 * precision * recall / max(precision + recall, EPSILON)
    return DomainDecisions(precision=precision, recall=recall, f1=f1)


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
