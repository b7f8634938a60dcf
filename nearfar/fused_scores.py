"""Score tables and calibration clips of several systems, paired clip by clip for a fusion."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nearfar.fusion import ScoreFusion
from nearfar.schema import DOMAINS
from nearfar.score_table import ScoreTable
from nearfar.weight_search import MemberScores


class Verdict(Protocol):
    """The part of a `Decision` that a score table keeps."""

    @property
    def anomalous(self) -> bool | None:
        """None without calibration."""

    @property
    def p_value(self) -> float | None:
        """None without calibration."""


class PValue(Protocol):
    """A p-value among the calibration clips of one domain."""

    @property
    def p_value(self) -> float:
        """In (0, 1]."""

    @property
    def resolution(self) -> float:
        """The smallest that it could be."""


class Untouched(Protocol):
    """P-values of calibration clips, each by clips that it is not one of."""

    @property
    def p_values(self) -> Any:  # noqa: ANN401 - a Tensor, or what makes an array
        """(N,), NaN for a clip alone."""

    @property
    def num_others(self) -> Any:  # noqa: ANN401 - likewise
        """(N,) by how many clips each was judged."""


class Calibrated(Protocol):
    """A machine's calibration clips and what they say, as `modeling.Calibration`."""

    @property
    def anomaly_scores(self) -> Any:  # noqa: ANN401 - a Tensor, or what makes an array
        """(N,)."""

    @property
    def file_names(self) -> Sequence[str | None]:
        """N base names; None where unknown."""

    @property
    def domains(self) -> Sequence[str | None]:
        """N times "source", "target" or None."""

    @property
    def threshold(self) -> float | None:
        """None without calibration."""

    @property
    def rule(self) -> Mapping[str, Any] | None:
        """How the threshold was found; its "scores" say why the clips are fair."""

    def decide(self, anomaly_score: float) -> Verdict:
        """Return the verdict on one score."""

    def domain_p_values(self, anomaly_score: float) -> Mapping[str, PValue]:
        """Return the p-value of one score in each domain that has calibration clips."""

    def untouched_p_values(self) -> Untouched:
        """Return the p-value of each calibration clip by clips that are not of its part."""


class Verdicts(NamedTuple):
    """What calibrations say of N clips.

    Attributes:
        p_values: (N,), NaN without calibration.
        decisions: (N,) 0 normal, 1 anomalous, None without calibration.
        domain_p_values: (N, 2) in source and target alone, NaN without calibration clips there.
        resolutions: (N, 2), the smallest that each of these could be.
    """

    p_values: NDArray[np.float64]
    decisions: NDArray[np.object_]
    domain_p_values: NDArray[np.float64]
    resolutions: NDArray[np.float64]


