"""`evaluate` module: DCASE Task 2's metrics per machine, and the official score over all.

Load it by path, `evaluate.load("nearfar/dcase_task2")`; it needs no network. The arithmetic, and
the definition of each value, is in metrics.py beside it.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .metrics import decision_metrics, official_score, overall_decisions, year_metrics

_DESCRIPTION = "AUC and pAUC per machine as each year defines them, and the official score."
_INPUTS = """
Args:
    predictions: anomaly scores, higher is more anomalous.
    references: 0 normal, 1 anomalous.
    domains: "source" or "target"; "" in 2020, which has none.
    machines: the clip's machine, such as "2026/fan/00".
    year: whose definition counts, 2020 to 2026; 2026 unless told.
    decisions: 0 or 1 for each prediction, in the same order; adds precision, recall and F1.
    max_fpr: upper bound of the false-positive rate in the pAUC, 0.1 unless told.
Returns:
    official_score: in 0..1.
    machines: {machine: {auc_source, auc_target, pauc}}, each in 0..1; in 2020 {auc, pauc}, in 2021
        {auc_source, auc_target, pauc_source, pauc_target}. With decisions also "decisions":
        {source: {precision, recall, f1}, target: ...}, in 2020 {precision, recall, f1}.
"""


class DcaseTask2(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """The metrics of every machine, and the official score of a year."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "predictions": datasets.Value("float64"),
            "references": datasets.Value("int64"),
            "domains": datasets.Value("string"),
            "machines": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
        )

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[int],
        domains: Sequence[str],
        machines: Sequence[str],
        year: int = 2026,
        decisions: Sequence[int] | None = None,
        max_fpr: float = 0.1,
    ) -> dict[str, Any]:
        anomaly_scores, anomalous = np.asarray(predictions), np.asarray(references)
        domain_names, machine_names = np.asarray(domains), np.asarray(machines)
        called = None if decisions is None else np.asarray(decisions)
        if called is not None and called.shape != anomalous.shape:
            raise ValueError(
                f"decisions has shape {called.shape}; expected {anomalous.shape}, one decision "
                "per prediction, in the same order."
            )
        sections, values = [], {}
        for machine in sorted(set(machine_names.tolist())):
            rows = machine_names == machine
            flags, names = anomalous[rows], domain_names[rows]
            section = year_metrics(year, flags, anomaly_scores[rows], names, max_fpr=max_fpr)
            sections.append(section)
            values[machine] = section._asdict()
            if called is not None:
                values[machine]["decisions"] = _quality(year, flags, called[rows], names)
        return {"official_score": official_score(sections, year=year), "machines": values}


def _quality(year: int, flags: Any, called: Any, domains: Any) -> dict[str, Any]:  # noqa: ANN401
    if year == 2020:
        return overall_decisions(flags, called)._asdict()
    by_domain = decision_metrics(flags, called, domains)
    return {domain: quality._asdict() for domain, quality in by_domain._asdict().items()}
