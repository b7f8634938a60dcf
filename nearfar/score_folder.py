"""Scores with all that a score folder keeps beside them, and the folder, whole and checked."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nearfar.evaluation import METRICS_FILE, ScoreTable, write_score_folder
from nearfar.files import whole_folder
from nearfar.fused_scores import Calibrated
from nearfar.fusion import ScoreFusion
from nearfar.fusion_run import FUSION_FILE, write_fusion
from nearfar.submission import check_scores

logger = logging.getLogger(__name__)


class Scored(NamedTuple):
    """Scores of test clips, with what a score folder keeps beside them.

    Attributes:
        table: The scores.
        calibrations: Of each machine.
        provenance: For `metrics.json`.
        fusion: Of a fused folder: its members' names, the fusion, how its weights were found.
    """

    table: ScoreTable
    calibrations: Mapping[str, Calibrated]
    provenance: dict[str, Any]
    fusion: tuple[list[str], ScoreFusion, dict[str, Any] | None] | None = None


def write_scores(folder: Path, scored: Scored, metrics: Mapping[str, Any]) -> None:
    """Write the score folder whole, and check it as a submission."""
    table, calibrations = scored.table, scored.calibrations
    thresholds = {name: calibrations[name].threshold for name in table.machine_names}
    if without := [name for name, threshold in thresholds.items() if threshold is None]:
        logger.warning("No decisions for %s: no calibration clips, so no threshold.", without)
    with whole_folder(folder, last=METRICS_FILE) as partial:
        write_score_folder(
            partial,
            table,
            metrics,
            calibration_scores={
                name: {
                    "file_names": list(calibration.file_names),
                    "domains": list(calibration.domains),
                    "anomaly_scores": calibration.anomaly_scores.tolist(),
                    "rule": calibration.rule,
                }
                for name, calibration in calibrations.items()
            },
            thresholds=thresholds,
        )
        if scored.fusion is not None:
            names, fusion, search = scored.fusion
            write_fusion(partial, names, fusion, search=search)
        complete = [name for name in table.machine_names if name not in without]
        check_scores(partial, expected_clips(table, complete))
    if scored.fusion is None:  # of the fusion that was here before
        (folder / FUSION_FILE).unlink(missing_ok=True)


def expected_clips(table: ScoreTable, machines: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """Return (machine type, section) -> names of the clips that the challenge CSVs must list."""
    expected = {}
    for machine in machines:
        _, machine_type, section = machine.split("/")
        expected[machine_type, int(section)] = table.select(machine).file_names.tolist()
    return expected