class CalibrationClips(NamedTuple):
    """Scores of the normal clips that calibrate one system on one machine.

    Attributes:
        anomaly_scores: (N,).
        file_names: N base names; None where unknown.
        domains: N times "source", "target" or None.
        origin: Why these clips are fair: "held_out", "cross_fitted" or "leave_one_out"; "" where
            there are none.
    """

    anomaly_scores: NDArray[np.float64]
    file_names: list[str | None]
    domains: list[str | None]
    origin: str

    @classmethod
    def of(cls, calibration: Calibrated) -> Self:
        """Return a scorer's calibration clips."""
        return cls(
            np.asarray(calibration.anomaly_scores, dtype=np.float64),
            list(calibration.file_names),
            list(calibration.domains),
            (calibration.rule or {}).get("scores", ""),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `calibration_scores.json` holds of one machine."""
        return cls(
            np.asarray(values["anomaly_scores"], dtype=np.float64),
            list(values["file_names"]),
            list(values["domains"]),
            (values["rule"] or {}).get("scores", ""),
        )


def paired_tables(tables: Mapping[str, ScoreTable]) -> list[ScoreTable]:
    """Return the tables with the rows of all in the first one's order.

    Args:
        tables: Name of each member, for messages -> its scores.

    Raises:
        ValueError: Two tables are not of the same clips, a clip comes twice, or what is known of a
            clip differs between them.
    """
    paired: list[ScoreTable] = []
    first_name, first = next(iter(tables.items()))
    order = _keys(first_name, first)
    for name, table in tables.items():
        keys = _keys(name, table)
        if keys.keys() != order.keys():
            lacking = sorted(order.keys() - keys.keys()) or sorted(keys.keys() - order.keys())
            where = name if order.keys() - keys.keys() else first_name
            raise ValueError(
                f"{first_name} and {name} hold scores of different clips ({len(order)} and "
                f"{len(keys)}): {where} lacks {len(lacking)} of them, such as "
                f"{'/'.join(lacking[0])}. Score both on the same data_dir."
            )
        table = table.take(np.array([keys[key] for key in order], dtype=np.int64))
        for column in ("domains", "conditions"):
            told = zip(getattr(first, column), getattr(table, column), strict=True)
            for row, values in enumerate(told):
                if None not in values and values[0] != values[1]:
                    raise ValueError(
                        f"{first.machines[row]}/{first.file_names[row]} is {values[0]} in "
                        f"{first_name} and {values[1]} in {name}. Score both on the same data_dir."
                    )
        paired.append(table)
    return paired


def verdicts(
    machines: NDArray[np.object_],
    anomaly_scores: NDArray[np.float64],
    calibrations: Mapping[str, Calibrated],
) -> Verdicts:
    """Return what the calibrations of their machines say of clips (N,)."""
    p_values = np.full(len(machines), np.nan)
    decisions = np.full(len(machines), None, dtype=object)
    by_domain = np.full((2, len(machines), len(DOMAINS)), np.nan)
    for row, (machine, score) in enumerate(zip(machines, anomaly_scores.tolist(), strict=True)):
        decision = calibrations[machine].decide(score)
        if decision.p_value is not None:
            p_values[row], decisions[row] = decision.p_value, int(bool(decision.anomalous))
        for domain, told in calibrations[machine].domain_p_values(score).items():
            by_domain[:, row, DOMAINS.index(domain)] = told.p_value, told.resolution
    return Verdicts(p_values, decisions, *by_domain)


def fused_scores(fusion: ScoreFusion, tables: Sequence[ScoreTable]) -> NDArray[np.float64]:
    """Return the fused score (N,) of every row of paired tables."""
    fused = np.empty(len(tables[0]))
    for machine in tables[0].machine_names:
        rows = tables[0].machines == machine
        fused[rows] = fusion.transform([table.anomaly_scores[rows] for table in tables], machine)
    return fused


def fused_table(
    fusion: ScoreFusion, tables: Sequence[ScoreTable], calibrations: Mapping[str, Calibrated]
) -> ScoreTable:
    """Return the fused scores of paired tables, with their verdicts."""
    scores = fused_scores(fusion, tables)
    verdict = verdicts(tables[0].machines, scores, calibrations)
    return ScoreTable.of_clips(tables[0], scores, *verdict)


def fused_calibration(
    fusion: ScoreFusion, members: Sequence[CalibrationClips], machine: str
) -> CalibrationClips:
    """Return the fused scores of the calibration clips that all members share; there may be none.

    A clip that only some members held out is in the bank, or the training, of another.
    """
    rows = _common_rows([member.file_names for member in members])
    if not len(rows[0]):
        return CalibrationClips(np.empty(0), [], [], "")
    scores = [member.anomaly_scores[row] for member, row in zip(members, rows, strict=True)]
    origins = sorted({member.origin for member in members})
    return CalibrationClips(
        fusion.transform(scores, machine),
        [members[0].file_names[row] for row in rows[0]],
        [members[0].domains[row] for row in rows[0]],
        " and ".join(origins),
    )


def search_input(fusion: ScoreFusion, tables: Sequence[ScoreTable]) -> dict[str, MemberScores]:
    """Return what a weight search needs: normalised scores of the clips of known condition."""
    machines = {}
    labelled = np.array([condition is not None for condition in tables[0].conditions], dtype=bool)
    for machine in tables[0].machine_names:
        rows = (tables[0].machines == machine) & labelled
        machines[machine] = MemberScores(
            tables[0].conditions[rows] == "anomaly",
            tables[0].domains[rows],
            fusion.normalized([table.anomaly_scores[rows] for table in tables], machine),
        )
    return machines


def _keys(name: str, table: ScoreTable) -> dict[tuple[str, str], int]:
    """Return (machine, file name) -> row."""
    keys: dict[tuple[str, str], int] = {}
    for row, key in enumerate(zip(table.machines, table.file_names, strict=True)):
        if key in keys:
            raise ValueError(f"{name} has {'/'.join(key)} more than once. Score the clips again.")
        keys[key] = row
    return keys


def _common_rows(members: Sequence[Sequence[str | None]]) -> list[NDArray[np.int64]]:
    """Return for each member the rows of the clips that all have, in one order.

    A name that is None (unknown) pairs with nothing.
    """
    rows = [{name: row for row, name in enumerate(names)} for names in members]
    shared = set.intersection(*(set(names) for names in members))
    order = sorted(name for name in shared if name is not None)
    return [np.array([row_of[name] for name in order], dtype=np.int64) for row_of in rows]
