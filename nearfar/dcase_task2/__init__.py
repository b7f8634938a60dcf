"""DCASE Task 2's metric: plain functions, and an `evaluate` module of the same name around them."""

from .metrics import SectionMetrics, official_score, section_metrics

__all__ = ["SectionMetrics", "official_score", "section_metrics"]
