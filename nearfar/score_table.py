"""Scores of test clips in one table, and the CSV file that keeps it."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nearfar.clip_table import ClipTable
from nearfar.schema import CONDITIONS, DOMAINS, GroundTruth

_FIRST_COLUMNS = (
    *("machine", "file_name", "domain", "condition"),
    *("anomaly_score", "p_value", "decision"),
)
_DOMAIN_COLUMNS = tuple(
    f"{name}_{domain}" for domain in DOMAINS for name in ("p_value", "resolution")
)
COLUMNS = (*_FIRST_COLUMNS, *_DOMAIN_COLUMNS)


@dataclass(frozen=True, eq=False)
class ScoreTable(ClipTable):
    """Scores of test clips; row i of every column is clip i.

    Attributes:
        machines: (N,) full names.
        file_names: (N,) unique within a machine.
        domains: (N,) "source", "target" or None.
        conditions: (N,) "normal", "anomaly" or None.
        anomaly_scores: (N,) float64, higher is more anomalous.
        p_values: (N,) float64, NaN where the machine has no calibration clips.
        decisions: (N,) 0 normal, 1 anomalous, None where the machine has no threshold.
        domain_p_values: (N, 2) float64, among the calibration clips of source and of target alone;
            NaN where there are none, and by default. For readers: no verdict comes from them.
        resolutions: (N, 2) float64, the smallest that each of these could be, 1 / (clips + 1).
    """

    machines: NDArray[np.object_]
    file_names: NDArray[np.object_]
    domains: NDArray[np.object_]
    conditions: NDArray[np.object_]
    anomaly_scores: NDArray[np.float64]
    p_values: NDArray[np.float64]
    decisions: NDArray[np.object_]
    domain_p_values: NDArray[np.float64] = None  # type: ignore[assignment]  # filled below
    resolutions: NDArray[np.float64] = None  # type: ignore[assignment]  # filled below

    def __post_init__(self) -> None:
        for name in ("domain_p_values", "resolutions"):
            if getattr(self, name) is None:
                unknown = np.full((len(self.machines), len(DOMAINS)), np.nan)
                object.__setattr__(self, name, unknown)
        if len({len(column) for column in vars(self).values()}) != 1:
            lengths = {name: len(column) for name, column in vars(self).items()}
            raise ValueError(f"Every column must describe the same clips, got {lengths}.")
        if not np.isfinite(self.anomaly_scores).all():
            row = int(np.flatnonzero(~np.isfinite(self.anomaly_scores))[0])
            raise ValueError(
                f"{self.machines[row]}/{self.file_names[row]} has the score "
                f"{self.anomaly_scores[row]}; a score must be finite."
            )

    @classmethod
    def of_clips(
        cls,
        clips: ClipTable,
        anomaly_scores: NDArray[np.float64],
        p_values: NDArray[np.float64] | None = None,
        decisions: NDArray[np.object_] | None = None,
        domain_p_values: NDArray[np.float64] | None = None,
        resolutions: NDArray[np.float64] | None = None,
    ) -> Self:
        """Join the clips of another table and their scores; without verdicts they are unknown."""
        by_domain = {
            name: values
            for name, values in (("domain_p_values", domain_p_values), ("resolutions", resolutions))
            if values is not None
        }
        return cls(
            machines=clips.machines,
            file_names=clips.file_names,
            domains=clips.domains,
            conditions=clips.conditions,
            anomaly_scores=anomaly_scores,
            p_values=np.full(len(clips), np.nan) if p_values is None else p_values,
            decisions=np.full(len(clips), None, dtype=object) if decisions is None else decisions,
            **by_domain,
        )

    def select(self, machine: str) -> Self:
        """Return the clips of one machine, by its full name."""
        return self.take(self.machines == machine)

    def with_ground_truth(self, truth: Mapping[str, Mapping[str, GroundTruth]]) -> Self:
        """Return the table with the conditions and domains of an evaluation set.

        Args:
            truth: Machine -> file name -> what is known; it must tell all clips of the table.

        Raises:
            ValueError: A clip is missing, or what its name says is told otherwise.
        """
        domains, conditions = self.domains.copy(), self.conditions.copy()
        for row, (machine, name) in enumerate(zip(self.machines, self.file_names, strict=True)):
            told = truth.get(machine, {}).get(name)
            if told is None:
                raise ValueError(
                    f"{machine}/{name} was scored, but the ground truth does not tell it. It has "
                    f"{len(truth.get(machine, {}))} clips of that machine: check year and folder."
                )
            known = (conditions[row] or told.condition, domains[row] or told.domain)
            if known != (told.condition, told.domain or domains[row]):
                raise ValueError(
                    f"{machine}/{name} is {known[1]}, {known[0]} by its name, but {told.domain}, "
                    f"{told.condition} in the ground truth. Check that both are of one data set."
                )
            conditions[row], domains[row] = known
        return replace(self, domains=domains, conditions=conditions)

    def write_csv(self, path: Path) -> None:
        """Write all columns, "" where unknown; `read_csv` is the inverse."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for i in range(len(self)):
                pairs = zip(self.domain_p_values[i], self.resolutions[i], strict=True)
                writer.writerow(
                    [
                        self.machines[i],
                        self.file_names[i],
                        self.domains[i] or "",
                        self.conditions[i] or "",
                        repr(float(self.anomaly_scores[i])),
                        _number(self.p_values[i]),
                        "" if self.decisions[i] is None else int(self.decisions[i]),
                        *(_number(value) for pair in pairs for value in pair),
                    ]
                )

    @classmethod
    def read_csv(cls, path: Path) -> Self:
        """Read what `write_csv` wrote, also before it had p-values by domain.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It is not a table of scores.
        """
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}. Make it with score.py --output_dir.")
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) not in (COLUMNS, _FIRST_COLUMNS):
                raise ValueError(
                    f"{path} must have the columns {COLUMNS}, got {reader.fieldnames}."
                )
            rows = list(reader)
        _check_rows(path, rows)

        def column(name: str) -> NDArray[np.object_]:
            array = np.empty(len(rows), dtype=object)
            array[:] = [row.get(name) or None for row in rows]
            return array

        def of_domains(name: str) -> NDArray[np.float64]:
            columns = [column(f"{name}_{domain}").astype(np.float64) for domain in DOMAINS]
            return np.stack(columns, axis=1)

        decisions = column("decision")
        try:
            decisions[:] = [None if word is None else int(word) for word in decisions]
            return cls(
                machines=column("machine"),
                file_names=column("file_name"),
                domains=column("domain"),
                conditions=column("condition"),
                anomaly_scores=column("anomaly_score").astype(np.float64),
                p_values=column("p_value").astype(np.float64),
                decisions=decisions,
                domain_p_values=of_domains("p_value"),
                resolutions=of_domains("resolution"),
            )
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error} Make it anew.") from error


def _check_rows(path: Path, rows: Sequence[Mapping[str, str | None]]) -> None:
    """Raise ValueError unless every row names one clip of its own, in the known words."""
    seen: dict[tuple[str, str], int] = {}
    for line, row in enumerate(rows, start=2):
        machine, name = row["machine"], row["file_name"]
        if not machine or not name:
            missing = "file_name" if machine else "machine"
            raise ValueError(f"{path}, line {line}, has no {missing}. Make it anew.")
        if (first := seen.setdefault((machine, name), line)) != line:
            raise ValueError(
                f"{path} has {machine}/{name} twice, in lines {first} and {line}. Make it anew."
            )
        for column, words in (
            ("domain", DOMAINS),
            ("condition", CONDITIONS),
            ("decision", ("0", "1")),
        ):
            if row[column] and row[column] not in words:
                raise ValueError(
                    f"{path}, line {line}: the {column} of {machine}/{name} is {row[column]!r}, "
                    f"not one of {', '.join(map(repr, words))} or nothing. Make it anew."
                )


def _number(value: float) -> str:
    return "" if np.isnan(value) else repr(float(value))
