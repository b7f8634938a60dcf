"""The metrics of DCASE Task 2 and their bootstrap intervals, under one name."""

from .dcase_task2.bootstrap import BootstrapInterval, bootstrap_difference, bootstrap_interval
from .dcase_task2.metrics import (
    DecisionMetrics,
    DomainDecisions,
    OverallMetrics,
    SectionMetrics,
    WithinDomainMetrics,
    decision_metrics,
    harmonic_mean,
    official_score,
    overall_decisions,
    overall_metrics,
    section_metrics,
    within_domain_metrics,
    year_metrics,
)

__all__ = [
    "BootstrapInterval",
    "DecisionMetrics",
    "DomainDecisions",
    "OverallMetrics",
    "SectionMetrics",
    "WithinDomainMetrics",
    "bootstrap_difference",
    "bootstrap_interval",
    "decision_metrics",
    "harmonic_mean",
    "official_score",
    "overall_decisions",
    "overall_metrics",
    "section_metrics",
    "within_domain_metrics",
    "year_metrics",
]
