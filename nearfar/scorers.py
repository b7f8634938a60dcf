"""What every kind of run folder is once it is loaded: a scorer of clips; and the fusion of some."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator

from nearfar.fused_scores import (
    Calibrated,
    CalibrationClips,
    fused_calibration,
    fused_table,
    paired_tables,
)
from nearfar.fusion import ScoreFusion
from nearfar.score_table import ScoreTable

Calibrate = Callable[[CalibrationClips], Calibrated]


class Scorer(Protocol):
    """A system that scores clips: a run folder of any kind, loaded."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """All arguments that made the run, with its `year`."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The run's own `metrics.json`."""

    @property
    def machines(self) -> Sequence[str]:
        """Full names of the machines that the system knows, sorted."""

    def check_machines(self, machines: Iterable[str]) -> None:
        """Raise KeyError naming the first machine that the system does not know."""

    def calibration(self, machine: str) -> Calibrated:
        """Return a machine's calibration clips, their scores and its threshold."""

    def score(
        self,
        clips: Sequence[dict[str, Any]],
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ScoreTable:
        """Score decoded clips; `options` go to `extract_embeddings`."""


@dataclass
class FusionScorer:
    """A run of kind "fusion".

    Attributes:
        members: Its systems, in the order of the weights.
        fusion: Its weights and normalisation.
        calibrate: Makes thresholds and p-values of fused calibration scores.
        own_metrics: The run's own `metrics.json`; empty where it has none.
    """

    members: Sequence[Scorer]
    fusion: ScoreFusion
    calibrate: Calibrate
    own_metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The first member's."""
        return self.members[0].recipe

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Its own, and whether all members are frozen."""
        frozen = all(member.metrics.get("frozen_encoder") for member in self.members)
        return dict(self.own_metrics) | {"frozen_encoder": frozen}

    @property
    def machines(self) -> Sequence[str]:
        """Those that all members know."""
        return sorted(set.intersection(*(set(member.machines) for member in self.members)))

    def check_machines(self, machines: Iterable[str]) -> None:
        """Raise KeyError naming the first machine that a member does not know."""
        names = sorted(set(machines))
        for member in self.members:
            member.check_machines(names)

    def calibration(self, machine: str) -> Calibrated:
        """Return the calibration clips that all members share, with their fused scores."""
        clips = [CalibrationClips.of(member.calibration(machine)) for member in self.members]
        return self.calibrate(fused_calibration(self._fitted([machine]), clips, machine))

    def score(
        self,
        clips: Sequence[dict[str, Any]],
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ScoreTable:
        """Score decoded clips by every member, and fuse; `options` go to them."""
        tables = [member.score(clips, accelerator, **options) for member in self.members]
        named = {f"member {number}": table for number, table in enumerate(tables, start=1)}
        machines = tables[0].machine_names
        calibrations = {machine: self.calibration(machine) for machine in machines}
        return fused_table(self._fitted(machines), paired_tables(named), calibrations)

    def _fitted(self, machines: Iterable[str]) -> ScoreFusion:
        scores = {
            machine: [np.asarray(m.calibration(machine).anomaly_scores) for m in self.members]
            for machine in machines
        }
        return self.fusion.fit(scores)
