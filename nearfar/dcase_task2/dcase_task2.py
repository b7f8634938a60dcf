"""`evaluate` module: DCASE Task 2's metric per machine, and the official score over all.

Load it by path, `evaluate.load("nearfar/dcase_task2")`; it needs no network. The arithmetic, and
the definition of each value, is in metrics.py beside it.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .metrics import official_score, section_metrics

_DESCRIPTION = "AUC (source, target) and pAUC per machine, and the harmonic mean over all of them."
_INPUTS = """
Args:
    predictions: anomaly scores, higher is more anomalous.
    references: 0 normal, 1 anomalous.
    domains: "source" or "target".
    machines: the clip's machine, such as "2026/fan/00".
    max_fpr: upper bound of the false-positive rate in the pAUC, 0.1 unless told.
Returns:
    official_score: in 0..1.
    machines: {machine: {auc_source, auc_target, pauc}}, each in 0..1.
"""


class DcaseTask2(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """Source AUC, target AUC and pAUC per machine, and the official score."""

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
        max_fpr: float = 0.1,
    ) -> dict[str, Any]:
        anomaly_scores, anomalous = np.asarray(predictions), np.asarray(references)
        domain_names, machine_names = np.asarray(domains), np.asarray(machines)
        sections = {}
        for machine in sorted(set(machine_names.tolist())):
            rows = machine_names == machine
            sections[machine] = section_metrics(
                anomalous[rows], anomaly_scores[rows], domain_names[rows], max_fpr=max_fpr
            )
        return {
            "official_score": official_score(list(sections.values())),
            "machines": {machine: values._asdict() for machine, values in sections.items()},
        }
