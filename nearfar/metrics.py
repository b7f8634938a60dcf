"""The metrics of DCASE Task 2 and their bootstrap intervals, under one name."""

from .dcase_task2.bootstrap import BootstrapInterval, bootstrap_difference, bootstrap_interval
from .dcase_task2.metrics import (
    DecisionMetrics,
    DomainDecisions,
    OverallMetrics,
    SectionMetrics,
    decision_metrics,
    harmonic_mean,
    official_score,
    overall_metrics,
    section_metrics,
)

__all__ = [
    "BootstrapInterval",
    "DecisionMetrics",
    "DomainDecisions",
    "OverallMetrics",
    "SectionMetrics",
    "bootstrap_difference",
    "bootstrap_interval",
    "decision_metrics",
    "harmonic_mean",
    "official_score",
    "overall_metrics",
    "section_metrics",
]
